"""Models of the user's own, ONNX files and plans, from an ensemble's settings to what is computed of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Protocol

from engines.checkpoint import CheckpointConfig, Pooling, sentence_settings
from engines.errors import CheckpointError
from engines.heads import Head, ModelOutput, PooledOutput, TokenOutput
from engines.onnx_model import OnnxModel, read_onnx
from engines.source import GraphSource, of_onnx
from pipeline.model_settings import ModelSettings


def read_model(model: ModelSettings) -> OnnxModel:
    """What the model's file says of itself. Raises CheckpointError."""
    assert model.onnx is not None
    return _read(model.onnx, model.onnx_output)


@cache
def _read(path: Path, output: str | None) -> OnnxModel:
    # Several models may share a file, and each of them is asked about more than once.
    return read_onnx(path, output=output)


class Answer(Protocol):
    """What a file says of the output that is read."""

    @property
    def path(self) -> Path | str: ...

    @property
    def output(self) -> str: ...

    @property
    def per_token(self) -> bool:
        """Whether it is (texts, tokens, width), and not (texts, width)."""
        ...

    @property
    def width(self) -> int: ...


def logits_output(model: ModelSettings, config: CheckpointConfig, found: Answer) -> PooledOutput:
    """The file's own logits, one for each of the config's labels. Raises CheckpointError."""
    if found.per_token:
        raise CheckpointError(
            f"{found.path}: output {found.output!r} is of tokens, and no logits: export the model with its head, or "
            "give a head's file"
        )
    _check_labels(config, found)
    return PooledOutput(name=model.name, pooling="mean", normalize=False, logits=True)


def _check_labels(config: CheckpointConfig, found: Answer) -> None:
    if found.width != len(config.labels):
        raise CheckpointError(
            f"{found.path}: output {found.output!r} has {found.width} logits, and config.json {len(config.labels)} "
            "labels: take both from one model"
        )


def token_logits_output(model: ModelSettings, config: CheckpointConfig, found: Answer) -> TokenOutput:
    """The file's own logits of each token, one for each of the config's labels. Raises CheckpointError."""
    output = token_output(model, found)
    _check_labels(config, found)
    return replace(output, logits=True)


def token_output(model: ModelSettings, found: Answer) -> TokenOutput:
    """What the file answers of each token. Raises CheckpointError."""
    if not found.per_token:
        raise CheckpointError(
            f"{found.path}: output {found.output!r} is of texts, and one of tokens is wanted, (texts, tokens, width): "
            "name another output, or export the model without its pooling"
        )
    return TokenOutput(name=model.name)


def states_output(model: ModelSettings, config: CheckpointConfig, found: Answer) -> TokenOutput:
    """Hidden states of tokens, for the masked language model's head of the checkpoint. Raises CheckpointError."""
    if found.width != config.config.hidden_size:
        raise CheckpointError(
            f"{found.path}: output {found.output!r} is {found.width} wide, and fill-mask wants hidden states of "
            f"{config.config.hidden_size} (hidden_size), whose head it reads from the checkpoint's weights: export the "
            "model without its head, or leave the file out"
        )
    return token_output(model, found)


def vector_output(
    model: ModelSettings,
    config: CheckpointConfig,
    found: Answer,
    *,
    pooling: Pooling,
    normalize: bool,
    head: Head | None,
) -> PooledOutput:
    """A vector of the file's output, pooled where that is of tokens, and a head on it. Raises CheckpointError."""
    if found.per_token and model.pooling is None:
        sentence_settings(config.folder)  # which may say that it is pooled in a way that is not supported
    if not found.per_token and model.pooling is not None:
        raise CheckpointError(f"{found.path}: output {found.output!r} is pooled already: leave pooling out")
    return PooledOutput(name=model.name, pooling=pooling, normalize=normalize, head=head)


def check_plan_width(config: CheckpointConfig, plan: Answer) -> None:
    """Whoever reads a plan's vectors knows their width from config.json alone. Raises CheckpointError."""
    if plan.width != config.config.hidden_size:
        raise CheckpointError(
            f"{plan.path}: output {plan.output!r} is {plan.width} wide, and config.json says hidden_size "
            f"{config.config.hidden_size}: take both from one model"
        )


def graph_source(
    model: ModelSettings, config: CheckpointConfig, outputs: Sequence[ModelOutput], *, max_length: int
) -> GraphSource:
    """What an engine computes. Raises CheckpointError."""
    return of_onnx(
        read_model(model),
        outputs,
        vocab_size=config.config.vocab_size or None,
        max_positions=max_length,
        first_position=config.config.first_position,
    )
