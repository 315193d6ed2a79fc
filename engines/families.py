"""The families of encoders whose graph is written here, and in what they differ: names, sizes, positions, heads.

All are BERT's architecture: layer norm after each half of a layer, absolute positions, one activation in the middle.
What differs more (relative positions: MPNet, DeBERTa; rotary ones: ModernBERT) goes as an ONNX file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Activation = Literal["gelu", "gelu_tanh", "relu", "tanh"]

# `transformers`' names. What Google's BERT, GPT-2 and PyTorch call GELU's approximation is one formula.
ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}

# Their positions count from the one after the padding token's number (create_position_ids_from_input_ids).
POSITIONS_AFTER_PADDING = frozenset(
    {
        "camembert",
        "data2vec-text",
        "esm",
        "ibert",
        "layoutlmv3",
        "lilt",
        "longformer",
        "luke",
        "markuplm",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Where a family keeps its tensors: names without `.weight` and `.bias`, after `prefix` and `layer`. `token_types`
    and `projection` are None where there are none."""

    prefix: str
    words: str
    positions: str
    token_types: str | None
    embeddings_norm: str
    projection: str | None
    layer: str
    query: str
    key: str
    value: str
    attention: str
    attention_norm: str
    intermediate: str
    output: str
    output_norm: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Classifier:
    """The head of `...ForSequenceClassification`: over the first token's state, a layer as wide as it with an
    activation, then one logit a label."""

    dense: str
    activation: Activation
    logits: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedLanguageModel:
    """The head of `...ForMaskedLM`, over every token's state: a layer with an activation (None: the encoder's own) and
    a layer norm, then one logit for each token of the vocabulary. `bias` is what the decoder's is called where it does
    not bear the decoder's name."""

    dense: str
    activation: Activation | None
    norm: str
    decoder: str
    bias: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """`sizes` says what config.json calls a size that BERT's has another name for, `fixed` what it leaves out."""

    names: Names
    classifier: Classifier
    masked: MaskedLanguageModel
    sizes: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, float] = field(default_factory=dict)


_BERT = Names(
    prefix="bert.",
    words="embeddings.word_embeddings",
    positions="embeddings.position_embeddings",
    token_types="embeddings.token_type_embeddings",
    embeddings_norm="embeddings.LayerNorm",
    projection=None,
    layer="encoder.layer.{}.",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    intermediate="intermediate.dense",
    output="output.dense",
    output_norm="output.LayerNorm",
)
_DISTILBERT = Names(
    prefix="distilbert.",
    words="embeddings.word_embeddings",
    positions="embeddings.position_embeddings",
    token_types=None,
    embeddings_norm="embeddings.LayerNorm",
    projection=None,
    layer="transformer.layer.{}.",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attention="attention.out_lin",
    attention_norm="sa_layer_norm",
    intermediate="ffn.lin1",
    output="ffn.lin2",
    output_norm="output_layer_norm",
)
_ROBERTA = Family(
    names=replace(_BERT, prefix="roberta."),
    classifier=Classifier(dense="classifier.dense", activation="tanh", logits="classifier.out_proj"),
    masked=MaskedLanguageModel(
        dense="lm_head.dense",
        activation="gelu",
        norm="lm_head.layer_norm",
        decoder="lm_head.decoder",
        bias="lm_head.bias",
    ),
)

# By config.json's model_type.
FAMILIES: Mapping[str, Family] = {
    "bert": Family(
        names=_BERT,
        classifier=Classifier(dense="bert.pooler.dense", activation="tanh", logits="classifier"),
        masked=MaskedLanguageModel(
            dense="cls.predictions.transform.dense",
            activation=None,
            norm="cls.predictions.transform.LayerNorm",
            decoder="cls.predictions.decoder",
            bias="cls.predictions.bias",
        ),
    ),
    "camembert": _ROBERTA,
    "distilbert": Family(
        names=_DISTILBERT,
        classifier=Classifier(dense="pre_classifier", activation="relu", logits="classifier"),
        masked=MaskedLanguageModel(
            dense="vocab_transform", activation=None, norm="vocab_layer_norm", decoder="vocab_projector"
        ),
        sizes={
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
        },
        fixed={"type_vocab_size": 0, "layer_norm_eps": 1e-12},
    ),
    "electra": Family(
        names=replace(_BERT, prefix="electra.", projection="embeddings_project"),
        classifier=Classifier(dense="classifier.dense", activation="gelu", logits="classifier.out_proj"),
        masked=MaskedLanguageModel(
            dense="generator_predictions.dense",
            activation="gelu",
            norm="generator_predictions.LayerNorm",
            decoder="generator_lm_head",
        ),
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}
