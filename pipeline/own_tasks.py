"""Tasks of the user's own: what numbers they read, which parameters they know, and what they say of their output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from engines.checkpoint import CheckpointConfig
from pipeline import model_files
from pipeline.class_paths import ClassPath
from pipeline.model_settings import Task
from pipeline.own_classes import made, own_class
from pipeline.settings import EnsembleSettings
from schemas.parameters import Parameters
from stages.own_tasks import METHODS, own_task
from stages.tasks import AnyTask

_KNOWN = Parameters.__struct_fields__


def numbers_read(settings: EnsembleSettings, index: int, config: CheckpointConfig) -> Task:
    """The built-in task whose numbers the class reads: what it says, else what its methods and the model are made for.
    Raises SettingsError."""
    kind = _task_class(settings, index)
    methods = [method for method in dict.fromkeys(METHODS.values()) if _has(kind, method)]
    reads = getattr(kind, "reads", None)
    if reads is None:
        reads = _usual(settings, index, config, methods)
        if reads is None:
            wanted = "__call__(rows) or of_tokens(rows, details, text)"
            why = "needs reads beside of_pairs" if methods == ["of_pairs"] else f"has no {wanted}"
            raise _mistake(settings, index, f"{why}: see docs/own-classes.md")
    elif reads not in METHODS:
        raise _mistake(settings, index, f"reads {reads!r}; allowed: {', '.join(METHODS)}")
    if METHODS[reads] not in methods:
        raise _mistake(settings, index, f"reads {reads}, and has no method {METHODS[reads]}: write it")
    model = settings.models[index]
    if model.head is not None and reads != "text-classification":
        message = f"has no effect on {model.task}, which reads {reads}; allowed with: text-classification"
        raise settings.mistake("models", index, "head", message=message)
    for option in ("pooling", "normalize"):
        if getattr(model, option) is not None and model.head is None and reads != "sentence-embedding":
            message = f"has no effect on {model.task}, which reads {reads}; allowed with: sentence-embedding"
            raise settings.mistake("models", index, option, message=message)
    return cast(Task, reads)


def own_parameters(settings: EnsembleSettings, index: int) -> tuple[str, ...]:
    """Which parameters of a request the class knows. Raises SettingsError."""
    names = getattr(_task_class(settings, index), "parameters", ())
    if not isinstance(names, (tuple, list)) or not all(name in _KNOWN for name in names):
        raise _mistake(settings, index, f"parameters is {names!r}; allowed: a tuple of {', '.join(_KNOWN)}")
    return tuple(names)


def own_schemas(settings: EnsembleSettings) -> dict[str, dict[str, Any]]:
    """What classes say of their outputs, by model name: a JSON Schema, which allows anything where they say nothing.
    Raises SettingsError."""
    found: dict[str, dict[str, Any]] = {}
    for index, model in enumerate(settings.models):
        if not isinstance(model.task, ClassPath):
            continue
        schema = getattr(_task_class(settings, index), "json_schema", {})
        try:
            if not isinstance(schema, Mapping):
                raise TypeError("it is no dict")
            found[model.name] = msgspec.json.decode(msgspec.json.encode(schema), type=dict[str, Any])
        except (TypeError, ValueError, msgspec.MsgspecError) as err:
            raise _mistake(settings, index, f"json_schema is no JSON Schema ({err}): make it a dict") from err
    return found


def open_own_task(settings: EnsembleSettings, index: int, config: CheckpointConfig) -> AnyTask:
    """One of the class. It is offered the model's folder and its labels. Raises SettingsError."""
    model = settings.models[index]
    assert isinstance(model.task, ClassPath)
    reads = numbers_read(settings, index, config)
    labels = model_files.model_head(settings, index).labels if model.head is not None else config.labels
    offered = {"source": config.folder, "labels": labels}
    task = made(settings, model.task, ("models", index, "task"), model.options, offered)
    return own_task(task, str(model.task), reads=reads, asks=bool(own_parameters(settings, index)))


def _usual(settings: EnsembleSettings, index: int, config: CheckpointConfig, methods: list[str]) -> Task | None:
    model = settings.models[index]
    if "of_tokens" in methods:
        return "token-classification" if config.classifies_tokens else "feature-extraction"
    if "__call__" not in methods:
        return None
    of_vector = model.head is None and (model.pooling is not None or model.normalize is not None)
    return "text-classification" if model.head or (config.classifies and not of_vector) else "sentence-embedding"


def _has(kind: type, method: str) -> bool:
    """Of its own: every class can be called, to make one."""
    return any(callable(vars(each).get(method)) for each in kind.__mro__)


def _task_class(settings: EnsembleSettings, index: int) -> type:
    path = settings.models[index].task
    assert isinstance(path, ClassPath)
    return own_class(settings, path, ("models", index, "task"))


def _mistake(settings: EnsembleSettings, index: int, message: str) -> Exception:
    return settings.mistake("models", index, "task", message=f"{settings.models[index].task} {message}")
