"""Heads on disk, and a checkpoint's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from engines.checkpoint import Checkpoint, load_checkpoint
from engines.errors import CheckpointError
from engines.heads import DenseLayer, Head, classification_head, load_head, save_head

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)
BIAS = np.array([1, -1], np.float32)


def test_a_head_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    head = Head(labels=("NÉGATIF", "POSITIF"), layers=(DenseLayer(weight=WEIGHT, bias=BIAS),))
    save_head(path, head, metadata={"licence": "MIT"})
    loaded = load_head(path)
    assert loaded.labels == head.labels
    (layer,) = loaded.layers
    np.testing.assert_array_equal(layer.weight, WEIGHT)
    np.testing.assert_array_equal(layer.bias, BIAS)
    assert layer.activation is None
    with safe_open(path, framework="numpy") as file:
        assert file.metadata()["licence"] == "MIT"


@pytest.mark.parametrize(
    ("tensors", "labels", "says"),
    [
        ({"weight": WEIGHT}, '["A", "B"]', "no tensor 'bias': weight and bias are wanted"),
        ({"weight": WEIGHT, "bias": BIAS}, None, "metadata has no labels: a JSON list is wanted"),
        ({"weight": WEIGHT, "bias": BIAS}, '"AB"', "metadata has no labels: a JSON list is wanted"),
        ({"weight": WEIGHT, "bias": BIAS}, '["A"]', r"weight \(2, 3\) and bias \(2,\) don't fit 1 labels"),
        ({"weight": WEIGHT[0], "bias": BIAS}, '["A", "B"]', r"weight \(3,\) and bias \(2,\) don't fit 2 labels"),
    ],
)
def test_heads_that_are_refused(tmp_path: Path, tensors: dict[str, np.ndarray], labels: str | None, says: str) -> None:
    path = tmp_path / "head.safetensors"
    save_file(tensors, path, metadata=None if labels is None else {"labels": labels})
    with pytest.raises(CheckpointError, match=says) as caught:
        load_head(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_heads(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    with pytest.raises(CheckpointError, match="no such file: correct the path"):
        load_head(path)
    path.write_text("weight: 1")
    with pytest.raises(CheckpointError, match="not readable as safetensors"):
        load_head(path)


def test_a_checkpoints_own_classifier(tiny: Checkpoint) -> None:
    head = classification_head(tiny)
    assert head.labels == ("NO", "MAYBE", "YES")
    assert [(layer.weight.shape, layer.activation) for layer in head.layers] == [((24, 24), "tanh"), ((3, 24), None)]


def test_a_checkpoint_without_a_classifier(write_tiny: Callable[..., Path]) -> None:
    folder = write_tiny({"architectures": ["BertModel"]}, {"classifier.weight": None})
    with pytest.raises(CheckpointError, match=r"no classifier in the weights \(architectures: BertModel\)"):
        classification_head(load_checkpoint(folder))
