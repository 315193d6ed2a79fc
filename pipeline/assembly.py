"""From an ensemble's settings to its stages: which folder, which limit, which head, which engine.

Each stage is opened on its own, so that a worker loads what its stage needs: only encode reads weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from engines.checkpoint import Checkpoint, CheckpointConfig, Pooling, find_checkpoint, load_checkpoint, read_config
from engines.engine import open_engine
from engines.errors import CheckpointError, EngineError, EngineUnavailable
from engines.heads import PooledOutput, classification_head, load_head
from engines.rows import Engine
from pipeline.errors import UserError, WorkerFailure
from pipeline.model_settings import ModelSettings, Task
from pipeline.settings import EnsembleSettings
from stages.encode import EncodeStage
from stages.errors import TokenizerError
from stages.postprocess import PostprocessStage
from stages.tasks import ScoreFunction, SentenceEmbedding, TextClassification
from stages.tasks import Task as TaskStage
from stages.tokenize import TextTokenizer, TokenizeStage


def open_tokenizer(settings: EnsembleSettings) -> TextTokenizer:
    """The tokenizer with its policy for long texts. Raises UserError."""
    with _translated_errors():
        window = max_length(settings)
        return TextTokenizer(
            find_checkpoint(settings.tokenizer_source, relative_to=None),
            max_length=window,
            long_texts=settings.tokenizer.long_texts,
            stride=settings.tokenizer.stride_in(window),
        )


def open_tokenize_stage(settings: EnsembleSettings) -> TokenizeStage:
    """Requests to packs, by the ensemble's tokenizer. Raises UserError."""
    return TokenizeStage(
        open_tokenizer(settings),
        request_format=settings.requests.format,
        max_text_bytes=settings.requests.max_text_bytes,
    )


def open_encode_stage(settings: EnsembleSettings) -> EncodeStage:
    """An engine for each checkpoint: models that share one share the encoder's pass too.

    Raises UserError, WorkerFailure.
    """
    with _translated_errors():
        sharing: dict[Path, list[ModelSettings]] = {}
        for model in settings.models:
            sharing.setdefault(_folder(model), []).append(model)
        engines = [_open_engine(settings, folder, models) for folder, models in sharing.items()]
        return EncodeStage(engines, row_length=settings.batching.row_length, max_length=max_length(settings))


def open_postprocess_stage(settings: EnsembleSettings) -> PostprocessStage:
    """Each model's task. Raises UserError."""
    with _translated_errors():
        return PostprocessStage({model.name: _task_stage(model) for model in settings.models})


def max_length(settings: EnsembleSettings) -> int:
    """Tokens of a window: the file's wish, else what the models' files say; never more than one of them can read."""
    configs = [_config(model) for model in settings.models]
    limit = min(config.max_positions for config in configs)
    wishes = [config.sentence.max_seq_length for config in configs if config.sentence]
    return min(settings.tokenizer.max_length or min((wish for wish in wishes if wish), default=limit), limit)


def _folder(model: ModelSettings) -> Path:
    return find_checkpoint(model.source, relative_to=None)


def _config(model: ModelSettings) -> CheckpointConfig:
    return read_config(_folder(model))


def _open_engine(settings: EnsembleSettings, folder: Path, models: Sequence[ModelSettings]) -> Engine:
    """With its weights on board; what was read of them is let go."""
    checkpoint = load_checkpoint(folder)
    return open_engine(
        settings.engine.kind,
        checkpoint,
        [_output(model, checkpoint) for model in models],
        threads=settings.engine.threads,
        instances=settings.engine.instance_count,
    )


def _output(model: ModelSettings, checkpoint: Checkpoint) -> PooledOutput:
    if _task(model, checkpoint) == "sentence-embedding":
        head = None
    elif model.head is not None:
        head = load_head(model.head)
    else:
        # The classifier that was trained with the encoder has its own pooling.
        return PooledOutput(name=model.name, pooling="cls", normalize=False, head=classification_head(checkpoint))
    pooling, normalize = _pooling(model, checkpoint)
    return PooledOutput(name=model.name, pooling=pooling, normalize=normalize, head=head)


def _task_stage(model: ModelSettings) -> TaskStage:
    """Without weights: a head's labels are in its file, the checkpoint's own are in its config."""
    config = _config(model)
    if _task(model, config) == "sentence-embedding":
        _, normalize = _pooling(model, config)
        return SentenceEmbedding(width=int(config.config.hidden_size), normalize=normalize)
    if model.head is not None:
        return TextClassification(load_head(model.head).labels, top_k=model.top_k)
    return TextClassification(config.labels, top_k=model.top_k, function=_FUNCTIONS.get(config.problem_type))


# As `transformers.TextClassificationPipeline` chooses where its caller does not.
_FUNCTIONS: dict[str | None, ScoreFunction] = {
    "multi_label_classification": "sigmoid",
    "single_label_classification": "softmax",
    "regression": "none",
}


def _task(model: ModelSettings, config: CheckpointConfig) -> Task:
    if model.task is not None:
        return model.task
    return "text-classification" if model.head is not None or config.classifies else "sentence-embedding"


def _pooling(model: ModelSettings, config: CheckpointConfig) -> tuple[Pooling, bool]:
    """How a text's vectors become one, and whether that gets length 1."""
    sentence = config.sentence
    pooling = model.pooling or (sentence.pooling if sentence else "mean")
    normalize = model.normalize if model.normalize is not None else bool(sentence and sentence.normalize)
    return pooling, normalize


@contextmanager
def _translated_errors() -> Iterator[None]:
    try:
        yield
    except (CheckpointError, EngineUnavailable, TokenizerError) as err:
        raise UserError(str(err)) from err
    except EngineError as err:  # a library that can't build the graph
        raise WorkerFailure(str(err)) from err
