"""Outputs of tokens: each window has its own, a fault costs one text, and packs carry them."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from engines.rows import PackedRows
from schemas.errors import BadRecord
from schemas.packs import (
    EncodingPack,
    PackedText,
    TokenPack,
    decode_encoding_pack,
    encode_pack,
    token_pack,
)
from schemas.regrouping import joined_encodings, parted
from schemas.results import Output
from stages.encode import EncodeStage
from stages.pack_in_progress import PackInProgress
from stages.postprocess import PostprocessStage
from stages.token_details import bare_details

POISON = 666


class EchoEngine:
    """Answers a token with its id and its position, and a text with its number of tokens; NaN for a poison id."""

    widths: Mapping[str, int] = {"echo": 2, "length": 1}
    of_tokens = frozenset({"echo"})

    def run(self, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
        echo = np.stack([rows.input_ids, rows.position_ids], axis=-1).astype(np.float32)
        echo[rows.input_ids == POISON] = np.nan
        echo[rows.segment_ids == 0] = np.nan  # where no text lies it may hold anything
        lengths = [[(rows.segment_ids[row] == slot + 1).sum()] for row, slot in zip(rows.row, rows.slot, strict=True)]
        return {"echo": echo, "length": np.array(lengths, np.float32)}

    def close(self) -> None:
        pass


def pack_of(*texts: list[list[int]]) -> TokenPack:
    chunks = [np.array(window, np.int32) for text in texts for window in text]
    packed = [
        PackedText(f"id{at}", None, [], at, len(text), sum(map(len, text)), False) for at, text in enumerate(texts)
    ]
    details = [bare_details(chunk) for chunk in chunks]
    return token_pack(topic="t", partition=0, texts=packed, chunks=chunks, details=details)


def encoded(pack: TokenPack, **chosen: int) -> tuple[EncodingPack | None, list[int]]:
    stage = EncodeStage([EchoEngine()], row_length=16, max_length=16, chosen=chosen)
    progress = PackInProgress(pack, None)
    order = [*range(len(progress.windows))][::-1]
    answer = stage([progress.windows[place] for place in order])
    for index, place in enumerate(order):
        progress.put(place, answer, index)
    encodings, lost = progress.encodings()
    return encodings, [text.offset for text, _ in lost]


TEXTS = [[[5, 6, 7]], [[1] * 16, [2, 3]], [[9]], [[4, 4]]]


def echoed(*texts: list[list[int]]) -> list[list[float]]:
    return [[float(id), float(place)] for text in texts for window in text for place, id in enumerate(window)]


def test_each_window_has_its_tokens() -> None:
    encodings, lost = encoded(pack_of(*TEXTS))
    assert encodings is not None
    assert not lost
    outputs = {output.name: output for output in decode_encoding_pack(encode_pack(encodings)).outputs}
    assert outputs["echo"].rows().tolist() == echoed(*TEXTS)
    assert outputs["length"].rows().tolist() == [[3.0], [16.0], [2.0], [1.0], [2.0]]


def test_a_nan_costs_its_text_alone() -> None:
    texts = [*TEXTS, [[3, POISON]], [[8]]]
    encodings, lost = encoded(pack_of(*texts))
    assert lost == [4]
    assert encodings is not None
    kept = [*texts[:4], texts[5]]
    echo = next(output for output in encodings.outputs if output.of_tokens)
    assert echo.rows().tolist() == echoed(*kept)
    assert encodings.token_details()[:, 0].tolist() == [id for text in kept for window in text for id in window]


def test_a_large_pack_goes_in_parts_and_comes_together_again() -> None:
    whole, _ = encoded(pack_of(*TEXTS))
    assert whole is not None
    parts = parted(whole, most_bytes=100)
    assert [[text.id for text in part.texts] for part in parts] == [["id0"], ["id1"], ["id2", "id3"]]
    for part in parts:
        assert decode_encoding_pack(encode_pack(part)) == part
    assert joined_encodings(parts) == whole
    assert parted(whole, most_bytes=10_000) == [whole]


def chosen_of(pack: EncodingPack) -> tuple[list[int], list[list[float]]]:
    [echo] = [output for output in pack.outputs if output.name == "echo"]
    return echo.places().tolist(), echo.rows().tolist()


def test_of_chosen_tokens_nothing_else_is_sent() -> None:
    """A window may have none; a NaN costs its text; packs in parts have their own."""
    texts = [[[5, 6, 7]], [[1, 6, 1], [6, 6]], [[9]], [[6, POISON]], [[4, 6]]]
    whole, lost = encoded(pack_of(*texts), echo=6)
    assert whole is not None
    assert lost == []  # what is not finite is of no token that is wanted
    assert chosen_of(decode_encoding_pack(encode_pack(whole))) == (
        [1, 4, 6, 7, 9, 12],
        [[6.0, 1.0], [6.0, 1.0], [6.0, 0.0], [6.0, 1.0], [6.0, 0.0], [6.0, 1.0]],
    )
    parts = parted(whole, most_bytes=100)
    assert [chosen_of(part)[0] for part in parts] == [[1], [1, 3, 4], [], [0, 3]]
    for part in parts:
        assert decode_encoding_pack(encode_pack(part)) == part
    assert joined_encodings(parts) == whole


@pytest.mark.parametrize("places", [[1, 1], [4, 1], [-1, 2], [2, 99], [1]])
def test_chosen_tokens_that_the_pack_has_not_are_refused(places: list[int]) -> None:
    whole, _ = encoded(pack_of([[5, 6, 7, 6]]), echo=6)
    assert whole is not None
    for changes in ({"chosen": np.array(places, "<i4").tobytes()}, {"chosen": b"123"}, {"of_tokens": False}):
        outputs = [
            msgspec.structs.replace(output, **changes) if output.name == "echo" else output for output in whole.outputs
        ]
        with pytest.raises(BadRecord, match=r"output 'echo'"):
            decode_encoding_pack(encode_pack(msgspec.structs.replace(whole, outputs=outputs)))


@pytest.mark.parametrize("field", ["details", "outputs"])
def test_a_pack_that_contradicts_itself_is_refused(field: str) -> None:
    whole, _ = encoded(pack_of(*TEXTS))
    other, _ = encoded(pack_of(*TEXTS[:2]))
    assert whole is not None
    assert other is not None
    forged = EncodingPack(
        topic=whole.topic,
        partition=0,
        texts=whole.texts,
        lengths=whole.lengths,
        outputs=(other if field == "outputs" else whole).outputs,
        details=(other if field == "details" else whole).details,
    )
    with pytest.raises(BadRecord, match=r"details and lengths disagree|has not \d+ rows of"):
        decode_encoding_pack(encode_pack(forged))


class Ids:
    """Answers the ids that its tokens were told to have, and what their details say."""

    def of_tokens(self, rows: NDArray[np.float64], details: NDArray[np.int32], text: PackedText) -> Output:
        assert rows[:, 0].tolist() in (details[:, 0].tolist(), [0.0] * len(rows))
        return rows[:, 0].tolist()


def test_a_task_is_given_each_texts_tokens() -> None:
    encodings, _ = encoded(pack_of(*TEXTS))
    assert encodings is not None
    answers = PostprocessStage({"echo": Ids()})(encodings)
    assert [answer.outputs["echo"] for answer in answers if not isinstance(answer, BadRecord)] == [
        [float(id) for window in text for id in window] for text in TEXTS
    ]


def test_what_is_not_of_tokens_is_of_another_file() -> None:
    encodings, _ = encoded(pack_of(*TEXTS))
    assert encodings is not None
    for answer in PostprocessStage({"length": Ids()})(encodings):
        assert isinstance(answer, BadRecord)
        assert answer.message == "no output of length: do all stages run the same ensemble file?"
