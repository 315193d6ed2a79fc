"""A model's config.json: sizes, activation, labels.

Importing `transformers` takes half a second, which is a third of a worker's start. It is asked only where a file leaves
something to its defaults, or has what isn't right: then it says so in its own words. The files of these families' real
models leave out nothing that matters here. A model whose graph is the user's is read as far as it goes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.errors import CheckpointError
from engines.families import FAMILIES, POSITIONS_AFTER_PADDING
from engines.modernbert_config import ModernBertConfig, modernbert_config

# transformers': how many labels a model has that says nothing of them.
_LABELS = 2
# RoBERTa's padding token, and so that of the families that follow it.
_PADDING = 1
# What a model is not built without.
_NEEDED: Mapping[str, type] = {
    "model_type": str,
    "vocab_size": int,
    "hidden_size": int,
    "num_hidden_layers": int,
    "num_attention_heads": int,
    "intermediate_size": int,
    "hidden_act": str,
    "max_position_embeddings": int,
    "type_vocab_size": int,
    "layer_norm_eps": float,
}

_AT_LEAST_ONE = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Under `transformers`' names for BERT, whatever the family calls them.

    embedding_size width of the tables; hidden_size but for ELECTRA
    first_position the place in the table of positions where a text begins
    architectures  the classes that the checkpoint was saved from
    id2label       a logit's place -> its label
    problem_type   of the checkpoint's own head; None where it does not say
    tie_word_embeddings  whether a masked language model's decoder is the table of words
    distances      rows of the table of distances; 0 where there is none
    modernbert     what only ModernBERT's says
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    embedding_size: int
    first_position: int
    architectures: tuple[str, ...]
    id2label: Mapping[int, str]
    problem_type: str | None
    is_decoder: bool
    tie_word_embeddings: bool
    distances: int = 0
    modernbert: ModernBertConfig | None = None


def model_config(path: Path, written: Mapping[str, Any], *, any_model: bool = False) -> ModelConfig:
    """What config.json at `path` says, whose content is `written`. Of `any_model`, whose graph is not written here,
    what it does not say is 0, or empty. Raises CheckpointError."""
    try:
        config = _as_written(written, any_model=any_model)
    except (AttributeError, KeyError, TypeError, ValueError) as err:
        if any_model:
            raise CheckpointError(f"{path}: can't be made out ({err}): fetch the model again") from err
        config = _as_transformers_reads(path)
    for name in () if any_model else _AT_LEAST_ONE:
        if getattr(config, name) < 1:
            raise CheckpointError(f"{path}: {name} is {getattr(config, name)}: fetch the model again")
    return config


def _as_written(written: Mapping[str, Any], *, any_model: bool = False) -> ModelConfig:
    """Raises AttributeError, KeyError, TypeError, ValueError: something is not there, or not what it should be."""
    family = FAMILIES.get(written.get("model_type") or "")
    sizes, fixed = (family.sizes, family.fixed) if family else ({}, {})
    needed: dict[str, Any] = {}
    for name, kind in _NEEDED.items():
        place = sizes.get(name, name)
        if name in fixed:
            needed[name] = fixed[name]
        else:
            needed[name] = written.get(place, kind()) if any_model else written[place]
        if type(needed[name]) is not kind:
            raise TypeError(f"{place} is {needed[name]!r}")
    kind_of_model = needed["model_type"]
    labels = written.get("id2label")
    if labels is None:
        labels = {place: f"LABEL_{place}" for place in range(written.get("num_labels", _LABELS))}
    return ModelConfig(
        **needed,
        embedding_size=_embedding_size(written, needed["hidden_size"]),
        first_position=_first_position(written),
        architectures=tuple(str(name) for name in written.get("architectures") or ()),
        id2label={int(place): str(label) for place, label in labels.items()},
        problem_type=written.get("problem_type"),
        is_decoder=bool(written.get("is_decoder", False)),
        tie_word_embeddings=bool(written.get("tie_word_embeddings", True)),
        distances=written["relative_attention_num_buckets"] if kind_of_model == "mpnet" and not any_model else 0,
        modernbert=modernbert_config(written) if kind_of_model == "modernbert" and not any_model else None,
    )


def _as_transformers_reads(path: Path) -> ModelConfig:
    # Without PyTorch, transformers advises on import to install it. We want its configs and tokenizers only.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path.parent, local_files_only=True, trust_remote_code=False)
        told = config.to_dict()
        sizes = FAMILIES[config.model_type].sizes
        places = {sizes.get(name, name): kind for name, kind in _NEEDED.items()}
        return _as_written(told | {place: kind(told[place]) for place, kind in places.items() if place in told})
    except (ArithmeticError, AttributeError, KeyError, OSError, ValueError, TypeError, StrictDataclassError) as err:
        reason = " ".join(str(err).split())
        raise CheckpointError(f"{path}: transformers can't read it ({reason}): fetch the model again") from err


def _embedding_size(config: Mapping[str, Any], hidden_size: int) -> int:
    """Other families of the hub have the word too, for something else."""
    return int(config["embedding_size"]) if config.get("model_type") == "electra" else hidden_size


def _first_position(config: Mapping[str, Any]) -> int:
    if config.get("model_type") not in POSITIONS_AFTER_PADDING:
        return 0
    # MPNet's is RoBERTa's, whatever its config says.
    padding = None if config["model_type"] == "mpnet" else config.get("pad_token_id")
    return (_PADDING if padding is None else int(padding)) + 1
