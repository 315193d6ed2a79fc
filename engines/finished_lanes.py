"""Lanes of a finished plan: an execution context of each shape, all of an instance in the same memory.

What is recorded is of its context's shape and profile, so each shape has a context of its own that is set once, as
NVIDIA advises. What a context computes in is the greater part of it, as large as its profile's
largest shape; an instance's contexts compute one after the other, on its stream, and share it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from engines import cuda
from engines.errors import CheckpointError, EngineError, EngineLost, PlanError
from engines.finished_plan import FinishedPlan, PlanTensor, tensors_of
from engines.lane_arrays import LaneArrays
from engines.lanes import Lane
from engines.plan_shapes import PlanShape
from engines.tensorrt import Context, lanes_of, no_room
from engines.tensorrt_library import new_logger, started

log = logging.getLogger("penstock.tensorrt")

# No number of TensorRT's is larger.
_LARGEST_NUMBER_BYTES = 8


class LoadedPlan:
    """A plan on one GPU: its weights are there once, whatever the instances."""

    def __init__(self, trt: ModuleType, device: cuda.Device, content: bytes) -> None:
        """Raises PlanError where TensorRT does not take it."""
        self._trt = trt
        self._device = device
        self._logger = new_logger(trt)
        with device.current():
            self._runtime = started(trt.Runtime, self._logger)
            self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise PlanError(
                f"can't be loaded on GPU {device.index} ({device.name}) by TensorRT {trt.__version__}: "
                f"{self._logger.said()}"
            )

    def tensors(self) -> list[PlanTensor]:
        """What goes in and comes out."""
        with self._device.current():
            return tensors_of(self._trt, self._engine)

    def lanes(
        self, plan: FinishedPlan, shapes: Mapping[PlanShape, int], arrays: LaneArrays, *, instances: int
    ) -> list[Lane]:
        """Warm: each shape, computed in its profile, has been computed once. Raises CheckpointError, EngineError."""

        def contexts(stream: Any) -> dict[PlanShape, Context]:
            size = max(self._engine.get_device_memory_size_for_profile_v2(profile) for profile in shapes.values())
            executions = {shape: self._execution(plan, shape, shapes[shape], stream) for shape in shapes}
            unread = {
                name: cuda.device_memory(max(_size_bytes(plan, each, name) for each in executions.values()))
                for name in plan.others
            }
            memory = cuda.device_memory(size)
            for execution in executions.values():
                execution.set_device_memory(int(memory), size)
                for name, place in unread.items():
                    execution.set_tensor_address(name, int(place))
            held = (memory, *unread.values())
            return {shape: Context(execution, held) for shape, execution in executions.items()}

        with self._device.current():
            return lanes_of(self._device, contexts, arrays, instances=instances)

    def close(self) -> None:
        """After the lanes."""
        try:
            with self._device.current():
                del self._engine, self._runtime
        except (EngineError, EngineLost) as err:  # a GPU that is lost has taken all of it along
            log.debug("plan not closed: %s", err)

    def _execution(self, plan: FinishedPlan, shape: PlanShape, profile: int, stream: Any) -> Any:
        """An execution context that is set to a shape for good."""
        execution = self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if execution is None:
            raise no_room(self._device, self._logger)
        rows = (shape.rows, shape.row_length)
        taken = execution.set_optimization_profile_async(profile, stream.handle)
        stream.synchronize()  # what it copies is there before anything is computed
        for name in plan.inputs:
            taken = taken and execution.set_input_shape(name, rows)
        if not taken:
            raise CheckpointError(f"{plan.path}: does not take {shape} tokens: {self._logger.said()}")
        wanted = (*rows, plan.width) if plan.per_token else (shape.rows, plan.width)
        found = tuple(execution.get_tensor_shape(plan.output))
        if found != wanted:
            raise CheckpointError(
                f"{plan.path}: output {plan.output!r} of {shape} tokens is {found}: {wanted} is wanted, each text apart"
            )
        return execution


def _size_bytes(plan: FinishedPlan, execution: Any, name: str) -> int:
    """Of an output that nobody reads, and that must have a place all the same."""
    dims: tuple[int, ...] = tuple(execution.get_tensor_shape(name))
    if min(dims, default=0) < 0:
        raise CheckpointError(
            f"{plan.path}: output {name!r} has no size before it is computed: build the plan without it"
        )
    return math.prod(dims) * _LARGEST_NUMBER_BYTES
