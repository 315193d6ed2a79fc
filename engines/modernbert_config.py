"""What ModernBERT's config.json says beyond the other families': its layers' attention, biases, and its classifier.

Two spellings: transformers 5 has `layer_types` and `rope_parameters`, before it were `global_attn_every_n_layers`,
`global_rope_theta` and `local_rope_theta`, which the hub's files have still.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engines.errors import CheckpointError

_FULL, _SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModernBertConfig:
    """
    windows                 of each layer, how far from a token it attends to others; None: to all of the text
    thetas                  of each layer, the base of its rotary positions
    norm_bias and others    whether these layers have a bias
    classifier_pooling      what the head that classifies texts reads
    classifier_activation   in transformers' words; classifier_bias too is of every head that it has
    """

    windows: tuple[int | None, ...]
    thetas: tuple[float, ...]
    norm_bias: bool
    attention_bias: bool
    mlp_bias: bool
    classifier_bias: bool
    decoder_bias: bool
    classifier_pooling: Literal["cls", "mean"]
    classifier_activation: str


def modernbert_config(written: Mapping[str, Any]) -> ModernBertConfig:
    """Of config.json's content. Raises KeyError, TypeError, ValueError: something is not there, or not what it should
    be."""
    layers, window = written["num_hidden_layers"], _count(written, "local_attention") // 2
    kinds = written.get("layer_types")
    if kinds is None:
        every = _count(written, "global_attn_every_n_layers")
        kinds = [_SLIDING if layer % every else _FULL for layer in range(layers)]
    if len(kinds) != layers or not set(kinds) <= {_FULL, _SLIDING}:
        raise ValueError(f"layer_types is {kinds!r}")
    thetas = _thetas(written)
    pooling = written["classifier_pooling"]
    if pooling not in ("cls", "mean"):
        raise ValueError(f"classifier_pooling is {pooling!r}")
    return ModernBertConfig(
        windows=tuple(window if kind == _SLIDING else None for kind in kinds),
        thetas=tuple(thetas[kind] for kind in kinds),
        norm_bias=_flag(written, "norm_bias"),
        attention_bias=_flag(written, "attention_bias"),
        mlp_bias=_flag(written, "mlp_bias"),
        classifier_bias=_flag(written, "classifier_bias"),
        decoder_bias=_flag(written, "decoder_bias"),
        classifier_pooling=pooling,
        classifier_activation=str(written["classifier_activation"]),
    )


def check_rotation(path: Path, written: Mapping[str, Any]) -> None:
    """Raises CheckpointError where positions are scaled (YaRN and others): that is not in the graph."""
    if written.get("model_type") != "modernbert":
        return
    told = written.get("rope_parameters")
    of_layers = [*told.values()] if isinstance(told, dict) else []
    for each in [written.get("rope_scaling"), *of_layers]:
        kind = each.get("rope_type", each.get("type", "default")) if isinstance(each, dict) else "default"
        if kind != "default":
            raise CheckpointError(f"{path}: rope_type {kind!r} is not supported: choose a model with 'default'")


def _thetas(written: Mapping[str, Any]) -> dict[str, float]:
    told = written.get("rope_parameters")
    if told is None:
        everywhere, near = written["global_rope_theta"], written["local_rope_theta"]
        thetas = {_FULL: everywhere, _SLIDING: everywhere if near is None else near}
    else:
        thetas = {kind: told[kind]["rope_theta"] for kind in (_FULL, _SLIDING)}
    for kind, theta in thetas.items():
        if not isinstance(theta, int | float) or theta <= 0:
            raise ValueError(f"rope_theta of {kind} is {theta!r}")
    return {kind: float(theta) for kind, theta in thetas.items()}


def _count(written: Mapping[str, Any], name: str) -> int:
    value = written[name]
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}")
    return value


def _flag(written: Mapping[str, Any], name: str) -> bool:
    value = written[name]
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}")
    return value
