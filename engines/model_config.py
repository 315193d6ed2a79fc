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
    """Under `transformers`' names for BERT.

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
    needed = {name: written[name] for name in _NEEDED}
    wrong = [name for name, kind in _NEEDED.items() if type(needed[name]) is not kind]
    if wrong or "num_labels" in written:
        raise ValueError
    labels = written.get("id2label")
    return ModelConfig(
        **needed,
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
        return ModelConfig(
            **{
                name: kind(getattr(config, name, kind())) if any_model else kind(getattr(config, name))
                for name, kind in _NEEDED.items()
            },
            architectures=tuple(config.architectures or ()),
            id2label=config.id2label or {},
            problem_type=config.problem_type,
            is_decoder=bool(getattr(config, "is_decoder", False)),
        )
    except (OSError, ValueError, TypeError, StrictDataclassError) as err:
        reason = " ".join(str(err).split())
        raise CheckpointError(f"{path}: transformers can't read it ({reason}): fetch the model again") from err
