"""A model's config.json: sizes, activation, labels.

Importing `transformers` takes half a second, which is a third of a worker's start. It is asked only where a file leaves
something to its defaults, or has what isn't right: then it says so in its own words. Real models' files leave out
nothing that matters here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.errors import CheckpointError
from engines.families import FAMILIES

# transformers': what a model without labels of its own has.
_NO_LABELS = {0: "LABEL_0", 1: "LABEL_1"}
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Under `transformers`' names for BERT, whatever the family calls them.

    embedding_size width of the tables; hidden_size but for ELECTRA
    architectures  the classes that the checkpoint was saved from
    id2label       a logit's place -> its label
    problem_type   of the checkpoint's own head; None where it does not say
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
    architectures: tuple[str, ...]
    id2label: Mapping[int, str]
    problem_type: str | None
    is_decoder: bool


def model_config(path: Path, written: Mapping[str, Any], *, any_model: bool = False) -> ModelConfig:
    """What config.json at `path` says, whose content is `written`. Of `any_model` what it has no such thing of is 0, or
    empty. Raises CheckpointError."""
    try:
        return _as_written(written)
    except (KeyError, TypeError, ValueError):
        return _as_transformers_reads(path, any_model=any_model)


def _as_written(written: Mapping[str, Any]) -> ModelConfig:
    """Raises KeyError, TypeError or ValueError where something is not there, or is not what it should be."""
    family = FAMILIES.get(written["model_type"])
    sizes, fixed = (family.sizes, family.fixed) if family else ({}, {})
    needed: dict[str, Any] = {
        name: fixed[name] if name in fixed else written[sizes.get(name, name)] for name in _NEEDED
    }
    wrong = [name for name, kind in _NEEDED.items() if type(needed[name]) is not kind]
    if wrong or "num_labels" in written:
        raise ValueError
    labels = written.get("id2label")
    return ModelConfig(
        **needed,
        embedding_size=_embedding_size(written, needed["hidden_size"]),
        architectures=tuple(str(name) for name in written.get("architectures") or ()),
        id2label=_NO_LABELS if labels is None else {int(place): str(label) for place, label in dict(labels).items()},
        problem_type=written.get("problem_type"),
        is_decoder=bool(written.get("is_decoder", False)),
    )


def _as_transformers_reads(path: Path, *, any_model: bool = False) -> ModelConfig:
    # Without PyTorch, transformers advises on import to install it. We want its configs and tokenizers only.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path.parent, local_files_only=True)
        family = FAMILIES.get(config.model_type)

        def found(name: str, kind: type) -> Any:
            if family is not None and name in family.fixed:
                return family.fixed[name]
            place = family.sizes.get(name, name) if family is not None else name
            return kind(getattr(config, place, kind())) if any_model else kind(getattr(config, place))

        needed = {name: found(name, kind) for name, kind in _NEEDED.items()}
        return ModelConfig(
            **needed,
            embedding_size=_embedding_size(config.to_dict(), needed["hidden_size"]),
            architectures=tuple(config.architectures or ()),
            id2label=config.id2label or {},
            problem_type=config.problem_type,
            is_decoder=bool(getattr(config, "is_decoder", False)),
        )
    except (OSError, ValueError, TypeError, StrictDataclassError) as err:
        reason = " ".join(str(err).split())
        raise CheckpointError(f"{path}: transformers can't read it ({reason}): fetch the model again") from err


def _embedding_size(config: Mapping[str, Any], hidden_size: int) -> int:
    """Other families of the hub have the word too, for something else."""
    return int(config["embedding_size"]) if config["model_type"] == "electra" else hidden_size
