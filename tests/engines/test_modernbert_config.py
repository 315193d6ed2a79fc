"""Both spellings of ModernBERT's config, and what is said of those that can't be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.checkpoint import read_config
from engines.encoder import read_encoder
from engines.errors import CheckpointError
from engines.heads import classification_head
from engines.model_config import _as_transformers_reads, _as_written, model_config
from tests.engines.test_families import metadata, tensors, written_checkpoint

SIZES: dict[str, Any] = {
    "model_type": "modernbert",
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "hidden_activation": "gelu",
    "max_position_embeddings": 64,
    "norm_eps": 1e-5,
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": True,
    "classifier_bias": False,
    "decoder_bias": True,
    "classifier_pooling": "mean",
    "classifier_activation": "gelu",
    "local_attention": 17,
    "pad_token_id": 0,
}
BEFORE = SIZES | {"global_attn_every_n_layers": 3, "global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0}
SINCE = SIZES | {
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 160_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    },
}


def write(folder: Path, written: dict[str, Any]) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(written))
    return path


@pytest.mark.parametrize("written", [BEFORE, SINCE], ids=["transformers 4", "transformers 5"])
def test_either_spelling(tmp_path: Path, written: dict[str, Any]) -> None:
    path = write(tmp_path, written)
    assert _as_written(written) == _as_transformers_reads(path)
    told = model_config(path, written).modernbert
    assert told is not None
    assert told.windows == (None, 8, 8, None)
    assert told.thetas == (160_000.0, 10_000.0, 10_000.0, 160_000.0)
    assert (told.mlp_bias, told.norm_bias) == (True, False)


def test_one_base_for_all_layers(tmp_path: Path) -> None:
    written = BEFORE | {"local_rope_theta": None}
    told = model_config(write(tmp_path, written), written).modernbert
    assert told is not None
    assert set(told.thetas) == {160_000.0}


def test_what_is_left_out_is_transformers_default(tmp_path: Path) -> None:
    written = {name: value for name, value in SIZES.items() if name not in ("local_attention", "classifier_pooling")}
    told = model_config(write(tmp_path, written), written).modernbert
    assert told is not None
    assert told.windows == (None, 64, 64, None)
    assert told.classifier_pooling == "cls"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "rope_type 'yarn' is not supported: choose a model with"),
        ({"layer_types": ["full_attention"]}, "transformers can't read it"),
        ({"classifier_pooling": "max"}, "transformers can't read it"),
        ({"global_rope_theta": -1}, "rope_theta of full_attention is -1"),
        ({"norm_bias": "no"}, "transformers can't read it"),
        ({"global_attn_every_n_layers": 0}, "transformers can't read it"),
        ({"local_attention": "wide"}, "transformers can't read it"),
    ],
)
def test_configs_that_are_refused(tmp_path: Path, more: dict[str, Any], says: str) -> None:
    write(tmp_path, BEFORE | more)
    with pytest.raises(CheckpointError, match=says) as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "more", "read", "says"),
    [
        ("modernbert", {"num_attention_heads": 8}, read_encoder, "heads of 3 numbers can't be turned in pairs"),
        ("modernbert", {"classifier_activation": "silu"}, classification_head, "classifier_activation 'silu' is not"),
        ("modernbert", {"mlp_bias": True}, read_encoder, r"no tensor 'model.layers.0.mlp.Wi.bias' in the weights"),
        ("mpnet", {"relative_attention_num_buckets": 16}, read_encoder, "buckets is 16, and the model reads 32"),
        ("mpnet", {"relative_attention_num_buckets": 40}, read_encoder, r"has shape \(32, 4\) where .* \(40, 4\)"),
    ],
)
def test_models_that_are_refused(
    tmp_path: Path, name: str, more: dict[str, Any], read: Callable[..., object], says: str
) -> None:
    checkpoint = written_checkpoint(tmp_path, metadata()["configs"][name] | more, tensors(name, "weights"))
    with pytest.raises(CheckpointError, match=says) as caught:
        read(checkpoint)
    assert "\n" not in str(caught.value)
