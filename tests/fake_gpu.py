"""A GPU without a GPU: as much of pycuda, cuda-bindings and TensorRT as Penstock uses, computed by ONNX Runtime.

`install` puts the modules where `import` finds them. A plan is the graph and its shapes, pickled. What is recorded on a
stream is replayed at its launch and not done before, as on the real one. Faults are set on the `FakeGpu`.
"""

from __future__ import annotations

import itertools
import pickle
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

VERSION = "10.6.0"


class Error(Exception):
    pass


class LogicError(Error):
    pass


class OutOfMemory(Error):
    pass


class DriverRuntimeError(Error):
    pass


class FakeGpu:
    """What happens on it, and what is to go wrong."""

    def __init__(self) -> None:
        self.memory: dict[int, np.ndarray] = {}
        self.pushed = 0
        self.launches = 0
        self.built: list[dict[str, tuple[int, ...]]] = []
        self.contexts_detached = 0
        self.devices = 2
        # Faults.
        self.fails: Error | None = None  # the next computation, once
        self.is_lost: Error | None = None  # every call from now on
        self.refuses_enqueue = False
        self.refuses_recording = False
        self.spoils: Callable[[np.ndarray], np.ndarray] = lambda rows: rows
        self._addresses = itertools.count(1 << 20, 1 << 24)

    def check(self) -> None:
        assert self.pushed, "a call of the driver outside of `current`"
        if self.is_lost is not None:
            raise self.is_lost

    def allocate(self, size: int) -> int:
        address = next(self._addresses)
        self.memory[address] = np.zeros(size, np.uint8)
        return address

    def at(self, address: int, nbytes: int) -> np.ndarray:
        base = max(start for start in self.memory if start <= address)
        return self.memory[base][address - base : address - base + nbytes]


def install(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    gpu = FakeGpu()
    modules = {
        "pycuda": ModuleType("pycuda"),
        "pycuda.driver": _driver(gpu),
        "cuda": ModuleType("cuda"),
        "cuda.bindings": ModuleType("cuda.bindings"),
        "cuda.bindings.driver": _bindings(gpu),
        "tensorrt": _tensorrt(gpu),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    # They hold the modules of whoever imported them first.
    for name in ("engines.cuda", "engines.tensorrt"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import engines

    for name in ("cuda", "tensorrt"):
        monkeypatch.delattr(engines, name, raising=False)
    return gpu


class _Stream:
    def __init__(self) -> None:
        self.recorded: list[Callable[[], None]] | None = None
        self.handle = self

    def do(self, work: Callable[[], None]) -> None:
        if self.recorded is None:
            work()
        else:
            self.recorded.append(work)

    def synchronize(self) -> None:
        assert self.recorded is None, "not while it is recorded"


def _driver(gpu: FakeGpu) -> Any:
    module = ModuleType("pycuda.driver")

    class Context:
        def push(self) -> None:
            gpu.pushed += 1

        def detach(self) -> None:
            gpu.contexts_detached += 1

        @staticmethod
        def pop() -> None:
            gpu.pushed -= 1

        @staticmethod
        def synchronize() -> None:
            gpu.check()

    class Device:
        def __init__(self, index: int) -> None:
            if index >= gpu.devices:
                raise LogicError("cuDeviceGet failed: invalid device ordinal")

        def name(self) -> str:
            return "Fake H100"

        def compute_capability(self) -> tuple[int, int]:
            return (9, 0)

        def retain_primary_context(self) -> Context:
            return Context()

    class Event:
        def __init__(self, flags: int) -> None:
            self.flags = flags

        def record(self, stream: _Stream) -> None:
            gpu.check()

        def synchronize(self) -> None:
            gpu.check()

    class Memory:
        def __init__(self, size: int) -> None:
            gpu.check()
            self.address = gpu.allocate(size)

        def __int__(self) -> int:
            return self.address

    def to_device(memory: Memory, host: np.ndarray, stream: _Stream) -> None:
        def copy() -> None:
            gpu.at(int(memory), host.nbytes)[:] = host

        gpu.check()
        stream.do(copy)

    def to_host(host: np.ndarray, address: int, stream: _Stream) -> None:
        gpu.check()
        host[:] = gpu.at(address, host.nbytes).view(host.dtype).reshape(host.shape)

    for name, value in {
        "Error": Error,
        "LogicError": LogicError,
        "MemoryError": OutOfMemory,
        "RuntimeError": DriverRuntimeError,
        "Context": Context,
        "Device": Device,
        "Event": Event,
        "Stream": _Stream,
        "event_flags": SimpleNamespace(BLOCKING_SYNC=1, DISABLE_TIMING=2),
        "init": lambda: None,
        "mem_alloc": Memory,
        "pagelocked_zeros": np.zeros,
        "memcpy_htod_async": to_device,
        "memcpy_dtoh_async": to_host,
    }.items():
        setattr(module, name, value)
    return module


def _bindings(gpu: FakeGpu) -> Any:
    module: Any = ModuleType("cuda.bindings.driver")
    success, failed = (
        SimpleNamespace(name="CUDA_SUCCESS"),
        SimpleNamespace(name="CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"),
    )
    no_room = SimpleNamespace(name="CUDA_ERROR_OUT_OF_MEMORY")

    def begin(stream: _Stream, mode: object) -> tuple[object]:
        if gpu.refuses_recording:
            return (failed,)
        stream.recorded = []
        return (success,)

    def end(stream: _Stream) -> tuple[object, ...]:
        recorded, stream.recorded = stream.recorded, None
        return (success, recorded)

    def launch(recorded: list[Callable[[], None]], stream: _Stream) -> tuple[object]:
        if gpu.is_lost is not None:
            return (failed,)
        gpu.launches += 1
        try:
            for work in recorded:
                work()
        except OutOfMemory:
            return (no_room,)
        except Error:
            return (failed,)
        return (success,)

    module.CUresult = SimpleNamespace(CUDA_SUCCESS=success, CUDA_ERROR_OUT_OF_MEMORY=no_room)
    module.CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
    module.cuStreamBeginCapture, module.cuStreamEndCapture, module.cuGraphLaunch = begin, end, launch
    module.cuGraphInstantiate = lambda graph, flags: (success, graph)
    module.cuGraphExecDestroy = module.cuGraphDestroy = lambda graph: (success,)
    return module


class _Execution:
    def __init__(self, gpu: FakeGpu, plan: bytes) -> None:
        self._gpu = gpu
        model, self._shapes = pickle.loads(plan)
        self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self._pointers: dict[str, int] = {}

    def set_tensor_address(self, name: str, pointer: int) -> None:
        self._pointers[name] = pointer

    def execute_async_v3(self, stream: _Stream) -> bool:
        self._gpu.check()
        if self._gpu.refuses_enqueue:
            return False
        pointers = dict(self._pointers)

        def compute() -> None:
            if self._gpu.fails is not None:
                fails, self._gpu.fails = self._gpu.fails, None
                raise fails
            feed = {
                name: self._gpu.at(pointers[name], int(np.prod(shape)) * 4).view(np.int32).reshape(shape)
                for name, shape in self._shapes.items()
            }
            names = [output.name for output in self._session.get_outputs()]
            for name, rows in zip(names, self._session.run(names, feed), strict=True):
                spoilt = np.ascontiguousarray(self._gpu.spoils(rows), np.float32)
                self._gpu.at(pointers[name], spoilt.nbytes)[:] = spoilt.reshape(-1).view(np.uint8)

        stream.do(compute)
        return True


def _tensorrt(gpu: FakeGpu) -> Any:
    module: Any = ModuleType("tensorrt")

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING = range(3)

        def log(self, severity: int, message: str) -> None: ...

    class IProgressMonitor:
        pass

    class Network:
        def __init__(self) -> None:
            self.inputs: list[Any] = []
            self.model = b""

        @property
        def num_inputs(self) -> int:
            return len(self.inputs)

        def get_input(self, index: int) -> Any:
            return self.inputs[index]

    class OnnxParser:
        num_errors = 0

        def __init__(self, network: Network, logger: ILogger) -> None:
            self._network, self._logger = network, logger

        def parse(self, model: bytes) -> bool:
            try:
                session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
            except Exception as err:  # noqa: BLE001 - whatever it is, the parser says no
                self._logger.log(ILogger.ERROR, str(err))
                return False
            self._network.model = model
            self._network.inputs = [SimpleNamespace(name=each.name, shape=None) for each in session.get_inputs()]
            return True

    class Config:
        builder_optimization_level = 3

        def clear_flag(self, flag: str) -> None:
            assert flag == "TF32"

        progress_monitor: Any = None

        def create_timing_cache(self, data: bytes) -> bytes:
            return data

        def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> None:
            self.cache = cache

        def get_timing_cache(self) -> Any:
            return SimpleNamespace(serialize=lambda: self.cache + b"+")

    class Builder:
        def __init__(self, logger: ILogger) -> None:
            gpu.check()

        def create_network(self, flags: int) -> Network:
            return Network()

        def create_builder_config(self) -> Config:
            return Config()

        def build_serialized_network(self, network: Network, config: Config) -> bytes:
            monitor = config.progress_monitor
            monitor.phase_start("Building", None, 2)
            monitor.phase_start("Within", "Building", 9)
            assert monitor.step_complete("Building", 0)
            monitor.phase_finish("Within")
            monitor.phase_finish("Building")
            shapes = {each.name: tuple(each.shape) for each in network.inputs}
            gpu.built.append(shapes)
            return pickle.dumps((network.model, shapes))

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            gpu.check()
            if plan.startswith(b"of another version"):
                self._logger.log(ILogger.ERROR, "The engine plan file is not compatible with this version of TensorRT")
                return None
            return SimpleNamespace(create_execution_context=lambda: _Execution(gpu, plan))

    module.__version__ = VERSION
    module.ILogger, module.IProgressMonitor, module.OnnxParser = ILogger, IProgressMonitor, OnnxParser
    module.Builder, module.Runtime = Builder, Runtime
    module.BuilderFlag = SimpleNamespace(TF32="TF32")
    module.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    return module
