"""An engine of the user's own, made and tried on two texts: so is known what it answers, and how wide that is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from engines.checkpoint import CheckpointConfig
from engines.errors import EngineError, EngineUnavailable
from engines.heads import ModelOutput
from engines.own_batches import BatchAnswer, BatchCall, BatchRows, CheckedRows
from engines.padded import PADDED_TOKENS, PaddedEngine, padded_lengths
from engines.rows import Engine, PackedRows
from pipeline.class_paths import ClassPath
from pipeline.model_files import max_length, model_config, task_of
from pipeline.model_settings import Task
from pipeline.own_classes import made
from pipeline.settings import EnsembleSettings
from schemas.requests import TOKEN_TASKS
from stages.blame import told

_PLACE = ("engine", "kind")
# What a task reads of several answers, the best first.
_VECTORS = ("sentence_embedding", "last_hidden_state", "token_embeddings")
_LOGITS = ("logits",)
_TOKENS = ("last_hidden_state", "token_embeddings")

Tried = TypeVar("Tried")
Output = Callable[[EnsembleSettings, int, CheckpointConfig, BatchAnswer], ModelOutput]


def open_own_engine(settings: EnsembleSettings, indices: Sequence[int], path: ClassPath, output: Output) -> Engine:
    """Of the models at `indices`, which share a folder; `output` is what is made of an answer. The class is offered
    `source`, the folder, `models`, their names, and `threads`. Raises SettingsError."""
    config = model_config(settings, indices[0])
    names = tuple(settings.models[index].name for index in indices)
    offered = {"source": config.folder, "models": names, "threads": settings.engine.threads}
    engine = made(settings, path, _PLACE, settings.engine.options, offered)
    if callable(getattr(engine, "run", None)):
        return _packed(settings, indices, path, engine)
    if not callable(engine):
        message = f"{path} has neither __call__(input_ids, attention_mask) nor run(rows): see docs/own-classes.md"
        raise settings.mistake(*_PLACE, message=message)
    call = BatchCall(engine, str(path))
    answers = _tried(settings, path, lambda: call.answers(_two_texts()))
    outputs: list[tuple[ModelOutput, BatchAnswer]] = []
    for index in indices:
        answer = _chosen(settings, index, path, answers)
        outputs.append((output(settings, index, model_config(settings, index), answer), answer))
    lengths = padded_lengths(max_length(settings))
    return PaddedEngine(BatchRows(call, outputs), lengths=lengths, max_tokens=PADDED_TOKENS)


def _packed(settings: EnsembleSettings, indices: Sequence[int], path: ClassPath, engine: Engine) -> Engine:
    def tried() -> CheckedRows:
        checked = CheckedRows(engine, str(path))
        missing = {settings.models[index].name for index in indices} - checked.widths.keys()
        if missing:
            raise EngineError(f"{path}: widths has no {', '.join(sorted(missing))}, as the file calls it")
        for index in indices:
            name = settings.models[index].name
            task = task_of(settings, index, model_config(settings, index))
            if (task in TOKEN_TASKS) != (name in checked.of_tokens):
                one = "a token" if task in TOKEN_TASKS else "a text"
                raise EngineError(f"{path}: of_tokens is wrong of {name}: a {task} reads a vector of {one}")
        checked.run(_two_texts())
        return checked

    return _tried(settings, path, tried)


def _tried(settings: EnsembleSettings, path: ClassPath, attempt: Callable[[], Tried]) -> Tried:
    try:
        return attempt()
    except EngineUnavailable as err:
        raise settings.mistake(*_PLACE, message=str(err)) from err
    except EngineError as err:
        raise settings.mistake(*_PLACE, message=f"{err}: correct it") from err
    except Exception as err:  # a user's own code raises anything
        message = f"{path} fails on two texts of token 0: {told(err)}: correct it"
        raise settings.mistake(*_PLACE, message=message) from err


def _chosen(settings: EnsembleSettings, index: int, path: ClassPath, answers: Mapping[str, BatchAnswer]) -> BatchAnswer:
    """What a model reads: under its own name, or under a usual one of its task, or the only one."""
    model = settings.models[index]
    task = task_of(settings, index, model_config(settings, index))
    if task in TOKEN_TASKS and any(answer.per_token for answer in answers.values()):
        answers = {name: answer for name, answer in answers.items() if answer.per_token}
    for name in (model.name, *_usual(task, headed=model.head is not None)):
        if name in answers:
            return answers[name]
    if len(answers) == 1:
        return next(iter(answers.values()))
    message = f"{path} answers {', '.join(answers)}, and none by the name {model.name}, or a usual one of {task}"
    raise settings.mistake(*_PLACE, message=f"{message}: answer it by that name")


def _usual(task: Task, *, headed: bool) -> tuple[str, ...]:
    if task in ("feature-extraction", "fill-mask"):
        return _TOKENS
    return _VECTORS if task == "sentence-embedding" or headed else _LOGITS


def _two_texts() -> PackedRows:
    """Of two tokens and of one."""
    segments = np.array([[1, 1], [1, 0]], np.int32)
    return PackedRows(
        input_ids=np.zeros_like(segments),
        position_ids=np.array([[0, 1], [0, 0]], np.int32),
        segment_ids=segments,
        row=np.array([0, 1], np.int32),
        slot=np.zeros(2, np.int32),
        slots=1,
    )
