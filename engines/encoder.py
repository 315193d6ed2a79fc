"""A BERT-family encoder's weights under one set of names: what the graph and the reference are written over.

Families differ in names (`engines.families`), in where their tables of positions begin, and in what of a layer they
have. Token types are folded into the positions, which are there once for each type.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint import Checkpoint
from engines.errors import CheckpointError
from engines.families import ACTIVATIONS, FAMILIES, Activation
from engines.heads import DenseLayer, Norm, read_norm
from engines.relative_positions import DISTANCE_BUCKETS, by_distance


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderLayer:
    """
    attention_norm  None where there is nothing to be done before the first layer's attention
    gate            what multiplies the activation of `intermediate`
    window          how far from a token it attends to others; None: to all of the text
    theta           the base of rotary positions; None: queries and keys are not turned
    """

    query: DenseLayer
    key: DenseLayer
    value: DenseLayer
    attention: DenseLayer
    attention_norm: Norm | None
    intermediate: DenseLayer
    gate: DenseLayer | None
    output: DenseLayer
    output_norm: Norm
    window: int | None
    theta: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """words (V, E); positions (types times M, E), position 0 first, with token type 0 added, then all of them with type
    1, where a model has types; `projection` from E to H where they differ, after the norm; `distances` as
    `engines.relative_positions.by_distance` has them.

    A layer's norms come after its halves, or, where there is a `final_norm`, before them.
    """

    words: NDArray[np.float32]
    positions: NDArray[np.float32] | None
    embeddings_norm: Norm
    projection: DenseLayer | None
    distances: NDArray[np.float32] | None
    layers: tuple[EncoderLayer, ...]
    final_norm: Norm | None
    attention_heads: int
    activation: Activation
    max_positions: int

    @property
    def hidden_size(self) -> int:
        return int(self.layers[0].output.weight.shape[0])

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.attention_heads

    @property
    def vocab_size(self) -> int:
        return int(self.words.shape[0])


def read_encoder(checkpoint: Checkpoint) -> Encoder:
    """The encoder of a checkpoint, each tensor's shape checked against the config."""
    config = checkpoint.config
    _check(checkpoint)
    width = config.hidden_size
    names = FAMILIES[config.model_type].names
    # A bare encoder is saved without the prefix that it bears inside a model with a head.
    bare = f"{names.prefix}{names.words}.weight" not in checkpoint.weights
    prefix = "" if bare else names.prefix
    projection = names.projection if config.embedding_size != width else None
    distances = None
    if names.distances is not None:
        buckets = checkpoint.tensor(f"{prefix}{names.distances}.weight", (config.distances, config.num_attention_heads))
        distances = by_distance(buckets)
    return Encoder(
        words=checkpoint.tensor(f"{prefix}{names.words}.weight", (config.vocab_size, config.embedding_size)),
        positions=_positions(checkpoint, prefix),
        embeddings_norm=read_norm(checkpoint, f"{prefix}{names.embeddings_norm}", config.embedding_size),
        projection=None
        if projection is None
        else _dense(checkpoint, f"{prefix}{projection}", config.embedding_size, width),
        distances=distances,
        layers=tuple(_layer(checkpoint, prefix, index) for index in range(config.num_hidden_layers)),
        final_norm=None if names.final_norm is None else read_norm(checkpoint, f"{prefix}{names.final_norm}", width),
        attention_heads=config.num_attention_heads,
        activation=ACTIVATIONS[config.hidden_act],
        max_positions=checkpoint.max_positions,
    )


def _check(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError on what no graph can be written of."""
    config, path = checkpoint.config, checkpoint.folder / "config.json"
    if config.hidden_act not in ACTIVATIONS:
        raise CheckpointError(
            f"{path}: hidden_act {config.hidden_act!r} is not supported: choose a model with one of: "
            + ", ".join(ACTIVATIONS)
        )
    width, heads = config.hidden_size, config.num_attention_heads
    if width % heads:
        raise CheckpointError(
            f"{path}: hidden_size {width} can't be split over {heads} num_attention_heads: fetch the model again"
        )
    if config.modernbert is not None and width // heads % 2:
        raise CheckpointError(
            f"{path}: heads of {width // heads} numbers can't be turned in pairs: fetch the model again"
        )
    if FAMILIES[config.model_type].names.distances is not None and config.distances < DISTANCE_BUCKETS:
        raise CheckpointError(
            f"{path}: relative_attention_num_buckets is {config.distances}, and the model reads {DISTANCE_BUCKETS}: "
            "fetch the model again"
        )


def _positions(checkpoint: Checkpoint, prefix: str) -> NDArray[np.float32] | None:
    config = checkpoint.config
    names, size = FAMILIES[config.model_type].names, config.embedding_size
    if names.positions is None:
        return None
    positions = checkpoint.tensor(f"{prefix}{names.positions}.weight", (config.max_position_embeddings, size))
    positions = positions[config.first_position :]
    if names.token_types is not None and config.type_vocab_size:
        types = checkpoint.tensor(f"{prefix}{names.token_types}.weight", (config.type_vocab_size, size))[:2]
        positions = np.concatenate([positions + each for each in types])
    return positions


def _layer(checkpoint: Checkpoint, prefix: str, index: int) -> EncoderLayer:
    config = checkpoint.config
    names, width, inner, modernbert = (
        FAMILIES[config.model_type].names,
        config.hidden_size,
        config.intermediate_size,
        config.modernbert,
    )
    at = prefix + names.layer.format(index)
    of_attention = modernbert is None or modernbert.attention_bias
    of_middle = modernbert is None or modernbert.mlp_bias
    parts = [
        part
        for name in names.qkv
        for part in _split(
            _dense(checkpoint, at + name, width, 3 * width // len(names.qkv), biased=of_attention), 3 // len(names.qkv)
        )
    ]
    halves = 2 if names.gated else 1
    middle = _split(_dense(checkpoint, at + names.intermediate, width, halves * inner, biased=of_middle), halves)
    # ModernBERT's first layer attends to what the embeddings' norm has made.
    unnormed = names.final_norm is not None and index == 0
    return EncoderLayer(
        query=parts[0],
        key=parts[1],
        value=parts[2],
        attention=_dense(checkpoint, at + names.attention, width, width, biased=of_attention),
        attention_norm=None if unnormed else read_norm(checkpoint, at + names.attention_norm, width),
        intermediate=middle[0],
        gate=middle[1] if names.gated else None,
        output=_dense(checkpoint, at + names.output, inner, width, biased=of_middle),
        output_norm=read_norm(checkpoint, at + names.output_norm, width),
        window=None if modernbert is None else modernbert.windows[index],
        theta=None if modernbert is None else modernbert.thetas[index],
    )


def _dense(checkpoint: Checkpoint, name: str, size_in: int, size_out: int, *, biased: bool = True) -> DenseLayer:
    return DenseLayer(
        weight=checkpoint.tensor(f"{name}.weight", (size_out, size_in)),
        bias=checkpoint.tensor(f"{name}.bias", (size_out,)) if biased else None,
    )


def _split(layer: DenseLayer, parts: int) -> list[DenseLayer]:
    """Layers that lie in one, one after the other."""
    biases = [None] * parts if layer.bias is None else np.split(layer.bias, parts)
    weights = np.split(layer.weight, parts)
    return [DenseLayer(weight=weight, bias=bias) for weight, bias in zip(weights, biases, strict=True)]
