"""From an ensemble's settings to its stages: which folder, which limit, which head, which engine.

Each stage is opened on its own, so that a worker loads what its stage needs: only encode reads weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.checkpoint import Checkpoint, Pooling, find_checkpoint, load_checkpoint
from engines.engine import open_engine
from engines.errors import CheckpointError, EngineUnavailable
from engines.heads import Head, PooledOutput, classification_head, load_head
from engines.rows import Engine
from pipeline.errors import UserError
from pipeline.model_settings import ModelSettings, Task
from pipeline.settings import EnsembleSettings
from stages.encode import EncodeStage
from stages.errors import TokenizerError
from stages.postprocess import PostprocessStage
from stages.tasks import SentenceEmbedding, TextClassification
from stages.tasks import Task as TaskStage
from stages.tokenize import TextTokenizer, TokenizeStage


def open_tokenize_stage(settings: EnsembleSettings) -> TokenizeStage:
    """The tokenizer with its policy for long texts. Raises UserError."""
    with _user_errors():
        tokenizer = TextTokenizer(
            find_checkpoint(settings.tokenizer_source, relative_to=None),
            max_length=max_length(settings),
            long_texts=settings.tokenizer.long_texts,
            stride=settings.tokenizer.stride,
        )
    return TokenizeStage(
        tokenizer,
        request_format=settings.requests.format,
        max_text_bytes=settings.requests.max_text_bytes,
    )


def open_encode_stage(settings: EnsembleSettings) -> EncodeStage:
    """An engine for each checkpoint: models that share one share the encoder's pass too. Raises UserError."""
    with _user_errors():
        shared: dict[Path, list[PooledOutput]] = {}
        for model in settings.models:
            checkpoint = _checkpoint(model)
            shared.setdefault(checkpoint.folder, []).append(_output(model, checkpoint))
        engines: list[Engine] = [
            open_engine(
                settings.engine.kind,
                load_checkpoint(folder),
                outputs,
                threads=settings.engine.threads,
                instances=settings.engine.instance_count,
            )
            for folder, outputs in shared.items()
        ]
        return EncodeStage(engines, row_length=settings.batching.row_length, max_length=max_length(settings))


def open_postprocess_stage(settings: EnsembleSettings) -> PostprocessStage:
    """Each model's task. Raises UserError."""
    with _user_errors():
        return PostprocessStage({model.name: _task_stage(model) for model in settings.models})


def max_length(settings: EnsembleSettings) -> int:
    """Tokens of a window: the file's wish, else what the models' files say; never more than one of them can read."""
    checkpoints = [_checkpoint(model) for model in settings.models]
    limit = min(checkpoint.max_positions for checkpoint in checkpoints)
    wishes = [checkpoint.sentence.max_seq_length for checkpoint in checkpoints if checkpoint.sentence]
    return min(settings.tokenizer.max_length or min((wish for wish in wishes if wish), default=limit), limit)


def _checkpoint(model: ModelSettings) -> Checkpoint:
    return load_checkpoint(find_checkpoint(model.source, relative_to=None))


def _task(model: ModelSettings, checkpoint: Checkpoint) -> Task:
    if model.task is not None:
        return model.task
    architectures = checkpoint.config.architectures or ()
    classifies = model.head is not None or any("ForSequenceClassification" in name for name in architectures)
    return "text-classification" if classifies else "sentence-embedding"


def _head(model: ModelSettings, checkpoint: Checkpoint) -> Head | None:
    if _task(model, checkpoint) == "sentence-embedding":
        return None
    return load_head(model.head) if model.head is not None else classification_head(checkpoint)


def _output(model: ModelSettings, checkpoint: Checkpoint) -> PooledOutput:
    head = _head(model, checkpoint)
    if head is not None and model.head is None:
        return PooledOutput(name=model.name, pooling="cls", normalize=False, head=head)
    sentence = checkpoint.sentence
    pooling: Pooling = model.pooling or (sentence.pooling if sentence else "mean")
    normalize = model.normalize if model.normalize is not None else bool(sentence and sentence.normalize)
    return PooledOutput(name=model.name, pooling=pooling, normalize=normalize, head=head)


def _task_stage(model: ModelSettings) -> TaskStage:
    output = _output(model, _checkpoint(model))
    if output.head is None:
        return SentenceEmbedding(normalize=output.normalize)
    return TextClassification(output.head.labels, top_k=model.top_k)


@contextmanager
def _user_errors() -> Iterator[None]:
    try:
        yield
    except (CheckpointError, EngineUnavailable, TokenizerError) as err:
        raise UserError(str(err)) from err
