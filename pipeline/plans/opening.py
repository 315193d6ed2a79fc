"""From a checkpoint to a TensorRT engine that is known to be the model: plans from the cache, or built and checked.

graph -> key of each shape -> cache? -> build on this GPU -> parity with the reference -> keep -> lanes on each GPU
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engines.calibration import measure_channels, quantization
from engines.checkpoint import Checkpoint
from engines.engine import open_source
from engines.errors import PlanError, PlanMissing, SamplesError
from engines.graph import written_graph
from engines.heads import ModelOutput
from engines.lanes import Lane, LaneEngine
from engines.padded import PaddedEngine
from engines.parity import Parity, compare, require
from engines.plan import BuiltPlan, build_plan
from engines.plan_shapes import PlanShape, padded_shapes, plan_shapes
from engines.precision import Numbers, Precision
from engines.rows import Engine, tokens_of_texts
from engines.source import GraphSource, of_checkpoint
from engines.tensorrt_library import load_tensorrt
from pipeline.engine_settings import processors
from pipeline.plans.cache import About, PlanCache, digest
from pipeline.plans.gpus import opened_gpus
from pipeline.plans.samples import Windows, sample_rows
from pipeline.settings import EnsembleSettings

if TYPE_CHECKING:
    from engines.cuda import Device

log = logging.getLogger("penstock.plans")

# Raises ParityError where a precision's outputs are not the model's.
Gate = Callable[[Mapping[str, Parity], Precision], None]

# TensorRT's own default; 5 took twice as long to build and was not faster.
_OPTIMIZATION_LEVEL = 3
_CALIBRATION_TOKENS = 8192
_REFERENCE_TOKENS = 8192
_NOTHING = np.empty((0, 0), np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What plans are built of: a checkpoint in a precision, or else the `source` as it is, which in either case is what
    they are compared with. `windows` gives sample texts, when they are wanted; `gate` judges."""

    source: GraphSource
    checkpoint: Checkpoint | None
    outputs: Sequence[ModelOutput]
    precision: Precision
    shapes: Sequence[PlanShape]
    windows: Windows
    gate: Gate


def open_tensorrt_engine(
    settings: EnsembleSettings,
    checkpoint: Checkpoint,
    outputs: Sequence[ModelOutput],
    *,
    max_length: int,
    windows: Windows,
    gate: Gate = require,
) -> Engine:
    """On each GPU of `engine.devices`, warm.

    Raises EngineUnavailable, PlanMissing, PlanError, EngineError; UserError where the cache or the samples can't be
    used.
    """
    shapes = plan_shapes(
        row_length=settings.batching.row_length,
        max_length=max_length,
        max_batch_tokens=settings.batching.max_batch_tokens,
    )
    model = Model(
        source=of_checkpoint(checkpoint, outputs),
        checkpoint=checkpoint,
        outputs=outputs,
        precision=settings.engine.number_type,
        shapes=shapes,
        windows=windows,
        gate=gate,
    )
    return _open(settings, model)


def open_tensorrt_onnx_engine(
    settings: EnsembleSettings,
    source: GraphSource,
    outputs: Sequence[ModelOutput],
    *,
    halved: bool,
    max_length: int,
    windows: Windows,
    gate: Gate = require,
) -> Engine:
    """The same for an ONNX file of the user's, as it is: `halved` says whether in half precision."""
    max_batch_tokens = settings.batching.max_batch_tokens
    model = Model(
        source=source,
        checkpoint=None,
        outputs=outputs,
        precision="fp16" if halved else "fp32",
        shapes=padded_shapes(max_length=max_length, max_batch_tokens=max_batch_tokens),
        windows=windows,
        gate=gate,
    )
    return _open(settings, model)


def _open(settings: EnsembleSettings, model: Model) -> Engine:
    trt = load_tensorrt()
    from engines.tensorrt import open_lanes  # where there is no GPU it can't be imported

    widths, of_tokens = model.source.widths, model.source.of_tokens
    may_build = settings.engine.plans == "build"

    def engine_of(
        lanes: Sequence[Lane], shapes: Collection[PlanShape], on_close: Callable[[], None] = lambda: None
    ) -> Engine:
        engine = LaneEngine(
            lanes,
            [*shapes],
            widths,
            of_tokens=of_tokens,
            vocab_size=model.source.vocab_size,
            max_positions=model.source.max_positions,
            types=model.source.types,
            on_close=on_close,
        )
        return PaddedEngine.of_shapes(engine, shapes) if model.source.one_text_a_row else engine

    def trial(device: Device, plans: Mapping[PlanShape, bytes]) -> Engine:
        return engine_of(open_lanes(trt, device, plans, widths, of_tokens, instances=1), plans)

    def opened(device: Device, plans: Mapping[PlanShape, bytes]) -> list[Lane]:
        return open_lanes(trt, device, plans, widths, of_tokens, instances=settings.engine.instance_count)

    with opened_gpus(settings.engine.devices) as gpus:
        cache = PlanCache(settings.engine.plan_cache)
        graph = _graph(model, cache)
        for device in gpus.devices:
            plans = _Plans(trt, device.name, device.compute_capability, cache, model, graph)
            with device.current():
                ready = plans.ready(may_build=may_build, opened=partial(trial, device))
            try:
                gpus.lanes.append(opened(device, ready))
            except PlanError as err:
                if not may_build:
                    raise
                log.warning("%s: built anew", err)
                with device.current():
                    ready = plans.ready(may_build=True, opened=partial(trial, device), anew=True)
                gpus.lanes.append(opened(device, ready))
    return engine_of(gpus.lanes_in_turn(), model.shapes, gpus.close)


class _Plans:
    """A model's plans for one kind of GPU."""

    def __init__(
        self,
        trt: ModuleType,
        gpu: str,
        compute_capability: tuple[int, int],
        cache: PlanCache,
        model: Model,
        graph: bytes,
    ) -> None:
        self._trt = trt
        self._gpu = gpu
        self._chip = re.sub(r"\W+", "-", f"{gpu} sm{''.join(map(str, compute_capability))}")
        self._cache = cache
        self._model = model
        self._graph = graph
        builder = (trt.__version__, self._chip, str(_OPTIMIZATION_LEVEL))
        graph_key = digest(graph)  # of hundreds of megabytes, so once
        self._keys = {shape: digest(graph_key, repr(shape.inputs()), *builder) for shape in model.shapes}
        self._references: dict[int, dict[str, NDArray[np.float32]]] = {}

    def ready(
        self, *, may_build: bool, opened: Callable[[Mapping[PlanShape, bytes]], Engine], anew: bool = False
    ) -> dict[PlanShape, bytes]:
        """All of them, those that were missing built and checked; with `anew` all are. `opened` makes an engine of
        some."""
        for key in self._keys.values() if anew else ():
            self._cache.remove(key)
        found = {shape: self._cache.plan(key) for shape, key in self._keys.items()}
        missing = [shape for shape, plan in found.items() if plan is None]
        if missing and not may_build:
            names = ", ".join(map(str, missing))
            raise PlanMissing(f"{self._model.source.path}: no plan of {names} in {self._cache.folder}")
        for shape in missing:
            key = self._keys[shape]
            with self._cache.building(key):
                found[shape] = self._cache.plan(key) or self._build(shape, key, opened)
        return {shape: plan for shape, plan in found.items() if plan is not None}

    def _build(self, shape: PlanShape, key: str, opened: Callable[[Mapping[PlanShape, bytes]], Engine]) -> bytes:
        version, model = self._trt.__version__, self._model
        log.info("%s: building its %s plan of %s tokens for %s", model.source.path, model.precision, shape, self._gpu)
        started_s = time.monotonic()
        built: BuiltPlan = build_plan(
            self._trt,
            self._graph,
            shape.inputs(),
            timings=self._cache.timings(version, self._chip),
            optimization_level=_OPTIMIZATION_LEVEL,
            on_progress=lambda phase, percent: log.debug("%s: %d %%", phase, percent),
        )
        seconds = time.monotonic() - started_s
        self._cache.keep_timings(version, self._chip, built.timings)
        engine = opened({shape: built.plan})
        try:
            parity = self._parity(engine, shape)
        finally:
            engine.close()
        about = About(
            model=str(model.source.path),
            precision=model.precision,
            shape=str(shape),
            tensorrt=version,
            gpu=self._gpu,
            chip=self._chip,
            bytes=len(built.plan),
            seconds=round(seconds, 1),
            parity={name: str(each) for name, each in parity.items()},
        )
        log.info("plan of %s tokens: %.0f s, %d MB; %s", shape, seconds, len(built.plan) >> 20, about.parity)
        model.gate(parity, model.precision)
        self._cache.keep(key, built.plan, about)
        return built.plan

    def _parity(self, engine: Engine, shape: PlanShape) -> dict[str, Parity]:
        """Of the sample windows that fit the shape's rows."""
        model = self._model
        if model.source.one_text_a_row:  # its shortest rows are short, and what is compared need be no whole text
            windows = [window[: shape.row_length] for window in model.windows()]
        else:
            windows = [window for window in model.windows() if len(window) <= shape.row_length]
        if not windows:
            raise SamplesError(f"no text has at most {shape.row_length} tokens")
        if shape.row_length not in self._references:
            reference = open_source("onnxruntime", model.source, threads=processors(), instances=1)
            self._references[shape.row_length] = _answers(
                reference, windows, row_length=shape.row_length, max_batch_tokens=_REFERENCE_TOKENS
            )
        wanted = self._references[shape.row_length]
        got = _answers(engine, windows, row_length=shape.row_length, max_batch_tokens=shape.tokens)
        return {output.name: compare(output, wanted[output.name], got[output.name]) for output in model.outputs}


def _graph(model: Model, cache: PlanCache) -> bytes:
    """What all of the model's plans are built of, whatever the shape and the GPU."""
    if model.checkpoint is None:
        return model.source.graph(None)
    return written_graph(model.checkpoint, model.outputs, numbers=_numbers(model, model.checkpoint, cache))


def _numbers(model: Model, checkpoint: Checkpoint, cache: PlanCache) -> Numbers:
    if model.precision == "fp8" or model.precision == "int8":
        scaled = quantization(model.precision, checkpoint, _channels(model, checkpoint, cache))
        return Numbers(floats="fp16", quantization=scaled)
    return Numbers(floats=model.precision)


def _channels(model: Model, checkpoint: Checkpoint, cache: PlanCache) -> dict[str, NDArray[np.float32]]:
    windows = model.windows()
    key = digest(written_graph(checkpoint, model.outputs), *(window.tobytes() for window in windows))
    if (channels := cache.channels(key)) is None:
        log.info("%s: measuring its activations over %d texts", checkpoint.folder, len(windows))
        rows = sample_rows(windows, row_length=model.shapes[-1].row_length, max_batch_tokens=_CALIBRATION_TOKENS)
        measured = measure_channels(checkpoint, model.outputs, [each for each, _ in rows], threads=processors())
        channels = {name: each.tolist() for name, each in measured.items()}
        cache.keep_channels(key, channels)
    return {name: np.array(each, np.float32) for name, each in channels.items()}


def _answers(
    engine: Engine, windows: Sequence[NDArray[np.int32]], *, row_length: int, max_batch_tokens: int
) -> dict[str, NDArray[np.float32]]:
    """Output name -> (windows, W), or of tokens (all windows' tokens, W)."""
    answers: dict[str, list[NDArray[np.float32]]] = {name: [_NOTHING] * len(windows) for name in engine.widths}
    for rows, places in sample_rows(windows, row_length=row_length, max_batch_tokens=max_batch_tokens):
        for name, answer in engine.run(rows).items():
            found = tokens_of_texts(answer, rows) if name in engine.of_tokens else np.split(answer, len(answer))
            for place, each in zip(places, found, strict=True):
                answers[name][place] = each
    return {name: np.concatenate(found) for name, found in answers.items()}
