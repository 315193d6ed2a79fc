"""From an ensemble's models to their tasks: what is answered of their numbers, and what requests look like."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint import CheckpointConfig
from engines.masked_lm import masked_language_model_head
from pipeline.class_paths import ClassPath
from pipeline.model_files import blaming, found_folder, model_config, model_head, pooling_of, task_of
from pipeline.model_settings import Task
from pipeline.own_tasks import open_own_task, own_parameters
from pipeline.own_tokenizers import own_tokenizer
from pipeline.settings import EnsembleSettings
from schemas.parameters import KNOWN_PARAMETERS, MAX_ANSWERS, ScoreFunction, may_be_answers
from schemas.requests import request_kind
from stages.classification import TextClassification
from stages.embeddings import SentenceEmbedding
from stages.features import FeatureExtraction
from stages.fill_mask import FillMask
from stages.mask_tokens import MaskVocabulary, mask_of_folder
from stages.pair_tasks import TextRanking, ZeroShotClassification
from stages.question_answering import QuestionAnswering
from stages.tasks import AnyTask
from stages.token_classification import TokenClassification
from stages.token_words import OwnTokenWords, TokenWords

# Of one result: some 11 bytes of JSON each, of the 16 MiB that a record may have.
_MOST_NUMBERS = 1_400_000

# `transformers.FillMaskPipeline`'s.
_TOP_K = 5

# As `transformers.TextClassificationPipeline` chooses where its caller does not.
_FUNCTIONS: dict[str | None, ScoreFunction] = {
    "multi_label_classification": "sigmoid",
    "single_label_classification": "softmax",
    "regression": "none",
}


def model_tasks(settings: EnsembleSettings) -> list[Task]:
    """Of all models. Raises UserError where they do not read the same requests."""
    tasks = [task_of(settings, index, model_config(settings, index)) for index in range(len(settings.models))]
    try:
        request_kind(tasks)
    except ValueError as err:
        message = f"{err}: put them into ensembles of their own"
        raise settings.mistake("models", len(tasks) - 1, "task", message=message) from err
    if settings.requests.format == "text" and request_kind(tasks) != "text":
        raise settings.mistake("requests", "format", message=f"'text' is no request of {tasks[0]}; allowed: json")
    return tasks


def most_tokens(settings: EnsembleSettings, tasks: Sequence[Task]) -> int:
    """Of a text, where each token's vector is answered: more would be a larger result than Kafka takes. `tasks` are
    the models'."""
    widths = [
        vector_width(settings, index, model_config(settings, index))
        for index, task in enumerate(tasks)
        if task == "feature-extraction" and not isinstance(settings.models[index].task, ClassPath)
    ]
    return _MOST_NUMBERS // max(widths) if widths else sys.maxsize


def most_masks(settings: EnsembleSettings, tasks: Sequence[Task]) -> int:
    """Of a text, whose hidden states go from encode to postprocess."""
    widths = [
        model_config(settings, index).config.hidden_size for index, task in enumerate(tasks) if task == "fill-mask"
    ]
    return _MOST_NUMBERS // max(1, *widths) if widths else sys.maxsize


def require_models_tokenizer(settings: EnsembleSettings) -> None:
    """Which writes the tokens that fill-mask answers. Raises SettingsError where the tokenizer is the user's own."""
    if settings.tokenizer.class_ is not None:
        message = f"{settings.tokenizer.class_} is not for fill-mask, which writes texts by the model's tokenizer: "
        raise settings.mistake("tokenizer", "class", message=message + "leave it out, or choose another task")


def chosen_tokens(settings: EnsembleSettings) -> dict[str, int]:
    """Model name -> the number of the only tokens that its task reads. Raises UserError."""
    fill = [
        model.name for model, task in zip(settings.models, model_tasks(settings), strict=True) if task == "fill-mask"
    ]
    if not fill:
        return {}
    require_models_tokenizer(settings)
    with blaming(settings, *settings.tokenizer_place):
        mask = mask_of_folder(found_folder(settings.tokenizer_source))
    return dict.fromkeys(fill, mask.number)


def model_task(settings: EnsembleSettings, index: int) -> AnyTask:
    """Without weights: a head's labels are in its file, the checkpoint's own are in its config. Only a masked language
    model's head is computed here, and its weights mapped."""
    model = settings.models[index]
    config = model_config(settings, index)
    if isinstance(model.task, ClassPath):
        return open_own_task(settings, index, config)
    function = model.function_to_apply or _FUNCTIONS.get(config.problem_type)
    match task_of(settings, index, config):
        case "sentence-embedding":
            return _embedding(settings, index, config)
        case "feature-extraction":
            return FeatureExtraction(width=vector_width(settings, index, config))
        case "token-classification":
            with blaming(settings, *settings.tokenizer_place):
                words = (
                    TokenWords.of_folder(found_folder(settings.tokenizer_source))
                    if settings.tokenizer.class_ is None
                    else OwnTokenWords(own_tokenizer(settings))
                )
            return TokenClassification(
                config.labels,
                words,
                aggregation_strategy=model.aggregation_strategy,
                ignore_labels=_ignored(settings, index, config),
            )
        case "fill-mask":
            return _fill_mask(settings, index, config)
        case "text-ranking":
            if len(config.labels) != 1:
                message = f"text-ranking wants one label, and {config.folder} has {len(config.labels)}"
                raise settings.mistake("models", index, "task", message=message)
            return TextRanking(
                top_k=model.top_k if "top_k" in model.model_fields_set else None, function=model.function_to_apply
            )
        case "zero-shot-classification":
            try:
                return ZeroShotClassification(config.labels)
            except ValueError as err:
                message = f"{config.folder}: {err}: choose a model of natural language inference"
                raise settings.mistake("models", index, "source", message=message) from err
        case "question-answering":
            if not may_be_answers(model.top_k):
                message = f"{model.top_k or 'null'}; question-answering gives 1 to {MAX_ANSWERS} answers"
                raise settings.mistake("models", index, "top_k", message=message)
            return QuestionAnswering(
                top_k=model.top_k or 1,
                max_answer_len=model.max_answer_len,
                handle_impossible_answer=model.handle_impossible_answer,
                align_to_words=model.align_to_words,
            )
        case "text-classification":
            labels = config.labels
            if model.head is not None:
                labels, function = model_head(settings, index).labels, model.function_to_apply
            return TextClassification(labels, top_k=model.top_k, function=function, threshold=model.threshold)


def known_parameters(settings: EnsembleSettings, tasks: Sequence[Task]) -> dict[str, tuple[str, ...]]:
    """Which parameters requests may have, by what the file calls each task. Raises SettingsError."""
    return {
        task if model.task is None else str(model.task): KNOWN_PARAMETERS.get(task, ())
        if not isinstance(model.task, ClassPath)
        else own_parameters(settings, index)
        for index, (model, task) in enumerate(zip(settings.models, tasks, strict=True))
    }


def _ignored(settings: EnsembleSettings, index: int, config: CheckpointConfig) -> tuple[str, ...]:
    """Labels, or entities, that the model has."""
    model = settings.models[index]
    known = {*config.labels, *(label.split("-", 1)[-1] for label in config.labels)}
    if "ignore_labels" in model.model_fields_set:
        for label in model.ignore_labels:
            if label not in known:
                message = f"{label!r} is no label of the model; allowed: {', '.join(config.labels)}"
                raise settings.mistake("models", index, "ignore_labels", message=message)
    return model.ignore_labels


def _fill_mask(settings: EnsembleSettings, index: int, config: CheckpointConfig) -> FillMask:
    model = settings.models[index]
    top_k = model.top_k if "top_k" in model.model_fields_set else _TOP_K
    if top_k is None:
        message = "null is not allowed for fill-mask; allowed: an integer from 1 to 100,000"
        raise settings.mistake("models", index, "top_k", message=message)
    require_models_tokenizer(settings)
    with blaming(settings, "models", index, "source"):
        head = masked_language_model_head(config)
    with blaming(settings, *settings.tokenizer_place):
        vocabulary = MaskVocabulary.of_folder(found_folder(settings.tokenizer_source))
    return FillMask(head, vocabulary, top_k=top_k)


def _embedding(settings: EnsembleSettings, index: int, config: CheckpointConfig) -> SentenceEmbedding:
    model = settings.models[index]
    _, normalize = pooling_of(model, config)
    width = vector_width(settings, index, config)
    if model.truncate_dim is not None and model.truncate_dim > width:
        message = f"{model.truncate_dim}; the model's vectors have {width} numbers"
        raise settings.mistake("models", index, "truncate_dim", message=message)
    return SentenceEmbedding(
        width=width,
        normalize=normalize,
        truncate_dim=model.truncate_dim,
        renormalize=model.normalize is True,
        precision=model.precision,
        ranges=_ranges(settings, index, width),
    )


def _ranges(settings: EnsembleSettings, index: int, width: int) -> NDArray[np.float32] | None:
    path = settings.models[index].ranges
    if path is None:
        return None
    try:
        ranges = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as err:
        message = f"{path} can't be read ({' '.join(str(err).split())}): write it with numpy.save"
        raise settings.mistake("models", index, "ranges", message=message) from err
    if getattr(ranges, "shape", None) != (2, width) or not np.isfinite(ranges).all():
        message = f"{path} is no array of finite numbers (2, {width}): take it from vectors of this model"
        raise settings.mistake("models", index, "ranges", message=message)
    found: NDArray[np.float32] = ranges.astype(np.float32)
    return found


def vector_width(settings: EnsembleSettings, index: int, config: CheckpointConfig) -> int:
    """How many numbers a model's vectors have. Raises UserError."""
    model = settings.models[index]
    if model.onnx is None:
        if not config.config.hidden_size:
            message = f"{config.folder / 'config.json'} does not say hidden_size: write the vector's width there"
            raise settings.mistake("models", index, "source", message=message)
        return config.config.hidden_size
    from pipeline.user_models import read_model  # onnx is not for every worker's start

    with blaming(settings, "models", index, "onnx"):
        return read_model(model).width


def require_speech(settings: EnsembleSettings) -> None:
    """Raises UserError where the ensemble reads no texts, as far as the file says it: where it leaves the task to the
    model, a wrong one makes dead letters."""
    for index, model in enumerate(settings.models):
        if model.task is not None and request_kind([model.task]) != "text":
            message = f"{model.task} reads no texts, and speech is texts: put it into an ensemble of its own"
            raise settings.mistake("models", index, "task", message=message)
