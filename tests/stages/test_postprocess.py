"""Postprocess: one result a text, in order, as JSON that says which text it answers and what was read of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from schemas.errors import BadRecord, Reason
from schemas.packs import EncodingPack, PackedText, encoding_pack, token_pack
from schemas.results import Output, Result, encode_result
from stages.classification import TextClassification
from stages.embeddings import SentenceEmbedding
from stages.errors import StageError
from stages.postprocess import PostprocessStage
from stages.tasks import Task

TASKS: Mapping[str, Task] = {
    "vector": SentenceEmbedding(width=2, normalize=True),
    "verdict": TextClassification(("BAD", "GOOD"), top_k=None),
}


def text(offset: int, *lengths: int, **changes: Any) -> PackedText:
    made = PackedText(f"id{offset}", b"key", [("h", b"v")], offset, len(lengths), sum(lengths), False)
    return msgspec.structs.replace(made, **changes)


def pack_of(texts: list[PackedText], lengths: list[int], **outputs: NDArray[np.float32]) -> EncodingPack:
    chunks = [np.ones(length, np.int32) for length in lengths]
    return encoding_pack(token_pack(topic="reviews.requests", partition=3, texts=texts, chunks=chunks), outputs)


def floats(*rows: list[float]) -> NDArray[np.float32]:
    return np.array(rows, np.float32)


def results_of(tasks: Mapping[str, Task], pack: EncodingPack) -> list[Result]:
    answers = PostprocessStage(tasks)(pack)
    results = [answer for answer in answers if isinstance(answer, Result)]
    assert len(results) == len(answers)
    return results


def test_a_result_is_this_json() -> None:
    pack = pack_of(
        [text(41, 5), text(43, 30, 10, id="ours", truncated=True)],
        [5, 30, 10],
        verdict=floats([0, 0], [4, 0], [0, 4]),
        vector=floats([3, 4], [1, 0], [0, 1]),
    )
    first, second = results_of(TASKS, pack)
    assert encode_result(first) == (
        b'{"id":"id41",'
        b'"outputs":{"vector":[0.6,0.8],"verdict":[{"label":"BAD","score":0.5},{"label":"GOOD","score":0.5}]},'
        b'"tokens":5,"truncated":false,"chunks":1,'
        b'"source":{"topic":"reviews.requests","partition":3,"offset":41}}'
    )
    read = msgspec.json.decode(encode_result(second))
    assert list(read) == ["id", "outputs", "tokens", "truncated", "chunks", "source"]
    assert list(read["outputs"]) == ["vector", "verdict"], "in the order of the ensemble file"
    assert (read["id"], read["tokens"], read["truncated"], read["chunks"]) == ("ours", 40, True, 2)
    assert read["source"] == {"topic": "reviews.requests", "partition": 3, "offset": 43}
    assert read["outputs"]["vector"] == pytest.approx([0.9486833, 0.31622777])
    assert read["outputs"]["verdict"][0] == {"label": "BAD", "score": pytest.approx(1 / (1 + np.exp(-2)))}


def test_results_come_in_the_order_of_the_texts_each_with_its_own_windows() -> None:
    chunks = [1, 3, 1, 2]
    lengths = [2] * sum(chunks)
    vectors = floats(*([1, float(row)] for row in range(sum(chunks))))
    pack = pack_of([text(offset, *[2] * count) for offset, count in enumerate(chunks)], lengths, raw=vectors)
    results = results_of({"raw": SentenceEmbedding(width=2, normalize=False)}, pack)
    assert [result.id for result in results] == ["id0", "id1", "id2", "id3"]
    assert [result.outputs["raw"] for result in results] == [[1, 0], [1, 2], [1, 4], [1, 5.5]]


def test_an_output_that_nobody_asked_for_is_left_out() -> None:
    pack = pack_of([text(0, 1)], [1], vector=floats([1, 0]), other=floats([5]))
    [result] = results_of({"vector": TASKS["vector"]}, pack)
    assert list(result.outputs) == ["vector"]


def test_outputs_that_are_missing_make_all_texts_bad_records() -> None:
    pack = pack_of([text(0, 1), text(1, 1)], [1, 1], other=floats([1, 0], [0, 1]))
    for answer in PostprocessStage(TASKS)(pack):
        assert isinstance(answer, BadRecord)
        assert answer.reason is Reason.BAD_PACK
        assert answer.message == "no output of vector, verdict: do all stages run the same ensemble file?"


def test_an_output_of_another_width_makes_all_texts_bad_records() -> None:
    pack = pack_of(
        [text(0, 1), text(1, 1)], [1, 1], vector=floats([1, 0], [0, 1]), verdict=floats([1, 2, 3], [4, 5, 6])
    )
    for answer in PostprocessStage(TASKS)(pack):
        assert isinstance(answer, BadRecord)
        assert answer.reason is Reason.BAD_PACK
        assert "3 logits for 2 labels" in answer.message


# A task of a user's own that fails.


class Fragile:
    """Fails on a row that holds a negative number; or on any; or is short of an answer."""

    def __init__(self, *, always: bool = False, short: bool = False, raises: type[BaseException] = ValueError) -> None:
        self._always, self._short, self._raises = always, short, raises
        self.calls = 0

    def __call__(self, rows: NDArray[np.float64]) -> list[Output]:
        self.calls += 1
        if self._always or (rows < 0).any():
            raise self._raises("math domain error")
        answers: list[Output] = [[float(row[0])] for row in rows]
        return answers[1:] if self._short else answers


def numbers(*first: float) -> EncodingPack:
    return pack_of(
        [text(offset, 1) for offset in range(len(first))], [1] * len(first), raw=floats(*([x] for x in first))
    )


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_a_task_that_fails_on_a_text_costs_its_neighbours_nothing(count: int) -> None:
    task = Fragile()
    values = [1.0] * count
    values[count // 2] = -1.0
    answers = PostprocessStage({"raw": task})(numbers(*values))
    culprit = answers.pop(count // 2)
    assert isinstance(culprit, BadRecord)
    assert culprit.reason is Reason.STAGE_FAILED
    assert re.fullmatch(r"ValueError: math domain error \(test_postprocess.py:\d+\)", culprit.message)
    assert all(isinstance(each, Result) and each.outputs["raw"] == [1.0] for each in answers)
    assert task.calls <= 2 * math.ceil(math.log2(count)) + 2


@pytest.mark.parametrize("task", [Fragile(always=True), Fragile(short=True)])
def test_where_a_task_fails_on_zeros_too_no_text_is_blamed(task: Fragile) -> None:
    with pytest.raises(StageError, match=r"fails whatever the text: (ValueError|AssertionError)"):
        PostprocessStage({"raw": task})(numbers(1.0, 2.0))


def test_memory_that_runs_out_and_what_is_no_exception_are_nobody_s_fault() -> None:
    for raises in (MemoryError, KeyboardInterrupt):
        with pytest.raises(raises):
            PostprocessStage({"raw": Fragile(raises=raises)})(numbers(1.0, -1.0))
