"""A GPU as an engine uses it: its primary context, page-locked memory, and work that is recorded once and replayed.

pycuda for all but recording, which it lacks: that is NVIDIA's `cuda-bindings`. Importing this imports both, and no
more; where they are missing it raises EngineUnavailable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from engines.errors import DeviceUnavailable, EngineBusy, EngineError, EngineLost
from engines.tensorrt_library import not_installed

try:
    import pycuda.driver as driver
    from cuda.bindings import driver as bindings
except ImportError as err:
    raise not_installed(err) from err

# Where kernels like arrays to begin.
_ALIGNMENT_BYTES = 256


# What calls of the driver raise; within `Device.current` it becomes an engine's.
DriverError = driver.Error


class Device:
    """One GPU's primary context, which other libraries of the process use too.

    Nothing of the driver works on a thread outside of `current`.
    """

    def __init__(self, index: int) -> None:
        try:
            driver.init()
            device = driver.Device(index)
            self.name = str(device.name())
            self.compute_capability: tuple[int, int] = device.compute_capability()
            self._context = device.retain_primary_context()
        except driver.Error as err:
            raise DeviceUnavailable(f"GPU {index}: {err}: does nvidia-smi list it?") from err
        self.index = index

    @contextmanager
    def current(self) -> Iterator[None]:
        """Calls on this thread are about this GPU. What fails in here is raised as an engine's error."""
        try:
            self._context.push()
        except driver.Error as err:
            raise EngineLost(f"GPU {self.index} ({self.name}): {err}") from err
        try:
            yield
        except driver.Error as err:
            raise self._told(err) from err
        finally:
            driver.Context.pop()

    def close(self) -> None:
        """Without this the process aborts at its end. Everything that was made on the GPU must be gone by now."""
        with suppress(driver.Error):  # of a GPU that is lost
            self._context.detach()

    def _told(self, err: Exception) -> Exception:
        """By what it means for who called."""
        try:
            driver.Context.synchronize()
        except driver.Error as again:  # an error that every later call repeats
            return EngineLost(f"GPU {self.index} ({self.name}): {again}")
        if isinstance(err, driver.MemoryError):
            return EngineBusy(f"GPU {self.index} ({self.name}): {err}")
        return EngineError(f"GPU {self.index} ({self.name}): {err}")


class Memory:
    """Page-locked memory, and as much on the GPU."""

    def __init__(self, size_bytes: int) -> None:
        self.host: NDArray[np.uint8] = driver.pagelocked_zeros(size_bytes, np.uint8)
        self.device = device_memory(size_bytes)


class Mirror:
    """Arrays end to end in page-locked memory, and as much on the GPU: `arrays` here, `pointers` there. In `memory`,
    where arrays that are used at other times share it, or in their own."""

    def __init__(self, layout: Mapping[str, tuple[tuple[int, ...], DTypeLike]], memory: Memory | None = None) -> None:
        sizes = {name: _size_bytes(shape, dtype) for name, (shape, dtype) in layout.items()}
        starts: dict[str, int] = {}
        end = 0
        for name, size in sizes.items():
            starts[name] = end
            end += _aligned(size)
        memory = memory or Memory(end)
        self._host = memory.host[:end]
        self._device = memory.device
        self.arrays = {
            name: self._host[starts[name] : starts[name] + sizes[name]].view(dtype).reshape(shape)
            for name, (shape, dtype) in layout.items()
        }
        self.pointers = {name: int(self._device) + start for name, start in starts.items()}

    @staticmethod
    def size_bytes(layout: Mapping[str, tuple[tuple[int, ...], DTypeLike]]) -> int:
        """Of the memory that it needs."""
        return sum(_aligned(_size_bytes(shape, dtype)) for shape, dtype in layout.values())

    def to_device(self, stream: Any) -> None:
        """All arrays, in one copy."""
        driver.memcpy_htod_async(self._device, self._host, stream)

    def to_host(self, name: str, rows: int, stream: Any) -> None:
        """The first rows of one array."""
        driver.memcpy_dtoh_async(self.arrays[name][:rows], self.pointers[name], stream)


class Recording:
    """A CUDA graph: work on a stream, recorded once. Raises pycuda's errors, as all that is done on a GPU."""

    def __init__(self, stream: Any, work: Callable[[], None]) -> None:
        self._stream = stream
        mode = bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _checked(bindings.cuStreamBeginCapture(stream.handle, mode))
        try:
            work()
        finally:
            ended = bindings.cuStreamEndCapture(stream.handle)
        [self._graph] = _checked(ended)
        [self._launchable] = _checked(bindings.cuGraphInstantiate(self._graph, 0))

    def launch(self) -> None:
        """All of it, in one call."""
        _checked(bindings.cuGraphLaunch(self._launchable, self._stream.handle))

    def close(self) -> None:
        _checked(bindings.cuGraphExecDestroy(self._launchable))
        _checked(bindings.cuGraphDestroy(self._graph))


def device_memory(size_bytes: int) -> Any:
    """Memory on the GPU alone, as int() its address, for as long as it is held."""
    return driver.mem_alloc(max(1, size_bytes))


def new_stream() -> Any:
    """Work on it is done in order, beside that of other streams."""
    return driver.Stream()


def new_event() -> Any:
    """To wait for without using the processor."""
    return driver.Event(driver.event_flags.BLOCKING_SYNC | driver.event_flags.DISABLE_TIMING)


def _size_bytes(shape: tuple[int, ...], dtype: DTypeLike) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


def _checked(returned: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a call of cuda-bindings gave. Raises pycuda's error for its status, so that there is one kind."""
    status, *values = returned
    if status == bindings.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        raise driver.MemoryError(f"CUDA graph: {status.name}")
    if status != bindings.CUresult.CUDA_SUCCESS:
        raise driver.RuntimeError(f"CUDA graph: {status.name}")
    return tuple(values)


def refused(what: str) -> Exception:
    """The error of a library that says no more than that it failed; `Device.current` finds out what it means."""
    error: Exception = driver.RuntimeError(what)
    return error
