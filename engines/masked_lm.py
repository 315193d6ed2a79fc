"""The head of a masked language model: from a masked token's hidden state to a logit for each token of its vocabulary.

It is computed here on the processor, of the masked tokens alone, and not in the graph, of every token: the decoder is
as wide as the vocabulary, and of 30 tokens one is masked. Its weights stay in the checkpoint's file, which is mapped:
it is in memory once, however many processes compute with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint import CheckpointConfig
from engines.errors import CheckpointError
from engines.families import ACTIVATIONS, FAMILIES, Activation
from engines.numpy_outputs import activated
from engines.weights import map_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedLanguageModelHead:
    """logits = decoder norm(activation(dense x + dense_bias)) + bias; all float32, computed in that.

    dense (E, H), dense_bias, norm_weight and norm_bias (E,), decoder (V, E), bias (V,): E is H but for ELECTRA.
    """

    dense: NDArray[np.float32]
    dense_bias: NDArray[np.float32]
    activation: Activation
    norm_weight: NDArray[np.float32]
    norm_bias: NDArray[np.float32]
    norm_epsilon: float
    decoder: NDArray[np.float32]
    bias: NDArray[np.float32]

    @property
    def width(self) -> int:
        """Of the hidden states that it reads, H."""
        return int(self.dense.shape[1])

    @property
    def vocab_size(self) -> int:
        return int(self.decoder.shape[0])

    def logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, H) to (N, V)."""
        # What decides is small, and wide numbers cost nothing beside the decoder.
        value = activated((hidden @ self.dense.T + self.dense_bias).astype(np.float64), self.activation)
        value -= value.mean(axis=1, keepdims=True)
        value /= np.sqrt(np.square(value).mean(axis=1, keepdims=True) + self.norm_epsilon)
        value = value * self.norm_weight + self.norm_bias
        logits: NDArray[np.float32] = value.astype(np.float32) @ self.decoder.T
        logits += self.bias
        return logits


def masked_language_model_head(config: CheckpointConfig) -> MaskedLanguageModelHead:
    """The checkpoint's own (...ForMaskedLM). Where the file has no decoder, that is the table of words; where it has
    one, it counts, as `transformers` takes it. Raises CheckpointError."""
    model, folder = config.config, config.folder
    family = FAMILIES.get(model.model_type)
    if family is None:
        raise CheckpointError(
            f"{folder}: of model_type {model.model_type!r} no masked language model's head is known: choose a model of "
            "one of: " + ", ".join(FAMILIES)
        )
    names, encoder = family.masked, family.names
    words = [f"{encoder.prefix}{encoder.words}.weight", f"{encoder.words}.weight"]
    decoders = [f"{names.decoder}.weight", *(words if model.tie_word_embeddings else [])]
    biases = [f"{names.decoder}.bias", *([names.bias] if names.bias else [])]
    parts = [f"{name}.{part}" for name in (names.dense, names.norm) for part in ("weight", "bias")]
    found = map_weights(folder, {*decoders, *biases, *parts})
    if parts[0] not in found:
        architectures = ", ".join(model.architectures) or "not named"
        raise CheckpointError(
            f"{folder}: no masked language model's head in the weights (architectures: {architectures}): "
            "choose a model that has one, or another task"
        )
    width, inner, vocab = model.hidden_size, model.embedding_size, model.vocab_size

    def tensor(shape: tuple[int, ...], *names: str) -> NDArray[np.float32]:
        return _tensor(config, found, shape, *names)

    def bias(shape: tuple[int, ...], *names: str, there: bool = True) -> NDArray[np.float32]:
        return tensor(shape, *names) if there else np.zeros(shape, np.float32)

    modernbert = model.modernbert
    said, option = (
        (model.hidden_act, "hidden_act")
        if modernbert is None
        else (modernbert.classifier_activation, "classifier_activation")
    )
    activation = names.activation or ACTIVATIONS.get(said)
    if activation is None:
        raise CheckpointError(
            f"{folder / 'config.json'}: {option} {said!r} is not supported: choose a model with one of: "
            + ", ".join(ACTIVATIONS)
        )
    return MaskedLanguageModelHead(
        dense=tensor((inner, width), parts[0]),
        dense_bias=bias((inner,), parts[1], there=modernbert is None or modernbert.classifier_bias),
        activation=activation,
        norm_weight=tensor((inner,), parts[2]),
        norm_bias=bias((inner,), parts[3], there=modernbert is None or modernbert.norm_bias),
        norm_epsilon=model.layer_norm_eps,
        decoder=tensor((vocab, inner), *decoders),
        bias=bias((vocab,), *biases, there=modernbert is None or modernbert.decoder_bias),
    )


def _tensor(
    config: CheckpointConfig, found: Mapping[str, NDArray[np.float32]], shape: tuple[int, ...], *names: str
) -> NDArray[np.float32]:
    """The first of these that is there, in this shape."""
    name = next((name for name in names if name in found), None)
    if name is None:
        raise CheckpointError(
            f"{config.folder}: no tensor {names[0]!r} in the weights: fetch config and weights of one model"
        )
    if found[name].shape != shape:
        raise CheckpointError(
            f"{config.folder}: tensor {name!r} has shape {found[name].shape} where config.json asks for {shape}: "
            "fetch config and weights of one model"
        )
    return found[name]
