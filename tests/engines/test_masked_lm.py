"""A masked language model's head: which tensors it is, mapped or widened, and what is said where it is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import TensorSpec, safe_open, serialize_file
from safetensors.numpy import load_file, save_file

from engines.checkpoint import read_config
from engines.errors import CheckpointError
from engines.masked_lm import masked_language_model_head
from engines.weights import map_weights
from tests.engines.test_families import NEWER, metadata
from tests.tasks.test_fill_mask_against_transformers import write_masked_model

DECODER, WORDS = "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_masked_model(tmp_path / "bert", "bert")


def changed(folder: Path, config: dict[str, Any], **tensors: np.ndarray | None) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    weights = load_file(folder / "model.safetensors") | {
        name.replace("__", "."): each for name, each in tensors.items() if each is not None
    }
    gone = {name.replace("__", ".") for name, each in tensors.items() if each is None}
    save_file({name: each for name, each in weights.items() if name not in gone}, folder / "model.safetensors")


def test_the_decoder_is_the_table_of_words_unless_the_file_has_one(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    head = masked_language_model_head(read_config(folder))
    assert (head.width, head.vocab_size) == (24, len(weights[WORDS]))
    np.testing.assert_array_equal(head.decoder, weights[WORDS])
    own = weights[WORDS] + 1
    changed(folder, {}, cls__predictions__decoder__weight=own, cls__predictions__decoder__bias=own[:, 0].copy())
    for tied in (True, False):
        changed(folder, {"tie_word_embeddings": tied})
        head = masked_language_model_head(read_config(folder))
        np.testing.assert_array_equal(head.decoder, own)
        np.testing.assert_array_equal(head.bias, own[:, 0])


def test_float32_is_mapped_and_other_numbers_are_widened(tmp_path: Path) -> None:
    numbers = np.random.default_rng(2).normal(size=(5, 7)).astype(np.float32)
    halved = (numbers.view(np.uint32) >> 16).astype(np.uint16)
    written = {
        "whole": ("float32", numbers),
        "half": ("float16", numbers.astype(np.float16)),
        "upper": ("bfloat16", halved),
        "double": ("float64", numbers.astype(np.float64)),
        "ids": ("int64", np.zeros(1, np.int64)),
        "x.LayerNorm.gamma": ("float32", numbers[0].copy()),
    }
    tensors = {
        name: TensorSpec(dtype=kind, shape=each.shape, data_ptr=each.ctypes.data, data_len=each.nbytes)
        for name, (kind, each) in written.items()
    }
    serialize_file(tensors, tmp_path / "model.safetensors")
    found = map_weights(tmp_path, ["whole", "half", "upper", "double", "ids", "x.LayerNorm.weight", "none"])
    assert found.keys() == {"whole", "half", "upper", "double", "x.LayerNorm.weight"}
    assert isinstance(found["whole"].base, np.memmap)
    assert all(each.dtype == np.float32 and each.flags.aligned for each in found.values())
    for name, error in (("whole", 0), ("double", 0), ("half", 1e-3), ("upper", 1e-2)):
        np.testing.assert_allclose(found[name], numbers, rtol=error, atol=error)
    np.testing.assert_array_equal(found["x.LayerNorm.weight"], numbers[0])


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({}, {"cls__predictions__transform__dense__weight": None}, "no masked language model's head in the weights"),
        ({}, {"cls__predictions__bias": None}, r"no tensor 'cls\.predictions\.decoder\.bias'"),
        ({"tie_word_embeddings": False}, {}, r"no tensor 'cls\.predictions\.decoder\.weight'"),
        ({"vocab_size": 7}, {}, r"has shape \(\d+, 24\) where config.json asks for \(7, 24\)"),
        ({"hidden_act": "silu"}, {}, "hidden_act 'silu' is not supported"),
    ],
)
def test_what_is_not_there_is_told(
    folder: Path, config: dict[str, Any], tensors: dict[str, None], message: str
) -> None:
    changed(folder, config, **tensors)
    with pytest.raises(CheckpointError, match=message):
        masked_language_model_head(read_config(folder))


def test_a_family_without_one_is_told(folder: Path) -> None:
    changed(folder, {"model_type": "deberta"})
    with pytest.raises(CheckpointError, match="of model_type 'deberta' no masked language model's head is known"):
        masked_language_model_head(read_config(folder, any_model=True))


def test_weights_that_are_cut_off_are_told(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="not readable as safetensors"):
        masked_language_model_head(read_config(folder))


@pytest.mark.parametrize("name", ["modernbert", "modernbert-biases-mean", "mpnet"])
def test_the_head_of_newer_families(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(metadata()["configs"][name] | {"architectures": ["ForMaskedLM"]}))
    with safe_open(NEWER, framework="numpy") as file:
        prefix = f"masked/{name}/"
        names = [each for each in file.keys() if each.startswith(prefix)]  # noqa: SIM118 - it is no mapping
        tensors = {each.removeprefix(prefix): file.get_tensor(each) for each in names}
    weights = {each.removeprefix("weights/"): tensor for each, tensor in tensors.items() if each.startswith("weights")}
    save_file(weights, tmp_path / "model.safetensors")
    config = read_config(tmp_path)
    assert config.fills_masks
    logits = masked_language_model_head(config).logits(tensors["states"])
    np.testing.assert_allclose(logits, tensors["logits"], atol=1e-4)
