"""The families of encoders whose graph is written here, and in what they differ: names, sizes, positions, heads.

Most are BERT's architecture: layer norm after each half of a layer, absolute positions, one activation in the middle.
MPNet adds a number to each score by how far two tokens are apart. ModernBERT turns queries and keys by their positions
and has no others, norms before each half, gates the middle, and in most layers attends to what is near.
What differs more (DeBERTa) goes as an ONNX file.
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
    """Where a family keeps its tensors: names without `.weight` and `.bias`, after `prefix` and `layer`. What a family
    hasn't is None.

    distances  (buckets, heads), what is added to a score by how far the tokens are apart
    qkv        query, key and value: three tensors, or one of all
    gated      whether `intermediate` is two layers in one tensor, the second of which multiplies the first's activation
    final_norm where layers norm before each half, the norm after the last
    """

    prefix: str
    words: str
    positions: str | None
    token_types: str | None = None
    embeddings_norm: str
    projection: str | None = None
    distances: str | None = None
    layer: str
    qkv: tuple[str, ...]
    attention: str
    attention_norm: str
    intermediate: str
    gated: bool = False
    output: str
    output_norm: str
    final_norm: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Classifier:
    """The head of `...ForSequenceClassification`: over the first token's state, a layer as wide as it with an
    activation, then one logit a label.

    activation  None where config.json says it
    norm        of what the activation makes; None where there is none
    of_tokens   whether `...ForTokenClassification` has all of it too, and not the logits' layer alone
    """

    dense: str
    activation: Activation | None
    norm: str | None = None
    logits: str
    of_tokens: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedLanguageModel:
    """The head of `...ForMaskedLM`, over every token's state: a layer with an activation (None: the encoder's own, or
    what config.json says of it) and a layer norm, then one logit for each token of the vocabulary. `bias` is what the
    decoder's is called where it does not bear the decoder's name."""

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
    layer="encoder.layer.{}.",
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
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
    embeddings_norm="embeddings.LayerNorm",
    layer="transformer.layer.{}.",
    qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    attention="attention.out_lin",
    attention_norm="sa_layer_norm",
    intermediate="ffn.lin1",
    output="ffn.lin2",
    output_norm="output_layer_norm",
)
_MPNET = replace(
    _BERT,
    prefix="mpnet.",
    token_types=None,
    distances="encoder.relative_attention_bias",
    qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
    attention="attention.attn.o",
    attention_norm="attention.LayerNorm",
)
_MODERNBERT = Names(
    prefix="model.",
    words="embeddings.tok_embeddings",
    positions=None,
    embeddings_norm="embeddings.norm",
    layer="layers.{}.",
    qkv=("attn.Wqkv",),
    attention="attn.Wo",
    attention_norm="attn_norm",
    intermediate="mlp.Wi",
    gated=True,
    output="mlp.Wo",
    output_norm="mlp_norm",
    final_norm="final_norm",
)
_LM_HEAD = MaskedLanguageModel(
    dense="lm_head.dense", activation="gelu", norm="lm_head.layer_norm", decoder="lm_head.decoder", bias="lm_head.bias"
)
_ROBERTA = Family(
    names=replace(_BERT, prefix="roberta."),
    classifier=Classifier(dense="classifier.dense", activation="tanh", logits="classifier.out_proj"),
    masked=_LM_HEAD,
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
    "modernbert": Family(
        names=_MODERNBERT,
        classifier=Classifier(
            dense="head.dense", activation=None, norm="head.norm", logits="classifier", of_tokens=True
        ),
        masked=MaskedLanguageModel(dense="head.dense", activation=None, norm="head.norm", decoder="decoder"),
        sizes={"hidden_act": "hidden_activation", "layer_norm_eps": "norm_eps"},
        fixed={"type_vocab_size": 0},
    ),
    "mpnet": Family(
        names=_MPNET,
        classifier=Classifier(dense="classifier.dense", activation="tanh", logits="classifier.out_proj"),
        masked=_LM_HEAD,
        fixed={"type_vocab_size": 0},
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}
