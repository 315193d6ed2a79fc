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
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines import cuda
from engines.errors import EngineBusy, EngineError, EngineLost, PlanError
from engines.lanes import LANES_PER_INSTANCE, Lane
from engines.plan_shapes import PlanShape
from engines.rows import PackedRows
from engines.tensorrt_library import new_logger, started

log = logging.getLogger("penstock.tensorrt")

_ROW_INPUTS = ("input_ids", "position_ids", "segment_ids")


class GpuLane:
    """A lane on a GPU: arrays and recordings of each shape."""

    def __init__(
        self,
        device: cuda.Device,
        stream: Any,
        contexts: Mapping[PlanShape, _Context],
        widths: Mapping[str, int],
    ) -> None:
        self._device = device
        self._stream = stream
        self._done = cuda.new_event()
        self._shapes = {shape: _ShapeLane(shape, context, stream, widths) for shape, context in contexts.items()}

    def run(self, shape: PlanShape, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
        lane = self._shapes[shape]
        lane.fill(rows)
        texts = rows.row.size
        with self._device.current():
            lane.launch()
            for name in lane.outputs.arrays:
                lane.outputs.to_host(name, texts, self._stream)
            self._done.record(self._stream)
            self._done.synchronize()
        return {name: array[:texts].copy() for name, array in lane.outputs.arrays.items()}

    def close(self) -> None:
        try:
            with self._device.current():
                while self._shapes:  # nothing of it may be left to be freed elsewhere
                    self._shapes.popitem()[1].close()
                del self._done, self._stream
        except (EngineError, EngineLost) as err:  # a GPU that is lost has taken all of it along
            log.debug("lane not closed: %s", err)


class _Context:
    """A plan's execution context, of which one thread at a time may set addresses and enqueue."""

    def __init__(self, execution: Any) -> None:
        self._execution = execution
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

    def __init__(self, shape: PlanShape, context: _Context, stream: Any, widths: Mapping[str, int]) -> None:
        self._context = context
        self._stream = stream
        self._row_length = shape.row_length
        self.inputs = cuda.Mirror({name: (size, np.int32) for name, size in shape.inputs().items()})
        self.inputs.arrays["slots"][:] = np.arange(1, shape.row_length + 1)
        self.outputs = cuda.Mirror({name: ((shape.texts, width), np.float32) for name, width in widths.items()})
        self._compute()  # what a context allocates and chooses at its first use can't be recorded
        stream.synchronize()
        self._recording: cuda.Recording | None = None
        try:
            self._recording = cuda.Recording(stream, self._compute)
        except cuda.DriverError as err:
            log.warning("plan %s: not recorded, each launch takes longer: %s", shape, err)

    def fill(self, rows: PackedRows) -> None:
        """The rows' numbers; what lies right of them is nobody's, what lies below is of an earlier batch and unread."""
        count, length = rows.input_ids.shape
        for name in _ROW_INPUTS:
            array = self.inputs.arrays[name]
            array[:count, :length] = getattr(rows, name)
            array[:count, length:] = 0
        self.inputs.arrays["texts"][: rows.row.size] = rows.row * np.int32(self._row_length) + rows.slot

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
        lanes: list[list[Lane]] = []
        for _ in range(instances):
            stream = cuda.new_stream()
            executions = {shape: engine.create_execution_context() for shape, engine in engines.items()}
            if None in executions.values():
                raise EngineBusy(f"GPU {device.index} ({device.name}): no room for a plan: {logger.said()}")
            contexts = {shape: _Context(execution) for shape, execution in executions.items()}
            lanes.append([GpuLane(device, stream, contexts, widths) for _ in range(LANES_PER_INSTANCE)])
    # One lane of each instance before the second of any.
    return [lane for place in range(LANES_PER_INSTANCE) for lane in (each[place] for each in lanes)]
