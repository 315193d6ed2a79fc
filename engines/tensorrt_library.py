"""TensorRT's Python API, as far as 10.6 and 11 agree: what it says goes to a log and into errors."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

from engines.errors import EngineUnavailable

log = logging.getLogger("penstock.tensorrt")

# A plan's errors are told in one line.
_LONGEST = 500


def load_tensorrt() -> ModuleType:
    """The module. Raises EngineUnavailable where it is not installed."""
    try:
        return importlib.import_module("tensorrt")
    except ImportError as err:
        raise not_installed(err) from err


def not_installed(err: ImportError) -> EngineUnavailable:
    """What a person can do about a library that is missing."""
    return EngineUnavailable(
        f"engine tensorrt: {err}: pip install 'penstock[gpu]' on a machine with an NVIDIA GPU and its driver, "
        "or choose another engine.kind"
    )


def started(make: Callable[[Any], Any], logger: Any) -> Any:
    """A builder or a runtime. Raises EngineUnavailable where TensorRT finds no driver, or one that is too old."""
    try:
        return make(logger)
    except TypeError as err:  # pybind11's word for it
        raise EngineUnavailable(
            f"engine tensorrt: {logger.said()}: is NVIDIA's driver there, and new enough for this TensorRT?"
        ) from err


def new_logger(trt: ModuleType) -> Any:
    """An ILogger that passes on to Python's logging and keeps errors: `said()` is the last of them."""

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
                log.debug("error: %s", message)  # who asked gets it as an exception
            elif severity == trt.ILogger.WARNING:
                log.debug("warning: %s", message)

        def said(self) -> str:
            return " ".join(self.errors[-1].split())[:_LONGEST] if self.errors else "TensorRT does not say why"

    return Logger()
