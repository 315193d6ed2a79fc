"""From an ONNX graph to a TensorRT plan of one shape, and what such a plan depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from engines.errors import PlanError
from engines.tensorrt_library import new_logger, started

# Phase -> the share of it that is done, in %.
OnProgress = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class BuiltPlan:
    """`timings` are what the builder measured: given to the next build it saves most of its time."""

    plan: bytes
    timings: bytes


def build_plan(
    trt: ModuleType,
    model: bytes,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    timings: bytes = b"",
    optimization_level: int = 3,
    on_progress: OnProgress | None = None,
) -> BuiltPlan:
    """A plan for the current GPU; `shapes` gives each input's. `trt` is TensorRT 10.6 or later, or TensorRT-RTX.

    Takes from seconds to minutes. Raises PlanError with what TensorRT says.
    """
    logger = new_logger(trt)
    builder = started(trt.Builder, logger)
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise PlanError(f"TensorRT can't read the graph: {'; '.join(errors) or logger.said()}")
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        tensor.shape = shapes[tensor.name]
    config = builder.create_builder_config()
    config.builder_optimization_level = optimization_level
    # On by default, it would leave float32 the digits of float16.
    config.clear_flag(trt.BuilderFlag.TF32)
    if on_progress is not None:
        config.progress_monitor = _monitor(trt, on_progress)
    config.set_timing_cache(config.create_timing_cache(timings), ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise PlanError(f"TensorRT can't build the plan: {logger.said()}")
    return BuiltPlan(bytes(plan), bytes(config.get_timing_cache().serialize()))


def _strongly_typed(trt: ModuleType) -> int:
    """Types are the graph's, and not the builder's to choose. From TensorRT 11 on every network is so."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _monitor(trt: ModuleType, on_progress: OnProgress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        """Only the outermost phase is told; those within it come and go by the dozen."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.steps[phase_name] = num_steps
                on_progress(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if steps := self.steps.get(phase_name):
                on_progress(phase_name, 100 * (step + 1) // steps)
            return True

        def phase_finish(self, phase_name: str) -> None:
            if self.steps.pop(phase_name, None) is not None:
                on_progress(phase_name, 100)

    return Monitor()
