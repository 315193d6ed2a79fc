"""Which values of parameters an ensemble takes, where that are fewer than requests have in general: for schemas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from pipeline.model_files import max_length, model_config, pooling_of
from pipeline.model_settings import Task
from pipeline.model_tasks import vector_width
from pipeline.settings import EnsembleSettings
from schemas.parameters import EmbeddingPrecision


def parameter_bounds(settings: EnsembleSettings, tasks: Sequence[Task]) -> dict[str, dict[str, Any]]:
    """By parameter, what its JSON Schema says besides; `tasks` are the models'. Each model must take the value. Raises
    UserError where the models' files can't be read."""
    bounds: dict[str, dict[str, Any]] = {}
    configs = {
        index: model_config(settings, index)
        for index, (model, task) in enumerate(zip(settings.models, tasks, strict=True))
        if task == "sentence-embedding" and model.task in (task, None)
    }
    if configs:
        width = min(vector_width(settings, index, config) for index, config in configs.items())
        bounds["truncate_dim"] = {"maximum": width}
        if any(settings.models[index].ranges is None for index in configs):
            bounds["precision"] = {"enum": [each for each in get_args(EmbeddingPrecision) if "int8" not in each]}
        if any(pooling_of(settings.models[index], config)[1] for index, config in configs.items()):
            bounds["normalize"] = {"enum": [True]}
    if "question-answering" in tasks:
        bounds["max_seq_len"] = {"maximum": max_length(settings)}
    return bounds
