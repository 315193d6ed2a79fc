"""What passes for the model, and what doesn't."""

from __future__ import annotations

import numpy as np
import pytest

from engines.errors import ParityError
from engines.heads import DenseLayer, Head, PooledOutput, TokenOutput
from engines.parity import Parity, compare, require

EMBEDDING = PooledOutput(name="embedding", pooling="mean", normalize=True)


def head(labels: int) -> PooledOutput:
    layer = DenseLayer(weight=np.zeros((labels, 4), np.float32), bias=np.zeros(labels, np.float32))
    names = tuple(f"label {number}" for number in range(labels))
    return PooledOutput(name="class", pooling="mean", normalize=True, head=Head(labels=names, layers=(layer,)))


def some_rows(width: int = 64) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(100, width)).astype(np.float32)


def test_the_same_numbers_pass_in_every_precision() -> None:
    rows = some_rows()
    parity = compare(EMBEDDING, rows, rows)
    assert parity.cosine_min == pytest.approx(1.0)
    assert parity.max_error == 0
    for precision in ("fp32", "fp16", "bf16", "fp8", "int8"):
        require({"embedding": parity}, precision)


def test_one_text_that_is_another_fails_the_whole() -> None:
    rows = some_rows()
    changed = rows.copy()
    changed[17] = -rows[17]
    parity = compare(EMBEDDING, rows, changed)
    assert parity.cosine_min == pytest.approx(-1.0)
    with pytest.raises(ParityError, match=r"in int8 the engine is not the model: embedding: cosine -1.0+, wanted 0.9"):
        require({"embedding": parity}, "int8")


def test_what_passes_in_8_bits_may_fail_in_16() -> None:
    rows = some_rows()
    noisy = rows + np.random.default_rng(2).normal(0, 0.1, rows.shape).astype(np.float32)
    parity = compare(EMBEDDING, rows, noisy)
    require({"embedding": parity}, "fp8")
    with pytest.raises(ParityError, match=r"cosine 0\.99"):
        require({"embedding": parity}, "fp16")


def test_decisions_count_where_there_is_a_head() -> None:
    rows = some_rows(3)
    flipped = rows.copy()
    flipped[:2] = np.flip(np.sort(rows[:2], axis=1), axis=1)
    flipped[:2, rows[:2].argmax(axis=1)] = -9
    parity = compare(head(3), rows, flipped)
    assert parity.cosine_min is None
    assert parity.decisions == pytest.approx(0.98)
    with pytest.raises(ParityError, match=r"class: share of equal decisions 0.98\d*, wanted 0.99"):
        require({"class": parity}, "fp8")


def test_a_head_of_one_number_decides_by_its_sign() -> None:
    rows = np.array([[1.0], [2.0], [-1.0], [-2.0]], np.float32)
    assert compare(head(1), rows, rows + np.float32(1.5)).decisions == pytest.approx(0.75)


def test_what_is_not_finite_never_passes() -> None:
    rows = some_rows()
    broken = rows.copy()
    broken[3, 3] = np.nan
    for output in (EMBEDDING, head(64)):
        with pytest.raises(ParityError, match=r"not finite|nan"):
            require({output.name: compare(output, rows, broken)}, "int8")


def test_it_is_told_in_words() -> None:
    parity = Parity(texts=7, cosine_min=0.99, cosine_mean=0.995, max_error=0.0123, decisions=None, r2=None)
    assert str(parity) == "cosine 0.990000 at least, 0.995000 in the mean, max error 0.012, of 7 texts"
    parity = Parity(texts=7, cosine_min=None, cosine_mean=None, max_error=0.5, decisions=0.9912, r2=0.998)
    assert str(parity) == "99.12% of decisions equal, R2 0.998000, max error 0.5, of 7 texts"


@pytest.mark.parametrize("labels", [1, 3])
def test_scores_count_too(labels: int) -> None:
    """Of a regression, and of labels that each stand alone, decisions say nothing."""
    rows = some_rows(labels)
    noisy = rows * np.float32(0.8)
    parity = compare(head(labels), rows, noisy)
    assert parity.decisions == 1.0
    assert parity.r2 == pytest.approx(0.96, abs=0.005)
    with pytest.raises(ParityError, match=r"class: R2 of the logits 0\.9\d+, wanted 0\.97"):
        require({"class": parity}, "int8")
    require({"class": compare(head(labels), rows, rows * np.float32(0.9))}, "int8")


def test_texts_that_are_answered_alike() -> None:
    rows = np.ones((50, 2), np.float32)
    require({"class": compare(head(2), rows, rows)}, "fp32")
    with pytest.raises(ParityError, match="R2 of the logits"):
        require({"class": compare(head(2), rows, rows + np.float32(0.01))}, "int8")


def test_of_few_texts_only_decisions_count() -> None:
    rows = some_rows(3)[:29]
    assert compare(head(3), rows, rows + np.float32(0.1)).r2 is None


def test_logits_without_a_head_are_judged_as_logits() -> None:
    rows = some_rows(3)
    parity = compare(PooledOutput(name="x", pooling="mean", normalize=False, logits=True), rows, rows)
    assert (parity.cosine_min, parity.decisions, parity.r2) == (None, 1.0, 1.0)


def test_a_head_that_decides_nothing_is_judged_by_its_numbers() -> None:
    """Of question answering: a token that is no answer has two logits that are nearly one."""
    layer = DenseLayer(weight=np.zeros((2, 4), np.float32), bias=np.zeros(2, np.float32))
    output = TokenOutput(name="it", head=Head(labels=("start", "end"), layers=(layer,), decides=False))
    reference = np.random.default_rng(0).normal(size=(100, 1)).astype(np.float32) + np.array([0, 1e-6], np.float32)
    parity = compare(output, reference, reference[:, ::-1])
    assert parity.decisions is None
    assert parity.r2 == pytest.approx(1)
    require({"it": parity}, "fp16")
