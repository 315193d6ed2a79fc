"""From an ensemble's settings to its stages.

Each stage is opened on its own, so that a worker loads what its stage needs: weights are encode's, but for the head of
a masked language model, which is postprocess's.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache

from engines.rows import Engine
from pipeline.model_engines import open_model_engine
from pipeline.model_files import blaming, found_folder, max_length, model_folder
from pipeline.model_settings import Task
from pipeline.model_tasks import (
    chosen_tokens,
    known_parameters,
    model_task,
    model_tasks,
    most_masks,
    most_tokens,
    require_models_tokenizer,
)
from pipeline.own_tokenizers import own_tokenizer
from pipeline.plans.samples import sample_windows
from pipeline.settings import EnsembleSettings
from schemas.requests import OFFSET_TASKS, request_kind
from stages.encode import EncodeStage
from stages.postprocess import PostprocessStage
from stages.question_tokenizer import QuestionTokenizer
from stages.text_tokenizer import TextTokenizer
from stages.token_words import no_method
from stages.tokenize import TokenizeStage
from stages.tokenizer_files import no_offsets

log = logging.getLogger("penstock.tokenizer")

__all__ = ["max_length", "open_encode_stage", "open_postprocess_stage", "open_tokenize_stage", "open_tokenizer"]


def open_tokenizer(settings: EnsembleSettings) -> TextTokenizer:
    """The tokenizer with its policy for long texts. Raises UserError."""
    own = own_tokenizer(settings) if settings.tokenizer.class_ is not None else None
    with blaming(settings, *settings.tokenizer_place):
        return TextTokenizer(
            found_folder(settings.tokenizer_source),
            max_length=max_length(settings),
            long_texts=settings.tokenizer.long_texts,
            stride=settings.tokenizer.stride_in,
            own=own,
        )


def open_tokenize_stage(settings: EnsembleSettings) -> TokenizeStage:
    """Requests to packs, by the ensemble's tokenizer. Raises UserError."""
    tasks = model_tasks(settings)
    questions = request_kind(tasks) == "question"
    tokenizer = _question_tokenizer(settings) if questions else _text_tokenizer(settings, tasks)
    bounds = {"most_tokens": most_tokens(settings, tasks), "most_masks": most_masks(settings, tasks)}
    with blaming(settings, *settings.tokenizer_place):
        return TokenizeStage(
            tokenizer,
            request_format=settings.requests.format,
            max_text_bytes=settings.requests.max_text_bytes,
            tasks=tasks,
            known_parameters=known_parameters(settings, tasks),
            **bounds,
            deadline_ms=settings.requests.deadline_ms,
            lanes=[*settings.batching.lanes],
            lane_topics={each.topic_names.requests: lane for lane, each in settings.other_lanes().items()},
        )


def _text_tokenizer(settings: EnsembleSettings, tasks: Sequence[Task]) -> TextTokenizer:
    tokenizer = open_tokenizer(settings)
    if tokenizer.slow:
        log.warning("%s: %s is a slow tokenizer, in Python, a text at a time", settings.name, tokenizer.slow)
    if "fill-mask" in tasks:
        require_models_tokenizer(settings)
    if not tokenizer.has_offsets and not OFFSET_TASKS.isdisjoint(tasks):
        own = settings.tokenizer.class_
        with blaming(settings, *settings.tokenizer_place):
            raise no_offsets(tokenizer.slow) if own is None else no_method(own, "offsets")
    return tokenizer


def _question_tokenizer(settings: EnsembleSettings) -> QuestionTokenizer:
    wishes = settings.tokenizer
    if wishes.class_ is not None:
        message = "question-answering reads with the model's own tokenizer alone; allowed: leave class out"
        raise settings.mistake("tokenizer", "class", message=message)
    with blaming(settings, *settings.tokenizer_place):
        return QuestionTokenizer(
            found_folder(settings.tokenizer_source),
            max_length=max_length(settings),
            long_texts=wishes.long_texts,
            max_seq_len=wishes.max_length,
            doc_stride=wishes.stride,
        )


def open_encode_stage(settings: EnsembleSettings) -> EncodeStage:
    """An engine for each checkpoint: models that share one share the encoder's pass too.

    Raises UserError, WorkerFailure.
    """
    chosen = chosen_tokens(settings)
    sharing: dict[tuple[object, ...], list[int]] = {}
    for index, model in enumerate(settings.models):
        of_the_user = (model.onnx, model.onnx_output, model.plan, model.plan_output)
        sharing.setdefault((model_folder(settings, index), *of_the_user), []).append(index)
    samples = cache(lambda: sample_windows(settings, open_tokenizer(settings)))
    with ExitStack() as opened:
        engines: list[Engine] = []
        for indices in sharing.values():
            engines.append(open_model_engine(settings, indices, samples))
            opened.callback(engines[-1].close)
        opened.pop_all()  # they are the stage's now
    return EncodeStage(engines, row_length=settings.batching.row_length, max_length=max_length(settings), chosen=chosen)


def open_postprocess_stage(settings: EnsembleSettings) -> PostprocessStage:
    """Each model's task. Raises UserError."""
    return PostprocessStage({model.name: model_task(settings, index) for index, model in enumerate(settings.models)})
