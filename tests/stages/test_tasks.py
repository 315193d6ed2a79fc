"""Tasks: a model's numbers become what transformers.pipeline answers, and a text's windows become one text."""

from __future__ import annotations

import itertools
import json

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from schemas.errors import BadRecord, Reason
from schemas.results import Label
from stages.classification import TextClassification
from stages.embeddings import SentenceEmbedding
from stages.tasks import join_windows

LABELS = ("NEGATIVE", "NEUTRAL", "POSITIVE")

logits = arrays(np.float64, (3,), elements=st.floats(-40, 40, width=32))
any_logits = arrays(
    np.float64,
    st.tuples(st.just(2), st.integers(1, 5)),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def labels_of(row: NDArray[np.float64], labels: tuple[str, ...] = LABELS, *, top_k: int | None = None) -> list[Label]:
    [output] = TextClassification(labels, top_k=top_k)(row[None, :])
    assert all(isinstance(label, Label) for label in output)
    return output  # type: ignore[return-value]


# Text classification.


def test_an_answer_has_the_shape_of_transformers_pipeline() -> None:
    """`pipeline("text-classification", top_k=None)("...")`: a list of {"label", "score"}, the best first."""
    answer = json.loads(msgspec.json.encode(labels_of(np.log([0.2, 0.3, 0.5]))))
    assert answer == [
        {"label": "POSITIVE", "score": pytest.approx(0.5)},
        {"label": "NEUTRAL", "score": pytest.approx(0.3)},
        {"label": "NEGATIVE", "score": pytest.approx(0.2)},
    ]
    assert [list(label) for label in answer] == [["label", "score"]] * 3


@given(row=logits)
def test_scores_are_the_softmax_best_first(row: NDArray[np.float64]) -> None:
    answer = labels_of(row)
    assert {label.label for label in answer} == set(LABELS)
    assert [label.score for label in answer] == sorted((label.score for label in answer), reverse=True)
    assert sum(label.score for label in answer) == pytest.approx(1)
    exponentials = np.exp(row)
    for label in answer:
        assert label.score == pytest.approx(exponentials[LABELS.index(label.label)] / exponentials.sum(), rel=1e-12)


@given(row=logits, top_k=st.integers(1, 5))
def test_top_k_are_the_first_of_all(row: NDArray[np.float64], top_k: int) -> None:
    assert labels_of(row, top_k=top_k) == labels_of(row)[:top_k]


def test_labels_of_the_same_score_keep_the_order_of_the_model() -> None:
    assert [label.label for label in labels_of(np.zeros(3))] == list(LABELS)


@given(logit=st.floats(-700, 700))
def test_one_label_alone_is_scored_by_the_sigmoid(logit: float) -> None:
    [label] = labels_of(np.array([logit]), ("TOXIC",))
    assert label.label == "TOXIC"
    assert label.score == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-12)


@given(rows=any_logits)
def test_the_largest_numbers_still_make_scores(rows: NDArray[np.float64]) -> None:
    labels = tuple(f"LABEL_{index}" for index in range(rows.shape[1]))
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        for output in TextClassification(labels, top_k=None)(rows):
            scores = [label.score for label in output if isinstance(label, Label)]
            assert len(scores) == len(labels)
            assert all(0 <= score <= 1 for score in scores)


@given(rows=arrays(np.float64, (4, 3), elements=st.floats(-40, 40)))
def test_each_text_is_classified_for_itself(rows: NDArray[np.float64]) -> None:
    assert TextClassification(LABELS, top_k=None)(rows) == [labels_of(row) for row in rows]


@pytest.mark.parametrize("width", [1, 2, 4])
def test_logits_of_another_head_are_refused(width: int) -> None:
    with pytest.raises(BadRecord) as raised:
        TextClassification(LABELS, top_k=1)(np.zeros((2, width)))
    assert raised.value.reason is Reason.BAD_PACK
    assert raised.value.message == f"{width} logits for 3 labels"


# Sentence embedding.


@given(row=arrays(np.float32, (384,), elements=st.floats(-1, 1, width=32)))
def test_an_embedding_in_json_is_off_by_less_than_1e_8(row: NDArray[np.float32]) -> None:
    wide = row.astype(np.float64)
    [output] = SentenceEmbedding(width=len(wide), normalize=False)(wide[None, :])
    read = np.array(json.loads(msgspec.json.encode(output)))
    assert read.shape == (384,)
    assert np.abs(read - wide).max() < 1e-8


def test_an_embedding_in_json_is_half_as_long_as_float64_would_be() -> None:
    vector = np.random.default_rng(1).normal(size=(1, 384))
    [output] = SentenceEmbedding(width=vector.shape[1], normalize=True)(vector)
    assert len(msgspec.json.encode(output)) < 384 * 13


@given(rows=arrays(np.float64, (3, 8), elements=st.floats(-1e6, 1e6)))
def test_a_normalised_vector_has_length_one_and_its_own_direction(rows: NDArray[np.float64]) -> None:
    for row, output in zip(rows, SentenceEmbedding(width=rows.shape[1], normalize=True)(rows), strict=True):
        length = np.linalg.norm(row)
        if length > 1e-9:
            np.testing.assert_allclose(np.array(output), row / length, atol=1e-8)


def test_a_vector_of_zeros_stays_one_instead_of_becoming_nan() -> None:
    assert SentenceEmbedding(width=3, normalize=True)(np.zeros((1, 3))) == [[0.0, 0.0, 0.0]]


def test_without_normalize_the_vector_is_left_as_long_as_it_is() -> None:
    assert SentenceEmbedding(width=2, normalize=False)(np.array([[3.0, 4.0]])) == [[3.0, 4.0]]


# Windows.


@st.composite
def texts_in_windows(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.int32], list[int]]:
    chunks = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    windows = sum(chunks)
    rows = draw(arrays(np.float32, (windows, 3), elements=st.floats(-100, 100, width=32)))
    lengths = draw(arrays(np.int32, (windows,), elements=st.integers(1, 512)))
    return rows, lengths, chunks


@given(texts=texts_in_windows())
def test_a_text_is_the_mean_of_its_windows_weighted_by_their_tokens(
    texts: tuple[NDArray[np.float32], NDArray[np.int32], list[int]],
) -> None:
    rows, lengths, chunks = texts
    joined = join_windows(rows, lengths, chunks)
    assert joined.shape == (len(chunks), 3)
    assert joined.dtype == np.float64
    ends = list(itertools.accumulate(chunks))
    for text, (start, end) in enumerate(itertools.pairwise([0, *ends])):
        expected = np.average(rows[start:end].astype(np.float64), axis=0, weights=lengths[start:end])
        np.testing.assert_allclose(joined[text], expected, rtol=1e-12, atol=1e-12)


@given(texts=texts_in_windows())
def test_a_text_of_one_window_is_that_window(texts: tuple[NDArray[np.float32], NDArray[np.int32], list[int]]) -> None:
    rows, lengths, _ = texts
    np.testing.assert_array_equal(join_windows(rows, lengths, [1] * len(rows)), rows)


def test_a_joined_vector_is_normalised_again() -> None:
    rows = np.array([[1, 0], [0, 1]], np.float32)
    joined = join_windows(rows, np.array([30, 10], np.int32), [2])
    assert joined.tolist() == [[0.75, 0.25]]
    [vector] = SentenceEmbedding(width=joined.shape[1], normalize=True)(joined)
    assert np.linalg.norm(np.array(vector)) == pytest.approx(1)
    assert vector == pytest.approx([0.9486833, 0.31622777])


def test_logits_are_joined_before_the_softmax() -> None:
    rows = np.array([[0, 6], [4, 0]], np.float32)
    joined = join_windows(rows, np.array([10, 30], np.int32), [2])
    assert joined.tolist() == [[3.0, 1.5]]
    best, _ = labels_of(joined[0], ("A", "B"))
    assert best.label == "A"
    assert best.score == pytest.approx(1 / (1 + np.exp(-1.5)))


@pytest.mark.parametrize("width", [1, 4])
def test_a_vector_of_another_width_is_another_models(width: int) -> None:
    with pytest.raises(BadRecord, match=f"a vector of {width} numbers, the model's has 3"):
        SentenceEmbedding(width=3, normalize=False)(np.ones((1, width)))
