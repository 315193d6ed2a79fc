"""The ensemble file's sections `batching` and `engine`: how much is computed at once, and by what."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, Field, model_validator

from engines.lanes import LANES_PER_INSTANCE
from engines.precision import Precision
from pipeline.class_paths import ClassPath, names_or_class
from pipeline.ensemble_file import FilePath, Section
from pipeline.mistakes import Contradictions
from pipeline.names import topic_name

# They compute in each other's gaps.
_GPU_INSTANCES = 2

# Of a lane: the last one's share is never less than a thousandth of the first one's.
_MOST_WEIGHT = 1_000

MAX_THREADS = 256

# As a container sees its own.
_CGROUP = Path("/sys/fs/cgroup")


Kind = Literal["onnxruntime", "openvino", "numpy", "tensorrt"]


def _lanes(lanes: Mapping[str, int]) -> Mapping[str, int]:
    if not lanes:
        raise ValueError("an empty mapping is not allowed; allowed: a name and a weight for each lane")
    for name, weight in lanes.items():
        topic_name(name)
        if weight not in range(1, _MOST_WEIGHT + 1):
            raise ValueError(f"{name}: {weight} is not allowed; allowed: a weight from 1 to {_MOST_WEIGHT}")
    return lanes


class BatchingSettings(Section):
    """How texts are gathered for an engine: work-conserving, under caps of count, tokens and time.

    Defaults are a CPU's. With `engine.kind: tensorrt` they are 256 (`max_pack_size`), 4096 (`max_batch_size`), 16384
    (`max_batch_tokens`), 128 (`row_length`) and 524288 (`max_in_flight_tokens`).
    """

    max_pack_size: int = Field(default=64, ge=1, le=4096)
    """Texts in one record of the tokens topic. Packs of 64 cost Python 0.5 us a text, single records 1.9. Encode and
    postprocess read smaller packs that wait as one, up to so many windows; 1 reads each alone."""

    pack_delay_ms: int = Field(default=5, ge=0, le=1_000)
    """How long requests are gathered after others were read: at a low rate none waits, at a high one packs fill, and
    tokenizing and each stage behind it costs a fraction. 0 takes what has come, as soon as it has."""

    max_batch_size: int = Field(default=64, ge=1, le=65_536)
    """Windows in one micro-batch."""

    max_batch_tokens: int = Field(default=2048, ge=8, le=1 << 20)
    """Tokens in one micro-batch, the bound on an engine's memory and on the wait behind it. A longer window
    stands alone."""

    max_queue_delay_ms: int = Field(default=0, ge=0, le=60_000)
    """How long the oldest window waits for more while there are fewer than `knee_tokens`."""

    knee_tokens: int = Field(default=0, ge=0, le=1 << 20)
    """Below it more tokens cost no more time, as on a GPU with idle units, so waiting for them pays. On a CPU
    there is no knee: 0 dispatches as soon as an instance is free."""

    row_length: int = Field(default=64, ge=8, le=32_768)
    """Tokens of a packed row, a multiple of 8. On a CPU 64 (ONNX Runtime: 19 % faster than 128), on a GPU 128 (12 %
    faster than 256)."""

    lanes: Annotated[Mapping[str, int], AfterValidator(_lanes)] = {"default": 1}
    """Lanes of the encode stage's queue and their weights, such as `{interactive: 8, bulk: 1}`. While all have
    something waiting each gets its weight's share of the tokens; what a lane leaves is the others'. The first lane's
    requests come by the ensemble's requests topic, another's by a topic of its own, `<requests topic>.bulk`, so that a
    backlog there is in nobody's way; a request's header `penstock.lane` may name a lane too, for its place in the
    queue."""

    max_in_flight_tokens: int = Field(default=65_536, ge=8, le=1 << 30)
    """Tokens that a worker has read and not yet delivered. Above it partitions are paused, below half of it
    resumed. Bounds memory and what is repeated after a kill. Of each lane, where there are several."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        wrong = Contradictions()
        row, batch, knee, in_flight = (
            self.row_length,
            self.max_batch_tokens,
            self.knee_tokens,
            self.max_in_flight_tokens,
        )
        if row % 8:
            wrong.add("row_length", message=f"{row} is not allowed; allowed: a multiple of 8")
        if batch < row:
            message = f"{batch} doesn't fill a row; allowed: at least {row} (row_length)"
            wrong.add("max_batch_tokens", message=message)
        if knee > batch:
            message = f"{knee} is never reached; allowed: at most {batch} (max_batch_tokens)"
            wrong.add("knee_tokens", message=message)
        if self.max_queue_delay_ms and not knee:
            message = f"{self.max_queue_delay_ms} has no effect while knee_tokens is 0; allowed: 0, or a knee"
            wrong.add("max_queue_delay_ms", message=message)
        if in_flight < batch:
            message = f"{in_flight} lets no batch gather; allowed: at least {batch} (max_batch_tokens)"
            wrong.add("max_in_flight_tokens", message=message)
        wrong.raise_if_any()
        return self


# What `batching` is with TensorRT where the file does not say: an H100 is at its best from 8,192 tokens on.
GPU_BATCHING: Mapping[str, int] = {
    "max_pack_size": 256,
    "max_batch_size": 4096,
    "max_batch_tokens": 16_384,
    "row_length": 128,
    "max_in_flight_tokens": 524_288,
}


# The same with `objective: latency`, on processors and on a GPU.
LATENCY_BATCHING: Mapping[str, int] = {"pack_delay_ms": 0, "max_batch_tokens": 512, "max_batch_size": 512}
LATENCY_GPU_BATCHING: Mapping[str, int] = {"pack_delay_ms": 0, "max_batch_tokens": 2048, "max_batch_size": 2048}


class EngineSettings(Section):
    """What computes."""

    kind: Annotated[Kind | ClassPath, names_or_class(get_args(Kind))] = "onnxruntime"
    """`tensorrt` is for NVIDIA GPUs and needs `pip install 'penstock[gpu]'`; `openvino` needs `pip install openvino`
    and is faster on some processors; `numpy` is slow and exact. A class of your own, as `module:Class`, computes in
    their place: docs/own-classes.md."""

    options: dict[str, Any] = Field(default_factory=dict)
    """What a class that is `kind` is called with, by keyword."""

    instances: int | None = Field(default=None, ge=1, le=256)
    """On processors: batches that are computed at the same time, by default as many as the process has processors for.
    On a GPU: streams, by default 2, each with one batch in work and one behind it. A class of your own is called by
    one thread at a time unless this says more."""

    threads: int = Field(default=1, ge=1, le=MAX_THREADS)
    """Threads of one instance on processors. More instances give throughput, more threads make a lone text faster."""

    precision: Precision | None = None
    """With `tensorrt`, by default fp16. fp8 and int8 are faster; each plan is compared with the model in float32, and
    refused where it differs by too much. The other engines compute in fp32."""

    devices: Annotated[tuple[int, ...], Field(strict=False)] = (0,)
    """With `tensorrt`: the GPUs that one process uses, by CUDA's numbers, which are nvidia-smi's where
    CUDA_DEVICE_ORDER is PCI_BUS_ID."""

    plans: Literal["build", "require"] = "build"
    """With `tensorrt`: what a worker does that finds no plan: build it, which takes minutes, or fail, so that
    `penstock build` is run first."""

    plan_cache: FilePath | None = None
    """With `tensorrt`: the folder of built plans, by default one of the user's own."""

    sample_texts: FilePath | None = None
    """With `tensorrt`: a file with a text a line, gzipped or not, like those to come: plans are checked on 1,024 of
    them, and 8-bit numbers scaled. Default: English speeches."""

    @property
    def on_gpu(self) -> bool:
        return self.kind == "tensorrt"

    @property
    def instance_count(self) -> int:
        """`instances`, or what fits the processors that this process may use; of each GPU."""
        if self.on_gpu:
            return self.instances or _GPU_INSTANCES
        if isinstance(self.kind, ClassPath):
            return self.instances or 1  # a class that says nothing of threads
        return self.instances or max(1, processors() // self.threads)

    @property
    def batches_at_once(self) -> int:
        """As many as keep all instances at work."""
        return self.instance_count * (LANES_PER_INSTANCE * len(self.devices) if self.on_gpu else 1)

    @property
    def number_type(self) -> Precision:
        """`precision`, or the engine's own."""
        return self.precision or ("fp16" if self.on_gpu else "fp32")

    @model_validator(mode="after")
    def _check(self) -> Self:
        wrong = Contradictions()
        if self.precision not in (None, "fp32") and not self.on_gpu:
            wrong.add("precision", message=f"{self.precision} is not allowed with {self.kind}; allowed: fp32")
        if self.options and not isinstance(self.kind, ClassPath):
            message = f"has no effect with {self.kind}; allowed with: a class of yours, as module:Class"
            wrong.add("options", message=message)
        if not self.devices or len({*self.devices}) < len(self.devices) or min(self.devices) < 0:
            wrong.add("devices", message=f"{[*self.devices]} is not allowed; allowed: numbers of GPUs, each once")
        for option in ("devices", "plans", "plan_cache", "sample_texts") if not self.on_gpu else ():
            if option in self.model_fields_set:
                wrong.add(option, message=f"has no effect with {self.kind}; allowed: only with tensorrt")
        wrong.raise_if_any()
        return self


def processors() -> int:
    """What the process may use; macOS doesn't say, and there it is what the machine has."""
    if sys.platform == "linux":
        return min(len(os.sched_getaffinity(0)), _quota(_CGROUP))
    return os.cpu_count() or 1


def _quota(cgroup: Path) -> int:
    """Whole processors' worth of time that a container grants (`--cpus`, Kubernetes' limits): cgroup v2, then v1."""
    try:
        if (file := cgroup / "cpu.max").exists():
            quota, period = file.read_text().split()
        else:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text()
        granted = int(quota) / int(period)
    except (OSError, ValueError):  # no container, or one without a limit: "max"
        return sys.maxsize
    return max(1, int(granted)) if granted > 0 else sys.maxsize  # v1 says -1 for none
