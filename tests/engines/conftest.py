"""A tiny random BERT, the real MiniLM, and rows laid out by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from engines.rows import PackedRows

VOCAB, WIDTH, INNER, LAYERS, HEADS, POSITIONS = 50, 24, 40, 2, 4, 32

TINY_CONFIG: dict[str, object] = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": POSITIONS,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "id2label": {"0": "NO", "1": "MAYBE", "2": "YES"},
}

Weights = dict[str, NDArray[np.float32]]
Layout = Sequence[Sequence[Sequence[int]]]


def tiny_weights() -> Weights:
    """Large enough numbers that a wrong mask, order or scale shows far above rounding."""
    random = np.random.default_rng(4)

    def tensor(*shape: int) -> NDArray[np.float32]:
        return random.normal(0, 0.3, shape).astype(np.float32)

    weights: Weights = {}

    def dense(name: str, size_in: int, size_out: int) -> None:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = tensor(size_out, size_in), tensor(size_out)

    def norm(name: str) -> None:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = 1 + tensor(WIDTH), tensor(WIDTH)

    for name, rows in (("word", VOCAB), ("position", POSITIONS), ("token_type", 2)):
        weights[f"bert.embeddings.{name}_embeddings.weight"] = tensor(rows, WIDTH)
    norm("bert.embeddings.LayerNorm")
    for index in range(LAYERS):
        layer = f"bert.encoder.layer.{index}."
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            dense(layer + name, WIDTH, WIDTH)
        norm(layer + "attention.output.LayerNorm")
        dense(layer + "intermediate.dense", WIDTH, INNER)
        dense(layer + "output.dense", INNER, WIDTH)
        norm(layer + "output.LayerNorm")
    dense("bert.pooler.dense", WIDTH, WIDTH)
    dense("classifier", WIDTH, 3)
    return weights


def write_checkpoint(folder: Path, config: dict[str, object], weights: Weights) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return folder


def lay_out(rows: Layout, *, length: int) -> PackedRows:
    """Texts (token ids) by row, end to end; an empty one leaves its slot without a text."""
    ids, positions, segments = (np.zeros((len(rows), length), np.int32) for _ in range(3))
    places: list[tuple[int, int]] = []
    for number, texts in enumerate(rows):
        start = 0
        for slot, text in enumerate(texts):
            end = start + len(text)
            assert end <= length
            ids[number, start:end] = text
            positions[number, start:end] = np.arange(len(text))
            segments[number, start:end] = slot + 1
            if len(text):
                places.append((number, slot))
            start = end
    row, slot_of = np.array(places, np.int32).T.copy()
    return PackedRows(
        input_ids=ids,
        position_ids=positions,
        segment_ids=segments,
        row=row,
        slot=slot_of,
        slots=max(len(texts) for texts in rows),
    )


@pytest.fixture
def write_tiny(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tiny checkpoint with some settings and tensors changed; None takes one away."""

    def write(config: dict[str, object] | None = None, weights: dict[str, object] | None = None) -> Path:
        settings = {key: value for key, value in {**TINY_CONFIG, **(config or {})}.items() if value is not None}
        tensors = {name: tensor for name, tensor in {**tiny_weights(), **(weights or {})}.items() if tensor is not None}
        return write_checkpoint(tmp_path / "model", settings, tensors)  # type: ignore[arg-type]

    return write


@pytest.fixture(scope="session")
def layout() -> Callable[..., PackedRows]:
    return lay_out
