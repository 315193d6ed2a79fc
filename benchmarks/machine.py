"""What a number was measured on: it goes into every benchmark's JSON."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from engines.tensorrt_library import load_tensorrt

_LIBRARIES = ("penstock", "confluent-kafka", "onnxruntime", "openvino", "tokenizers", "transformers", "numpy")


def machine() -> dict[str, object]:
    """Commit, processor, cores, versions."""
    return {
        "commit": _commit(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in _LIBRARIES if (found := _version(name))},
    }


def gpu_machine() -> dict[str, object]:
    """The same, with the first GPU, its driver and what computes on it."""
    import pynvml  # type: ignore[import-untyped]

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    return {
        **machine(),
        "gpus": pynvml.nvmlDeviceGetCount(),
        "gpu": pynvml.nvmlDeviceGetName(handle),
        "driver": pynvml.nvmlSystemGetDriverVersion(),
        "tensorrt": load_tensorrt().__version__,
    }


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    said = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    # A copy without its history is told which one it is.
    return said or os.environ.get("PENSTOCK_COMMIT", "unknown")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    found: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    return f"{found.get('model name')} (family {found.get('cpu family')}, model {found.get('model')})"
