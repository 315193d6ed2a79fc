"""Intake: every record that was read lies in exactly one unit, in order, and units stay small."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.dead_letters import DeadLetters
from pipeline.intake import Intake, PackIntake, RequestIntake
from pipeline.lines import PartitionLine, Unit
from pipeline.metrics import StageMetrics, WorkerMetrics
from schemas.packs import (
    ClosedText,
    EncodingPack,
    PackedText,
    TokenPack,
    decode_encoding_pack,
    decode_token_pack,
    encode_pack,
    encoding_pack,
    token_pack,
)
from schemas.records import Headers, InputRecord, Source
from schemas.regrouping import joined_encodings, joined_tokens

KIBIBYTE = 1024
MOST_BYTES = 256 * KIBIBYTE
LINE = PartitionLine(3)
# Windows of a unit of packs.
MOST = 8


# Key and headers of a record here.
OWN_BYTES = len("key0") + len("h") + len("v") + len("h")


def record(offset: int, value: bytes | None, *, topic: str = "reviews.requests") -> InputRecord:
    headers: Headers = [("h", b"v"), ("h", None)]
    return InputRecord(Source(topic, LINE.partition, offset), b"key%d" % offset, value, headers)


def size_of(each: InputRecord) -> int:
    """Everything of a record that travels along in a pack."""
    own = len(each.key or b"") + sum(len(name) + len(value or b"") for name, value in each.headers)
    return own + len(each.value or b"")


def requests(*sizes: int) -> list[InputRecord]:
    return [record(offset, b"x" * size) for offset, size in enumerate(sizes)]


def groups(units: Sequence[Unit]) -> list[list[int]]:
    return [[each.source.offset for each in unit.records] for unit in units]


# Requests.


@example(sizes=[None, MOST_BYTES], max_pack_size=2)
@given(
    sizes=st.lists(
        st.none() | st.integers(0, 300) | st.integers(0, 400).map(lambda size: size * KIBIBYTE), max_size=20
    ),
    max_pack_size=st.integers(1, 8),
)
def test_all_requests_are_in_one_unit_each_in_order_and_units_stay_small(
    sizes: list[int | None], max_pack_size: int
) -> None:
    records = [record(offset, None if size is None else bytes(size)) for offset, size in enumerate(sizes)]
    units = list(RequestIntake(max_pack_size=max_pack_size)(LINE, iter(records), 5.0))
    assert [each for unit in units for each in unit.records] == records
    for unit, after in itertools.zip_longest(units, units[1:]):
        size_bytes = sum(map(size_of, unit.records))
        assert 1 <= len(unit.records) <= max_pack_size
        assert size_bytes <= MOST_BYTES or len(unit.records) == 1
        if after is not None:
            next_bytes = size_of(after.records[0])
            assert len(unit.records) == max_pack_size or size_bytes + next_bytes > MOST_BYTES, "no smaller than need be"
        assert unit.line is LINE
        assert unit.read_ms == 5.0
        assert unit.texts == len(unit.records)
        assert unit.tokens_in_flight >= len(unit.records), "whatever is in flight counts against the bound"
        assert not unit.outputs
        assert not unit.finished


def test_requests_are_grouped_by_count() -> None:
    units = list(RequestIntake(max_pack_size=3)(LINE, requests(*[10] * 7), 0.0))
    assert groups(units) == [[0, 1, 2], [3, 4, 5], [6]]


def test_and_by_bytes_a_large_one_alone() -> None:
    sizes = [
        100 * KIBIBYTE,
        100 * KIBIBYTE,
        100 * KIBIBYTE,
        5 * 1024 * KIBIBYTE,
        10,
        MOST_BYTES - 10 - 2 * OWN_BYTES,
        1,
    ]
    units = list(RequestIntake(max_pack_size=64)(LINE, requests(*sizes), 0.0))
    assert groups(units) == [[0, 1], [2], [3], [4, 5], [6]]


def test_tokens_are_guessed_from_bytes_before_anybody_knows_them() -> None:
    [unit] = RequestIntake(max_pack_size=64)(LINE, [*requests(400, 0), record(2, None)], 0.0)
    assert unit.tokens_in_flight == (400 + 3 * OWN_BYTES) // 4 + 3


def test_keys_and_headers_count_too_for_they_travel_along() -> None:
    small, large = record(0, b"a"), record(1, b"b")
    large.headers.append(("large", bytes(MOST_BYTES)))
    units = list(RequestIntake(max_pack_size=64)(LINE, [small, large], 0.0))
    assert groups(units) == [[0], [1]]


def test_nothing_read_is_no_unit() -> None:
    assert list(RequestIntake(max_pack_size=64)(LINE, [], 0.0)) == []


# Packs.


def pack(*texts: Sequence[int], token: int = 1) -> TokenPack:
    """A pack of texts, each the lengths of its windows."""
    return token_pack(
        topic="reviews.requests",
        partition=LINE.partition,
        texts=[
            PackedText(f"id{offset}", None, [], offset, len(lengths), sum(lengths), False)
            for offset, lengths in enumerate(texts)
        ],
        chunks=[np.full(length, token, np.int32) for lengths in texts for length in lengths],
    )


class PackReader:
    """Both kinds of packs, read the same way."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.topic = {"encode": "reviews.tokens", "postprocess": "reviews.encodings"}[stage]
        self.worker = WorkerMetrics("reviews")
        metrics: StageMetrics = self.worker.stage(stage)
        letters = DeadLetters({}, topic="reviews.dead-letters", stage=stage, group=f"reviews.{stage}", metrics=metrics)
        options: dict[str, Any] = {"requests_topic": "reviews.requests", "dead_letters": letters}
        self._intake: Intake
        if stage == "encode":
            self._intake = PackIntake(decode_token_pack, joined_tokens, max_pack_size=MOST, **options)
        else:
            self._intake = PackIntake(decode_encoding_pack, joined_encodings, max_pack_size=MOST, **options)

    def value(self, tokens: TokenPack, *, width: int = 2) -> bytes:
        if self.stage == "encode":
            return encode_pack(tokens)
        rows = np.arange(len(tokens.chunk_lengths()) * width, dtype=np.float32).reshape(-1, width)
        return encode_pack(encoding_pack(tokens, {"v": rows, "w": -rows}))

    def read(self, *values: bytes | None) -> list[Unit]:
        records = [record(offset, value, topic=self.topic) for offset, value in enumerate(values)]
        units = list(self._intake(LINE, iter(records), 5.0))
        assert [each for unit in units for each in unit.records] == records, "all of them, in order"
        assert all(unit.line is LINE and unit.read_ms == 5.0 for unit in units)
        return units

    def dead_letters_counted(self, reason: str) -> float | None:
        labels = {"ensemble": "reviews", "stage": self.stage, "reason": reason}
        return self.worker.registry.get_sample_value("penstock_dead_letters_total", labels)


@pytest.fixture(params=["encode", "postprocess"])
def reader(request: pytest.FixtureRequest) -> PackReader:
    return PackReader(request.param)


def test_a_pack_is_a_unit_that_counts_its_texts_and_tokens(reader: PackReader) -> None:
    first, second = reader.read(reader.value(pack([5], [3] * (MOST - 1))), reader.value(pack([7])))
    assert (first.texts, first.tokens_in_flight) == (2, 5 + 3 * (MOST - 1))
    assert (second.texts, second.tokens_in_flight) == (1, 7)
    for unit in (first, second):
        assert (unit.tokens is not None, unit.encodings is not None) == (
            reader.stage == "encode",
            reader.stage == "postprocess",
        )
        assert not unit.outputs


def test_small_packs_become_one_unit(reader: PackReader) -> None:
    [unit] = reader.read(
        reader.value(pack([2], [3, 4])), reader.value(pack([5], token=70_000)), reader.value(pack([6]))
    )
    assert (unit.texts, unit.tokens_in_flight, len(unit.records)) == (4, 20, 3)
    made = unit.tokens or unit.encodings
    assert made is not None
    assert [text.id for text in made.texts] == ["id0", "id1", "id0", "id0"]
    assert made.chunk_lengths().tolist() == [2, 3, 4, 5, 6]
    if unit.tokens is not None:
        assert [set(window.tolist()) for window in unit.tokens.chunk_ids()] == [{1}, {1}, {1}, {70_000}, {1}]
    if unit.encodings is not None:
        v, w = (output.rows().tolist() for output in unit.encodings.outputs)
        assert v == [[0, 1], [2, 3], [4, 5], [0, 1], [0, 1]]
        assert w == (-np.array(v)).tolist()
    assert decoded(reader, encode_pack(made)) == made


def decoded(reader: PackReader, value: bytes) -> TokenPack | EncodingPack:
    return decode_token_pack(value) if reader.stage == "encode" else decode_encoding_pack(value)


def test_a_unit_is_no_larger_than_a_full_pack(reader: PackReader) -> None:
    sizes = [3, MOST - 3, 1, MOST, 1, 1, MOST - 1, MOST + 5, 2]
    units = reader.read(*(reader.value(pack([1] * size)) for size in sizes))
    assert [[len(unit.records), unit.tokens_in_flight] for unit in units] == [
        [2, MOST],
        [1, 1],
        [1, MOST],
        [2, 2],
        [1, MOST - 1],
        [1, MOST + 5],
        [1, 2],
    ]


def test_nor_in_bytes(reader: PackReader) -> None:
    # What a text carries along counts too.
    heavy = pack([1])
    heavy = msgspec.structs.replace(heavy, texts=[msgspec.structs.replace(heavy.texts[0], key=bytes(100 * 1024))])
    units = reader.read(*[reader.value(heavy)] * 5)
    assert [len(unit.records) for unit in units] == [2, 2, 1]


def test_encodings_that_differ_in_their_outputs_stay_apart() -> None:
    reader = PackReader("postprocess")
    one, other = reader.value(pack([1])), reader.value(pack([1]), width=3)
    units = reader.read(one, one, other, one)
    assert [len(unit.records) for unit in units] == [2, 1, 1]


@pytest.mark.parametrize("of_tokens", [False, True])
def test_packs_of_another_ensemble_file_stay_apart(of_tokens: bool) -> None:
    """Of a file that was changed meanwhile: details of tokens, or numbers of tokens of the same name and width."""
    reader = PackReader("postprocess")
    plain = pack([3], [2])
    detailed = msgspec.structs.replace(plain, details=np.zeros((5, 4), "<i4").tobytes())
    old = encoding_pack(plain, {"v": np.zeros((2, 2), np.float32)})
    other = detailed if not of_tokens else plain
    rows = np.zeros((5 if of_tokens else 2, 2), np.float32)
    new = encoding_pack(other, {"v": rows}, frozenset({"v"} if of_tokens else ()))
    units = reader.read(encode_pack(old), encode_pack(new), encode_pack(old))
    assert [unit.texts for unit in units] == [2, 2, 2]


@pytest.mark.parametrize(
    ("value", "reason"), [(None, "null_value"), (b"", "bad_pack"), (b"\x93\x01\x02\x03", "bad_pack")]
)
def test_a_bad_pack_is_a_dead_letter_as_it_is_and_its_neighbours_are_read(
    reader: PackReader, value: bytes | None, reason: str
) -> None:
    good = reader.value(pack([5]))
    before, bad, after = reader.read(good, value, good)
    assert before.texts == after.texts == 1
    assert not before.outputs
    assert not after.outputs
    assert bad.tokens is None
    assert bad.encodings is None
    assert bad.tokens_in_flight == 1
    [letter] = bad.outputs
    assert (letter.topic, letter.key, letter.value) == ("reviews.dead-letters", b"key1", value)
    assert letter.answers == [Source(reader.topic, 3, 1)]
    assert letter.headers[:2] == [("h", b"v"), ("h", None)]
    told = dict(letter.headers[2:])
    assert told["__dlq.errors.topic"] == reader.topic.encode()
    assert told["__dlq.errors.stage"] == reader.stage.encode()
    assert told["__dlq.errors.reason"] == reason.encode()
    assert told["__dlq.errors.offset"] == b"1"
    assert reader.dead_letters_counted(reason) == 1


def test_a_pack_of_the_other_stage_is_a_bad_one(reader: PackReader) -> None:
    other = PackReader("postprocess" if reader.stage == "encode" else "encode")
    [unit] = reader.read(other.value(pack([5])))
    assert len(unit.outputs) == 1
    assert reader.dead_letters_counted("bad_pack") == 1


def test_a_pack_of_another_topic_is_a_dead_letter(reader: PackReader) -> None:
    """Its originals could not be read: the worker would ask for them again at every start."""
    [unit] = reader.read(reader.value(msgspec.structs.replace(pack([5]), topic="other.requests")))
    assert (unit.tokens, unit.encodings) == (None, None)
    [letter] = unit.outputs
    told = dict(letter.headers[2:])
    assert told["__dlq.errors.message"] == b"a pack of other.requests, not of reviews.requests"


def test_a_pack_of_another_partition_is_a_dead_letter_and_nothing_else(reader: PackReader) -> None:
    [unit] = reader.read(reader.value(msgspec.structs.replace(pack([5]), partition=LINE.partition + 1)))
    assert (unit.tokens, unit.encodings) == (None, None), "refused work is not done as well"
    [letter] = unit.outputs
    assert dict(letter.headers[2:])["__dlq.errors.reason"] == b"bad_pack"


def test_what_is_closed_has_no_tokens_and_is_not_free() -> None:
    texts = [ClosedText("id", None, [], offset, "expired") for offset in range(5)]
    pack = token_pack(topic="reviews.requests", partition=LINE.partition, texts=[], chunks=[], closed=texts)
    stage = PackReader("encode")
    units = stage.read(*[encode_pack(pack)] * 4)
    assert [unit.texts for unit in units] == [5] * 4, "two of them are more than a unit's windows"
    assert [unit.tokens_in_flight for unit in units] == [5] * 4
