"""A GPU without a GPU: as much of pycuda, cuda-bindings and TensorRT as Penstock uses, computed by ONNX Runtime.

`install` puts the modules where `import` finds them. A plan is the graph and its shapes, pickled; `finished_plan` makes
one with optimization profiles. What is recorded on a stream is replayed at its launch and not done before, as on the
real one, and only as long as its execution context is as it was. Faults are set on the `FakeGpu`.
"""

from __future__ import annotations

import itertools
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
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


# Least, best and most of each input.
Profile = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]

_NUMBER_TYPES = {
    "tensor(int32)": ("INT32", np.int32),
    "tensor(int64)": ("INT64", np.int64),
    "tensor(float)": ("FLOAT", np.float32),
    "tensor(float16)": ("HALF", np.float16),
}


def finished_plan(model: bytes, *profiles: Profile, number_types: Mapping[str, str] | None = None) -> bytes:
    """As trtexec would save it of an ONNX file; without profiles the file's axes must be fixed. `number_types` are told
    in place of the file's own."""
    return pickle.dumps((model, profiles, dict(number_types or {})))


class FakeGpu:
    """What happens on it, and what is to go wrong."""

    def __init__(self) -> None:
        self.memory: dict[int, np.ndarray] = {}
        self.pushed = 0
        self.launches = 0
        self.built: list[dict[str, tuple[int, ...]]] = []
        self.contexts_detached = 0
        self.contexts_made = 0
        self.loaded = 0
        self.devices = 2
        self.shapes: dict[str, tuple[int, ...]] = {}  # that outputs tell in place of their own
        # Faults.
        self.fails: Error | None = None  # the next computation, once
        self.is_lost: Error | None = None  # every call from now on
        self.refuses_enqueue = False
        self.refuses_recording = False
        self.refuses_shapes = False
        self.has_no_room = False
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
    for name in ("engines.cuda", "engines.tensorrt", "engines.finished_lanes"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import engines

    for name in ("cuda", "tensorrt", "finished_lanes"):
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


class _DataType(Enum):
    FLOAT, HALF, BF16, INT32, INT64, BOOL = range(6)


class _TensorIOMode(Enum):
    NONE, INPUT, OUTPUT = range(3)


class _Strategy(Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class _Engine:
    """A plan of one shape, whose inputs are the graph's own, or a finished one."""

    def __init__(self, gpu: FakeGpu, plan: bytes) -> None:
        self.gpu = gpu
        model, shapes, *rest = pickle.loads(plan)
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.inputs = {each.name: each for each in self.session.get_inputs()}
        self.outputs = {each.name: each for each in self.session.get_outputs()}
        self._number_types = rest[0] if rest else {}
        fixed = {name: (shape,) * 3 for name, shape in shapes.items()} if isinstance(shapes, dict) else None
        self.profiles: Sequence[Profile] = (
            (fixed,) if fixed else shapes or ({name: (self.dims(name),) * 3 for name in self.inputs},)
        )
        gpu.loaded += 1

    def dims(self, name: str) -> tuple[int, ...]:
        shape = (self.inputs | self.outputs)[name].shape
        return tuple(size if isinstance(size, int) else -1 for size in shape)

    def numpy_type(self, name: str) -> Any:
        return _NUMBER_TYPES[(self.inputs | self.outputs)[name].type][1]

    @property
    def num_io_tensors(self) -> int:
        return len(self.inputs) + len(self.outputs)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_mode(self, name: str) -> _TensorIOMode:
        return _TensorIOMode.INPUT if name in self.inputs else _TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> _DataType:
        told = self._number_types.get(name, _NUMBER_TYPES[(self.inputs | self.outputs)[name].type][0])
        return _DataType[told]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.dims(name)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert -1 in self.dims(name), "what TensorRT says of a fixed input is not documented"
        return list(self.profiles[profile_index][name])

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return 1000 * int(np.prod(self.profiles[profile_index]["input_ids"][2]))

    def create_execution_context(self, strategy: _Strategy = _Strategy.STATIC) -> _Execution | None:
        if self.gpu.has_no_room:
            return None
        self.gpu.contexts_made += 1
        return _Execution(self, needs_memory=strategy is _Strategy.USER_MANAGED)


class _Execution:
    def __init__(self, engine: _Engine, *, needs_memory: bool) -> None:
        self._engine = engine
        self._gpu = engine.gpu
        self._needs_memory = needs_memory
        self._pointers: dict[str, int] = {}
        self._profile = 0
        # Of what is fixed it is known from the beginning.
        self._shapes = {name: most for name, (least, _, most) in engine.profiles[0].items() if least == most}
        self._changes = 0

    def set_tensor_address(self, name: str, pointer: int) -> None:
        self._pointers[name] = pointer

    def set_optimization_profile_async(self, profile_index: int, stream_handle: _Stream) -> bool:
        self._profile = profile_index
        self._changes += 1
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self._gpu.refuses_shapes:
            return False
        least, _, most = self._engine.profiles[self._profile][name]
        self._shapes[name] = shape
        self._changes += 1
        return all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """As shapes go through a graph, found by computing it."""
        if name in self._gpu.shapes:
            return self._gpu.shapes[name]
        [found] = self._engine.session.run(
            [name], {each: np.zeros(shape, self._engine.numpy_type(each)) for each, shape in self._shapes.items()}
        )
        return tuple(found.shape)

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= self._engine.get_device_memory_size_for_profile_v2(self._profile)
        assert self._gpu.at(memory, size).size == size
        self._needs_memory = False

    def execute_async_v3(self, stream: _Stream) -> bool:
        self._gpu.check()
        if self._gpu.refuses_enqueue:
            return False
        assert not self._needs_memory
        engine, pointers, shapes, changes = self._engine, dict(self._pointers), dict(self._shapes), self._changes
        assert pointers.keys() == engine.inputs.keys() | engine.outputs.keys(), "each has a place, read or not"

        def compute() -> None:
            assert changes == self._changes, "what was recorded is of another shape"
            if self._gpu.fails is not None:
                fails, self._gpu.fails = self._gpu.fails, None
                raise fails
            feed = {name: self._array(pointers[name], shape, name) for name, shape in shapes.items()}
            names = [*engine.outputs]
            for name, rows in zip(names, engine.session.run(names, feed), strict=True):
                spoilt = np.ascontiguousarray(self._gpu.spoils(rows), rows.dtype)
                self._gpu.at(pointers[name], spoilt.nbytes)[:] = spoilt.reshape(-1).view(np.uint8)

        stream.do(compute)
        return True

    def _array(self, pointer: int, shape: tuple[int, ...], name: str) -> np.ndarray:
        dtype = np.dtype(self._engine.numpy_type(name))
        return self._gpu.at(pointer, int(np.prod(shape)) * dtype.itemsize).view(dtype).reshape(shape)


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
            return _Engine(gpu, plan)

    module.__version__ = VERSION
    module.DataType, module.TensorIOMode, module.ExecutionContextAllocationStrategy = (
        _DataType,
        _TensorIOMode,
        _Strategy,
    )
    module.ICudaEngine, module.IExecutionContext = _Engine, _Execution
    module.ILogger, module.IProgressMonitor, module.OnnxParser = ILogger, IProgressMonitor, OnnxParser
    module.Builder, module.Runtime = Builder, Runtime
    module.BuilderFlag = SimpleNamespace(TF32="TF32")
    module.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    return module
