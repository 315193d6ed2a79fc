"""What is computed from a text's hidden states: pooling, normalising, and a head of dense layers; or of each token's.

A linear head has a file of its own, safetensors: `weight` (labels, width), `bias` (labels,), and in the metadata
`labels` (a JSON list) plus whatever its maker wrote (source, licence, accuracy).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from engines.checkpoint import Checkpoint, Pooling
from engines.errors import CheckpointError
from engines.families import ACTIVATIONS, FAMILIES, Activation

# Under the norm of any real vector, over float16's smallest number: nothing at all gives 0 and not 0 / 0.
SMALLEST_NORM = 1e-6

# Of an answer.
_SPAN = ("start", "end")


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """Layer norm over the last axis; weight and bias (H,)."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    epsilon: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseLayer:
    """y = norm(activation(weight x + bias)); weight (out, in), bias (out,), both float32."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    activation: Activation | None = None
    norm: Norm | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Dense layers one after the other; the last gives a logit for each label. `decides` says that the highest of them
    is what is answered."""

    labels: tuple[str, ...]
    layers: tuple[DenseLayer, ...]
    decides: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Output:
    """`logits` says that the vector is of logits without a head of ours."""

    name: str
    head: Head | None = None
    logits: bool = False

    @property
    def are_logits(self) -> bool:
        """Whether its numbers are logits."""
        return self.logits or self.head is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledOutput(_Output):
    """One named vector a text: its hidden states pooled, then normalised to length 1 if wanted, then the head's."""

    pooling: Pooling
    normalize: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenOutput(_Output):
    """One named vector a token: its hidden state, then the head's."""


ModelOutput = PooledOutput | TokenOutput


def load_head(path: Path) -> Head:
    """A linear head from its file."""
    if not path.is_file():
        raise CheckpointError(f"head {path}: no such file: correct the path")
    try:
        with safe_open(path, framework="numpy") as file:
            missing = {"weight", "bias"} - set(file.keys())
            if missing:
                raise CheckpointError(f"head {path}: no tensor {sorted(missing)[0]!r}: weight and bias are wanted")
            weight = file.get_tensor("weight").astype(np.float32)
            bias = file.get_tensor("bias").astype(np.float32)
            labels = json.loads((file.metadata() or {}).get("labels", "null"))
    except (OSError, SafetensorError, ValueError) as err:
        raise CheckpointError(f"head {path}: not readable as safetensors ({err}): write it with save_head") from err
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise CheckpointError(f'head {path}: metadata has no labels: a JSON list is wanted, as ["NO", "YES"]')
    if weight.ndim != 2 or weight.shape[0] != len(labels) or bias.shape != (len(labels),):
        raise CheckpointError(
            f"head {path}: weight {weight.shape} and bias {bias.shape} don't fit {len(labels)} labels: "
            "weight (labels, width) and bias (labels,) are wanted"
        )
    return Head(labels=tuple(labels), layers=(DenseLayer(weight=weight, bias=bias),))


def save_head(path: Path, head: Head, *, metadata: Mapping[str, str]) -> None:
    """Writes a linear head; `metadata` goes along as it is."""
    (layer,) = head.layers
    assert layer.activation is None
    assert layer.norm is None
    assert layer.bias is not None
    save_file(
        {"weight": layer.weight, "bias": layer.bias},
        path,
        metadata={**metadata, "labels": json.dumps(list(head.labels))},
    )


def classification_head(checkpoint: Checkpoint) -> Head:
    """The checkpoint's own classifier (...ForSequenceClassification): a layer with an activation, then a linear one.

    It wants the checkpoint's `classifier_pooling` and no normalising.
    """
    names = FAMILIES[checkpoint.config.model_type].classifier
    if f"{names.logits}.weight" not in checkpoint.weights:
        architectures = ", ".join(checkpoint.config.architectures) or "not named"
        raise CheckpointError(
            f"{checkpoint.folder}: no classifier in the weights (architectures: {architectures}): "
            "choose a model fine-tuned for sequence classification, or give a head's file"
        )
    return Head(labels=checkpoint.labels, layers=(_before_logits(checkpoint), _logits(checkpoint, names.logits)))


def token_classification_head(checkpoint: Checkpoint) -> Head:
    """The checkpoint's own classifier of tokens (...ForTokenClassification): one linear layer, of ModernBERT after all
    that its classifier of texts has."""
    # BERT's classifier of texts bears the same name, and reads something else.
    if "classifier.weight" not in checkpoint.weights or checkpoint.classifies:
        architectures = ", ".join(checkpoint.config.architectures) or "not named"
        raise CheckpointError(
            f"{checkpoint.folder}: no classifier of tokens in the weights (architectures: {architectures}): "
            "choose a model fine-tuned for token classification"
        )
    logits = _logits(checkpoint, "classifier")
    before = (_before_logits(checkpoint),) if FAMILIES[checkpoint.config.model_type].classifier.of_tokens else ()
    return Head(labels=checkpoint.labels, layers=(*before, logits))


def question_answering_head(checkpoint: Checkpoint) -> Head:
    """The checkpoint's own (...ForQuestionAnswering): one linear layer, of ModernBERT after all that its classifier of
    texts has. Of each token two logits: of an answer that starts there, and of one that ends there."""
    classifier = FAMILIES[checkpoint.config.model_type].classifier
    name = classifier.logits if classifier.of_tokens else "qa_outputs"
    # ModernBERT's classifiers bear the same name.
    if f"{name}.weight" not in checkpoint.weights or checkpoint.classifies or checkpoint.classifies_tokens:
        architectures = ", ".join(checkpoint.config.architectures) or "not named"
        raise CheckpointError(
            f"{checkpoint.folder}: no head for answers in the weights (architectures: {architectures}): "
            "choose a model fine-tuned for question answering"
        )
    layer = DenseLayer(
        weight=checkpoint.tensor(f"{name}.weight", (len(_SPAN), checkpoint.config.hidden_size)),
        bias=checkpoint.tensor(f"{name}.bias", (len(_SPAN),)),
    )
    before = (_before_logits(checkpoint),) if classifier.of_tokens else ()
    return Head(labels=_SPAN, layers=(*before, layer), decides=False)


def token_names(outputs: Sequence[ModelOutput]) -> frozenset[str]:
    """Of those outputs that are of each token."""
    return frozenset(output.name for output in outputs if isinstance(output, TokenOutput))


def check_outputs(outputs: Sequence[ModelOutput], *, hidden_size: int) -> dict[str, int]:
    """Output name -> width, once names are known to be unique and each head's layers to fit one another."""
    widths: dict[str, int] = {}
    for output in outputs:
        if output.name in widths:
            raise CheckpointError(f"output {output.name!r} is named twice: give each output a name of its own")
        width = hidden_size
        for layer in output.head.layers if output.head else ():
            if layer.weight.shape[1] != width or (
                layer.bias is not None and layer.bias.shape != layer.weight.shape[:1]
            ):
                raise CheckpointError(
                    f"output {output.name!r}: the head takes vectors of {layer.weight.shape[1]} numbers and gets "
                    f"{width}: choose the head that was trained on this model"
                )
            width = layer.weight.shape[0]
        widths[output.name] = width
    return widths


def _before_logits(checkpoint: Checkpoint) -> DenseLayer:
    """The layer between the vector and the logits, as wide as it."""
    names, config = FAMILIES[checkpoint.config.model_type].classifier, checkpoint.config
    size, modernbert, activation, norm = (config.hidden_size,), config.modernbert, names.activation, None
    if activation is None:
        assert modernbert is not None
        named = modernbert.classifier_activation
        if named not in ACTIVATIONS:
            raise CheckpointError(
                f"{checkpoint.folder / 'config.json'}: classifier_activation {named!r} is not supported: choose a "
                "model with one of: " + ", ".join(ACTIVATIONS)
            )
        activation = ACTIVATIONS[named]
    if names.norm is not None:
        norm = read_norm(checkpoint, names.norm, config.hidden_size)
    return DenseLayer(
        weight=checkpoint.tensor(f"{names.dense}.weight", size * 2),
        bias=checkpoint.tensor(f"{names.dense}.bias", size)
        if modernbert is None or modernbert.classifier_bias
        else None,
        activation=activation,
        norm=norm,
    )


def _logits(checkpoint: Checkpoint, name: str) -> DenseLayer:
    labels = len(checkpoint.labels)
    return DenseLayer(
        weight=checkpoint.tensor(f"{name}.weight", (labels, checkpoint.config.hidden_size)),
        bias=checkpoint.tensor(f"{name}.bias", (labels,)),
    )


def read_norm(checkpoint: Checkpoint, name: str, size: int) -> Norm:
    """The layer norm of this name, of vectors of `size` numbers, its bias 0 where the model has none."""
    modernbert = checkpoint.config.modernbert
    biased = modernbert is None or modernbert.norm_bias
    return Norm(
        weight=checkpoint.tensor(f"{name}.weight", (size,)),
        bias=checkpoint.tensor(f"{name}.bias", (size,)) if biased else np.zeros(size, np.float32),
        epsilon=checkpoint.config.layer_norm_eps,
    )
