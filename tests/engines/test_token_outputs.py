"""Outputs of tokens: every engine against the oracle, and among outputs of texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines.checkpoint import Checkpoint
from engines.engine import EngineKind, open_engine, open_source
from engines.heads import DenseLayer, Head, ModelOutput, PooledOutput, TokenOutput
from engines.onnx_model import read_onnx
from engines.rows import Engine, tokens_of_texts
from engines.source import of_onnx
from stages.packing import pack_rows
from tests.engines.conftest import VOCAB
from tests.onnx_files import VOCAB as FILE_VOCAB
from tests.onnx_files import exported, vectors

LAYER = DenseLayer(
    weight=np.random.default_rng(5).normal(size=(3, 24)).astype(np.float32), bias=np.array([0.5, 0, -0.5], np.float32)
)
TAGS = TokenOutput(name="tags", head=Head(labels=("O", "B", "I"), layers=(LAYER,)))
OUTPUTS: list[ModelOutput] = [
    PooledOutput(name="mean", pooling="mean", normalize=False),
    TokenOutput(name="states"),
    TAGS,
]


def some_windows(vocab: int = VOCAB, *, longest: int = 14) -> list[np.ndarray]:
    draw = np.random.default_rng(2)
    return [draw.integers(0, vocab, draw.integers(1, longest), np.int32) for _ in range(30)]


def answers(engine: Engine, name: str, windows: list[np.ndarray]) -> list[np.ndarray]:
    found = [np.zeros(0)] * len(windows)
    for group in pack_rows(windows, row_length=16):
        answer = engine.run(group.rows)[name]
        for window, tokens in zip(group.windows, tokens_of_texts(answer, group.rows), strict=True):
            found[window] = tokens
    return found


@pytest.mark.parametrize("kind", ["numpy", "onnxruntime", "openvino"])
@pytest.mark.parametrize("outputs", [OUTPUTS, OUTPUTS[1:]], ids=["with texts", "alone"])
def test_every_token_has_the_state_that_the_mean_is_of(
    tiny: Checkpoint, kind: EngineKind, outputs: list[ModelOutput]
) -> None:
    windows = some_windows()
    engine = open_engine(kind, tiny, outputs, threads=1, instances=1)
    oracle = open_engine("numpy", tiny, OUTPUTS, threads=1, instances=1)
    assert engine.of_tokens == {"states", "tags"}
    states = answers(engine, "states", windows)
    for window, state, tags, wanted in zip(
        windows, states, answers(engine, "tags", windows), answers(oracle, "states", windows), strict=True
    ):
        assert state.shape == (len(window), 24)
        np.testing.assert_allclose(state, wanted, atol=1e-5)
        np.testing.assert_allclose(tags, state @ LAYER.weight.T + LAYER.bias, atol=1e-4)
    for group in pack_rows(windows, row_length=16):
        means = oracle.run(group.rows)["mean"]
        np.testing.assert_allclose([states[window].mean(axis=0) for window in group.windows], means, atol=1e-5)
    engine.close()


def test_padded_rows_are_put_back_where_their_texts_lie(tmp_path: Path) -> None:
    windows = some_windows(FILE_VOCAB, longest=40)
    model = read_onnx(exported(tmp_path / "model.onnx"))
    source = of_onnx(model, [TokenOutput(name="states")], vocab_size=FILE_VOCAB, max_positions=40)
    engine = open_source("onnxruntime", source, threads=1, instances=1)
    for window, states in zip(windows, answers(engine, "states", windows), strict=True):
        np.testing.assert_allclose(states, vectors(window), atol=1e-5)
