"""A TensorRT plan of the user's own to an engine: loaded on each GPU, understood, and run as it is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from engines.errors import CheckpointError, PlanError
from engines.finished_arrays import FinishedArrays
from engines.finished_plan import FinishedPlan, read_plan
from engines.heads import ModelOutput, check_outputs, token_names
from engines.lanes import LaneEngine
from engines.padded import PaddedEngine
from engines.profiles import longest, shapes_within
from engines.rows import Engine
from engines.source import ANY_ID
from engines.tensorrt_library import load_tensorrt
from pipeline.plans.gpus import opened_gpus
from pipeline.settings import EnsembleSettings

log = logging.getLogger("penstock.plans")


def open_finished_plan(
    settings: EnsembleSettings,
    path: Path,
    outputs: Callable[[FinishedPlan], Sequence[ModelOutput]],
    *,
    output: str | None,
    vocab_size: int | None,
    first_position: int,
    max_length: int,
) -> Engine:
    """On each GPU of `engine.devices`, warm. `outputs` says what is wanted of the plan once it is known; `output` is
    the plan's that is read, where not the usual one.

    Raises CheckpointError where the plan can't be loaded or served, EngineUnavailable, EngineError; UserError where
    texts may be longer than it reads.
    """
    content = _content(path)
    trt = load_tensorrt()
    from engines.finished_lanes import LoadedPlan  # where there is no GPU it can't be imported

    with opened_gpus(settings.engine.devices) as gpus:
        loaded: list[LoadedPlan] = []
        for device in gpus.devices:
            try:
                loaded.append(LoadedPlan(trt, device, content))
            except PlanError as err:
                raise CheckpointError(
                    f"{path}: {err}: build it with this TensorRT on this kind of GPU, or name the ONNX file in onnx"
                ) from err
            gpus.on_close.append(loaded[-1].close)
        plan = read_plan(path, loaded[0].tensors(), output=output)
        if max_length > longest(plan.profiles):
            message = f"{max_length} tokens are more than {path} reads; allowed: at most {longest(plan.profiles)}"
            raise settings.mistake("tokenizer", "max_length", message=message)
        wanted = outputs(plan)
        shapes = shapes_within(
            plan.profiles, max_length=max_length, max_batch_tokens=settings.batching.max_batch_tokens
        )
        arrays = FinishedArrays(plan, wanted, max_positions=max_length, first_position=first_position)
        for each in loaded:
            gpus.lanes.append(each.lanes(plan, shapes, arrays, instances=settings.engine.instance_count))
        log.info(
            "%s: a plan of your own, run as it is and compared with nothing; tokens: %s",
            path,
            ", ".join(str(shape) for shape in shapes),
        )
        engine = LaneEngine(
            gpus.lanes_in_turn(),
            [*shapes],
            check_outputs(wanted, hidden_size=plan.width),
            of_tokens=token_names(wanted),
            vocab_size=vocab_size or ANY_ID,
            max_positions=max_length,
            types=2 if "token_type_ids" in plan.inputs else 1,
            on_close=gpus.close,
        )
    return PaddedEngine.of_shapes(engine, shapes)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise CheckpointError(
            f"{path}: can't be read ({err.strerror}): name a TensorRT plan, such as trtexec saves"
        ) from err
