"""A BERT-family encoder's weights under one set of names: what the graph and the reference are written over.

Families differ in names (`engines.families`), and in where their tables of positions begin. Token types are folded into
the positions, which are there once for each type.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint import Checkpoint
from engines.errors import CheckpointError
from engines.families import ACTIVATIONS, FAMILIES, Activation
from engines.heads import DenseLayer


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """Layer norm over the last axis; weight and bias (H,)."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderLayer:
    query: DenseLayer
    key: DenseLayer
    value: DenseLayer
    attention: DenseLayer
    attention_norm: Norm
    intermediate: DenseLayer
    output: DenseLayer
    output_norm: Norm


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """words (V, E); positions (types times M, E), position 0 first, with token type 0 added, then all of them with type
    1, where a model has types; `projection` from E to H where they differ, after the norm."""

    words: NDArray[np.float32]
    positions: NDArray[np.float32]
    embeddings_norm: Norm
    projection: DenseLayer | None
    layers: tuple[EncoderLayer, ...]
    attention_heads: int
    activation: Activation
    norm_epsilon: float

    @property
    def hidden_size(self) -> int:
        return int(self.layers[0].output.weight.shape[0])

    @property
    def vocab_size(self) -> int:
        return int(self.words.shape[0])


def read_encoder(checkpoint: Checkpoint) -> Encoder:
    """The encoder of a checkpoint, each tensor's shape checked against the config."""
    config = checkpoint.config
    if config.hidden_act not in ACTIVATIONS:
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'}: hidden_act {config.hidden_act!r} is not supported: "
            "choose a model with one of: " + ", ".join(ACTIVATIONS)
        )
    width, heads = config.hidden_size, config.num_attention_heads
    if width % heads:
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'}: hidden_size {width} can't be split over {heads} "
            "num_attention_heads: fetch the model again"
        )
    names = FAMILIES[config.model_type].names
    # A bare encoder is saved without the prefix that it bears inside a model with a head.
    bare = f"{names.prefix}{names.words}.weight" not in checkpoint.weights
    prefix = "" if bare else names.prefix

    def table(name: str, rows: int) -> NDArray[np.float32]:
        return checkpoint.tensor(f"{prefix}{name}.weight", (rows, config.embedding_size))

    def norm(name: str, size: int = width) -> Norm:
        weight, bias = (checkpoint.tensor(f"{prefix}{name}.{part}", (size,)) for part in ("weight", "bias"))
        return Norm(weight=weight, bias=bias)

    def dense(name: str, size_in: int, size_out: int) -> DenseLayer:
        return DenseLayer(
            weight=checkpoint.tensor(f"{prefix}{name}.weight", (size_out, size_in)),
            bias=checkpoint.tensor(f"{prefix}{name}.bias", (size_out,)),
        )

    def layer(index: int) -> EncoderLayer:
        at, inner = names.layer.format(index), config.intermediate_size
        return EncoderLayer(
            query=dense(at + names.query, width, width),
            key=dense(at + names.key, width, width),
            value=dense(at + names.value, width, width),
            attention=dense(at + names.attention, width, width),
            attention_norm=norm(at + names.attention_norm),
            intermediate=dense(at + names.intermediate, width, inner),
            output=dense(at + names.output, inner, width),
            output_norm=norm(at + names.output_norm),
        )

    positions = table(names.positions, config.max_position_embeddings)
    positions = positions[config.first_position :]
    if names.token_types is not None and config.type_vocab_size:
        types = table(names.token_types, config.type_vocab_size)[:2]
        positions = np.concatenate([positions + each for each in types])
    projection = names.projection if config.embedding_size != width else None
    return Encoder(
        words=table(names.words, config.vocab_size),
        positions=positions,
        embeddings_norm=norm(names.embeddings_norm, config.embedding_size),
        projection=None if projection is None else dense(projection, config.embedding_size, width),
        layers=tuple(layer(index) for index in range(config.num_hidden_layers)),
        attention_heads=heads,
        activation=ACTIVATIONS[config.hidden_act],
        norm_epsilon=config.layer_norm_eps,
    )
