"""Answers of several windows, by hand; the rest is compared with transformers (tests/tasks)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from schemas.errors import BadRecord
from schemas.packs import PackedText, encode_pack, encoding_pack, token_pack
from schemas.parameters import Parameters
from schemas.regrouping import parted
from schemas.results import Answer, Result
from stages.postprocess import PostprocessStage
from stages.question_answering import QuestionAnswering

CONTEXT = "Ann Bo ann"
NOT_READ = [-1, -1, -1, -1]
# [CLS] who [SEP] ann bo, and the same with bo ann: start, end, its word's start, its word's end.
DETAILS = [
    np.array([[0, 0, 0, 0], NOT_READ, NOT_READ, [0, 3, 0, 3], [4, 6, 4, 6]], np.int32),
    np.array([[0, 0, 0, 0], NOT_READ, NOT_READ, [4, 6, 4, 6], [7, 10, 7, 10]], np.int32),
]
ROWS = [np.log([[1.0, 1], [9, 9], [9, 9], [8, 8], [1, 1]]), np.log([[2.0, 2], [9, 9], [9, 9], [1, 1], [5, 5]])]


def text(*, echo: list[str] | None = None, **parameters: Any) -> PackedText:
    return PackedText("id", None, [], 0, 2, 10, False, Parameters(**parameters), echo or [CONTEXT])


def answer(rows: Any = ROWS, details: Any = DETAILS, **asked: Any) -> Any:
    return QuestionAnswering().of_windows(rows, details, text(**asked))


def test_equal_answers_are_one_with_the_sum_of_their_scores() -> None:
    """Of any case, told as the first that was met."""
    assert answer() == Answer(pytest.approx(0.64 + 25 / 64), 0, 3, "Ann")
    assert [each.answer for each in answer(top_k=4)] == ["Ann", "Ann Bo", "Bo ann", "Bo"]


def test_no_answer_is_as_probable_as_where_it_is_least_so() -> None:
    found = answer(top_k=100, handle_impossible_answer=True)
    assert [each.score for each in found if not each.answer] == [pytest.approx(0.01)]


def test_an_answer_has_so_many_tokens_at_most() -> None:
    assert {each.answer for each in answer(top_k=9, max_answer_len=1)} == {"Ann", "Bo"}


def test_a_context_without_tokens_has_no_answer() -> None:
    details = [np.array([[0, 0, 0, 0], NOT_READ, NOT_READ], np.int32)]
    assert answer([ROWS[0][:3]], details, top_k=2) == Answer(0.0, 0, 0, "")
    assert answer([ROWS[0][:3]], details, handle_impossible_answer=True) == Answer(1.0, 0, 0, "")
    assert answer([ROWS[0][1:3]], [details[0][1:]]) == Answer(0.0, 0, 0, "")


def test_numbers_that_are_not_its_own_are_refused() -> None:
    with pytest.raises(BadRecord, match="3 logits where question answering has 2"):
        answer([np.zeros((5, 3))], DETAILS[:1])
    with pytest.raises(BadRecord, match="the pack has not the context"):
        answer(echo=[CONTEXT, CONTEXT])


def test_a_pack_in_parts_is_answered_as_in_one() -> None:
    """Windows stay with their text."""
    windows = [np.arange(5, dtype=np.int32)] * 4
    pack = token_pack(topic="t", partition=0, texts=[text(), text(top_k=2)], chunks=windows, details=DETAILS * 2)
    rows = np.concatenate(ROWS * 2).astype(np.float32)
    encodings = encoding_pack(pack, {"it": rows}, frozenset({"it"}))
    stage = PostprocessStage({"it": QuestionAnswering()})
    parts = parted(encodings, most_bytes=len(encode_pack(encodings)) // 2)
    assert len(parts) == 2
    found = [each for part in parts for each in stage(part)]
    assert found == stage(encodings)
    assert [isinstance(each, Result) and isinstance(each.outputs["it"], Answer) for each in found] == [True, False]
    assert isinstance(stage.harmless(encodings).outputs["it"], Answer)
    [refused, _] = stage(encoding_pack(pack, {"it": rows[:4]}))
    assert isinstance(refused, BadRecord)
