"""TensorRT on NVIDIA GPUs: the fast engine.

    run(rows) -> parts that fit a plan's shape -> [free lanes] -> page-locked arrays -> one recorded launch: copy in,
    compute -> copy out, wait for the event

An instance is an execution context of each plan and a stream. It has two lanes, each with arrays of its own and a
recording of each shape: while one lane computes, the next one's batch is packed and queued behind it, so that the GPU
never waits for Python. Two instances a GPU keep it busy in each other's copies and tails. A call takes whichever lane
is free, on whichever GPU.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines import cuda
from engines.errors import EngineBusy, EngineError, EngineLost, PlanError
from engines.lane_arrays import LaneArrays, PackedArrays
from engines.lanes import LANES_PER_INSTANCE, Lane
from engines.plan_shapes import PlanShape
from engines.rows import PackedRows
from engines.tensorrt_library import new_logger, started

log = logging.getLogger("penstock.tensorrt")


class GpuLane:
    """A lane on a GPU: arrays and recordings of each shape."""

    def __init__(
        self, device: cuda.Device, stream: Any, contexts: Mapping[PlanShape, Context], arrays: LaneArrays
    ) -> None:
        self._device = device
        self._stream = stream
        self._arrays = arrays
        self._done = cuda.new_event()
        # One shape is computed at a time, so that their outputs may lie in one place.
        outputs = cuda.Memory(max(cuda.Mirror.size_bytes(arrays.outputs(shape)) for shape in contexts))
        self._shapes = {
            shape: _ShapeLane(shape, context, stream, arrays, outputs) for shape, context in contexts.items()
        }

    def run(self, shape: PlanShape, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
        lane = self._shapes[shape]
        self._arrays.fill(lane.inputs.arrays, rows)
        with self._device.current():
            lane.launch()
            for name in lane.outputs.arrays:
                lane.outputs.to_host(name, self._arrays.count(name, rows), self._stream)
            self._done.record(self._stream)
            self._done.synchronize()
        return self._arrays.answers(lane.outputs.arrays, rows)

    def close(self) -> None:
        try:
            with self._device.current():
                while self._shapes:  # nothing of it may be left to be freed elsewhere
                    self._shapes.popitem()[1].close()
                del self._done, self._stream
        except (EngineError, EngineLost) as err:  # a GPU that is lost has taken all of it along
            log.debug("lane not closed: %s", err)


class Context:
    """A plan's execution context, of which one thread at a time may set addresses and enqueue. `memory` is what it
    computes in, where that is not its own."""

    def __init__(self, execution: Any, memory: Sequence[Any] = ()) -> None:
        self._execution = execution
        self._memory = memory
        self._lock = threading.Lock()

    def enqueue(self, pointers: Mapping[str, int], stream: Any) -> None:
        """What these point to is read and written. Raises pycuda's errors."""
        with self._lock:
            for name, pointer in pointers.items():
                self._execution.set_tensor_address(name, pointer)
            if not self._execution.execute_async_v3(stream.handle):
                raise cuda.refused("TensorRT did not take the batch")


class _ShapeLane:
    """One shape's arrays, and its work recorded."""

    def __init__(
        self, shape: PlanShape, context: Context, stream: Any, arrays: LaneArrays, outputs: cuda.Memory
    ) -> None:
        self._context = context
        self._stream = stream
        self.inputs = cuda.Mirror(arrays.inputs(shape))
        arrays.prepare(self.inputs.arrays)
        self.outputs = cuda.Mirror(arrays.outputs(shape), outputs)
        self._compute()  # what a context allocates and chooses at its first use can't be recorded
        stream.synchronize()
        self._recording: cuda.Recording | None = None
        try:
            self._recording = cuda.Recording(stream, self._compute)
        except cuda.DriverError as err:
            log.warning("plan %s: not recorded, each launch takes longer: %s", shape, err)

    def launch(self) -> None:
        if self._recording is not None:
            self._recording.launch()
        else:
            self._compute()

    def close(self) -> None:
        if self._recording is not None:
            self._recording.close()

    def _compute(self) -> None:
        self.inputs.to_device(self._stream)
        self._context.enqueue(self.inputs.pointers | self.outputs.pointers, self._stream)


def open_lanes(
    trt: ModuleType,
    device: cuda.Device,
    plans: Mapping[PlanShape, bytes],
    widths: Mapping[str, int],
    of_tokens: frozenset[str],
    *,
    instances: int,
) -> list[Lane]:
    """Lanes of one GPU, warm: each shape has been computed once. The plans' weights are on it once, whatever the
    instances. Raises PlanError, EngineError."""
    with device.current():
        logger = new_logger(trt)
        runtime = started(trt.Runtime, logger)
        engines = {}
        for shape, plan in plans.items():
            engines[shape] = runtime.deserialize_cuda_engine(plan)
            if engines[shape] is None:
                raise PlanError(f"plan {shape} can't be loaded on GPU {device.index} ({device.name}): {logger.said()}")

        def contexts(stream: Any) -> dict[PlanShape, Context]:  # noqa: ARG001 - a plan of one shape needs nothing done
            executions = {shape: engine.create_execution_context() for shape, engine in engines.items()}
            if None in executions.values():
                raise no_room(device, logger)
            return {shape: Context(execution) for shape, execution in executions.items()}

        return lanes_of(device, contexts, PackedArrays(widths, of_tokens), instances=instances)


def lanes_of(
    device: cuda.Device,
    contexts: Callable[[Any], Mapping[PlanShape, Context]],
    arrays: LaneArrays,
    *,
    instances: int,
) -> list[Lane]:
    """Lanes of one GPU, which is the current one; `contexts` makes an instance's, for its stream."""
    lanes: list[list[Lane]] = []
    for _ in range(instances):
        stream = cuda.new_stream()
        mine = contexts(stream)
        lanes.append([GpuLane(device, stream, mine, arrays) for _ in range(LANES_PER_INSTANCE)])
    # One lane of each instance before the second of any.
    return [lane for place in range(LANES_PER_INSTANCE) for lane in (each[place] for each in lanes)]


def no_room(device: cuda.Device, logger: Any) -> EngineBusy:
    """What it means that TensorRT made no execution context."""
    return EngineBusy(f"GPU {device.index} ({device.name}): no room for a plan: {logger.said()}")
