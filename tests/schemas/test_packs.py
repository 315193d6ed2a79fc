"""Packs: what goes in comes out, and bytes that are no pack are a bad record and nothing worse."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.errors import BadRecord, Reason
from schemas.packs import (
    EncodedOutput,
    EncodingPack,
    PackedText,
    TokenPack,
    decode_encoding_pack,
    decode_token_pack,
    encode_pack,
    encoding_pack,
    source_of,
    token_pack,
)
from schemas.records import Source

Windows = Sequence[Sequence[int]]


def text_of(windows: Windows, *, offset: int = 0, **changes: Any) -> PackedText:
    text = PackedText(
        id=f"t/0/{offset}",
        key=None,
        headers=[],
        offset=offset,
        chunks=len(windows),
        tokens=sum(map(len, windows)),
        truncated=False,
    )
    return msgspec.structs.replace(text, **changes)


def pack_of(*texts: Windows) -> TokenPack:
    """A pack of texts, each a list of windows of token ids."""
    return token_pack(
        topic="reviews.requests",
        partition=3,
        texts=[text_of(windows, offset=offset) for offset, windows in enumerate(texts)],
        chunks=[np.array(window, np.int32) for windows in texts for window in windows],
    )


def encodings_of(pack: TokenPack, **widths: int) -> EncodingPack:
    """Numbers for each window that differ everywhere."""
    chunks = len(pack.chunk_lengths())
    return encoding_pack(
        pack,
        {
            name: np.linspace(-1, 1, chunks * width, dtype=np.float32).reshape(chunks, width)
            for name, width in widths.items()
        },
    )


ids = st.integers(0, 30_521) | st.integers(0, 250_001) | st.sampled_from([65_535, 65_536])
windows = st.lists(st.lists(ids, min_size=1, max_size=6), min_size=1, max_size=3)


@st.composite
def packs(draw: st.DrawFn) -> TokenPack:
    texts = draw(st.lists(windows, min_size=1, max_size=5))
    offsets = draw(
        st.lists(st.integers(0, 2**63 - 1), min_size=len(texts), max_size=len(texts), unique=True).map(sorted)
    )
    return token_pack(
        topic=draw(st.from_regex(r"[a-z0-9._-]{1,20}", fullmatch=True)),
        partition=draw(st.integers(0, 2**31 - 1)),
        texts=[
            text_of(
                text,
                offset=offset,
                id=draw(st.text(max_size=8)),
                key=draw(st.none() | st.binary(max_size=8)),
                headers=draw(st.lists(st.tuples(st.text(max_size=5), st.none() | st.binary(max_size=5)), max_size=2)),
                truncated=draw(st.booleans()),
            )
            for text, offset in zip(texts, offsets, strict=True)
        ],
        chunks=[np.array(window, np.int32) for text in texts for window in text],
    )


@st.composite
def encoding_packs(draw: st.DrawFn) -> EncodingPack:
    pack = draw(packs())
    chunks = len(pack.chunk_lengths())
    numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
    outputs: dict[str, NDArray[np.float32]] = {}
    for name in draw(st.lists(st.text(max_size=4), max_size=2, unique=True)):
        width = draw(st.integers(1, 3))
        flat = draw(st.lists(numbers, min_size=chunks * width, max_size=chunks * width))
        outputs[name] = np.array(flat, np.float32).reshape(chunks, width)
    return encoding_pack(pack, outputs)


# What goes in comes out.


@given(pack=packs())
def test_a_token_pack_comes_back_as_it_was(pack: TokenPack) -> None:
    assert decode_token_pack(encode_pack(pack)) == pack


@given(pack=encoding_packs())
def test_an_encoding_pack_comes_back_as_it_was(pack: EncodingPack) -> None:
    assert decode_encoding_pack(encode_pack(pack)) == pack


@given(texts=st.lists(windows, min_size=1, max_size=5))
def test_every_window_keeps_its_ids(texts: list[list[list[int]]]) -> None:
    pack = decode_token_pack(encode_pack(pack_of(*texts)))
    flat = [window for text in texts for window in text]
    assert [window.tolist() for window in pack.chunk_ids()] == flat
    assert pack.chunk_lengths().tolist() == [len(window) for window in flat]
    assert all(window.dtype == np.int32 for window in pack.chunk_ids())


@pytest.mark.parametrize(("largest", "wide"), [(65_535, False), (65_536, True)])
def test_ids_take_two_bytes_until_one_does_not_fit(largest: int, wide: bool) -> None:
    pack = pack_of([[0, largest]])
    assert pack.wide is wide
    assert len(pack.input_ids) == 2 * (4 if wide else 2)
    assert pack.chunk_ids()[0].tolist() == [0, largest]


def test_numbers_are_little_endian_on_the_wire_whatever_the_machine() -> None:
    assert pack_of([[1, 258]]).input_ids == b"\x01\x00\x02\x01"
    assert pack_of([[1, 258]]).lengths == b"\x02\x00\x00\x00"
    assert encoding_pack(pack_of([[1]]), {"v": np.array([[1.0]], ">f4")}).outputs[0].values == b"\x00\x00\x80\x3f"


def test_an_output_has_a_row_for_each_window() -> None:
    pack = encodings_of(pack_of([[1], [2, 3]], [[4]]), vector=5)
    assert pack.outputs[0].rows().shape == (3, 5)
    assert pack.texts == pack_of([[1], [2, 3]], [[4]]).texts


def test_a_text_knows_where_its_request_was_read() -> None:
    pack = pack_of([[1]], [[2]])
    assert source_of(pack, pack.texts[1]) == Source("reviews.requests", 3, 1)


# What is no pack is a bad record.


def assert_bad(decode: Callable[[bytes | None], object], value: bytes | None, why: str = "") -> None:
    with pytest.raises(BadRecord) as raised:
        decode(value)
    assert raised.value.reason is (Reason.NULL_VALUE if value is None else Reason.BAD_PACK)
    assert why in raised.value.message


@pytest.mark.parametrize("decode", [decode_token_pack, decode_encoding_pack])
@pytest.mark.parametrize("value", [None, b"", b"\xc0", b"\x90", b"\xc1", b"{}", b'{"text": "a request"}', b"\xff" * 50])
def test_other_bytes_are_no_pack(decode: Callable[[bytes | None], object], value: bytes | None) -> None:
    assert_bad(decode, value)


def test_one_kind_of_pack_is_not_the_other() -> None:
    pack = pack_of([[1, 2]])
    assert_bad(decode_encoding_pack, encode_pack(pack))
    assert_bad(decode_token_pack, encode_pack(encodings_of(pack, vector=2)))


def test_a_later_format_is_not_taken_for_this_one() -> None:
    assert_bad(decode_token_pack, encode_pack(pack_of([[1]])).replace(b"tokens/2", b"tokens/3"))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"texts": []}, "no text"),
        ({"lengths": b""}, "disagree"),
        ({"lengths": b"\x02\x00\x00"}, "whole int32"),
        ({"lengths": np.array([2, 2], "<i4").tobytes()}, "disagree"),
        ({"lengths": np.array([2, 0, 3], "<i4").tobytes()}, "no tokens"),
        ({"lengths": np.array([2, -1, 4], "<i4").tobytes()}, "no tokens"),
        ({"lengths": np.array([2, 2, 2], "<i4").tobytes()}, "disagree"),
        ({"lengths": np.array([2, 2**31 - 1, 2**31 - 1], "<i4").tobytes()}, "disagree"),
        ({"input_ids": b""}, "input_ids"),
        ({"input_ids": b"\x00" * 9}, "input_ids"),
        ({"input_ids": b"\x00" * 12}, "input_ids"),
        ({"wide": True}, "input_ids"),
        ({"texts": [text_of([[1, 2], [1]])]}, "disagree"),
        ({"texts": [text_of([[1, 2], [3], [4, 5]]), text_of([[1]])]}, "disagree"),
        ({"texts": [text_of([[1, 2]]), text_of([[1], [2]], tokens=4)]}, "disagree"),
        ({"topic": ""}, "$[1]"),
        ({"topic": "a\x00b"}, "$[1]"),
        ({"topic": "a topic"}, "$[1]"),
        ({"topic": "t" * 250}, "$[1]"),
        ({"topic": "line\n"}, "$[1]"),
        ({"partition": -1}, "$[2]"),
        ({"partition": 2**31}, "$[2]"),
    ],
)
def test_a_token_pack_that_contradicts_itself_or_kafka_is_refused(changes: dict[str, Any], why: str) -> None:
    pack = pack_of([[1, 2]], [[3], [4, 5]])
    assert decode_token_pack(encode_pack(pack)) == pack
    assert_bad(decode_token_pack, encode_pack(msgspec.structs.replace(pack, **changes)), why)


@pytest.mark.parametrize(
    "changes", [{"offset": -1}, {"offset": 2**63}, {"chunks": 0}, {"chunks": -1}, {"tokens": 0}, {"tokens": 2**64 - 1}]
)
def test_a_text_with_an_impossible_number_is_refused(changes: dict[str, Any]) -> None:
    pack = pack_of([[1, 2]])
    broken = msgspec.structs.replace(pack, texts=[text_of([[1, 2]], **changes)])
    assert_bad(decode_token_pack, encode_pack(broken))


@pytest.mark.parametrize(
    ("outputs", "why"),
    [
        ([EncodedOutput("v", 2, b"\x00" * 16)], "3 rows of 2"),
        ([EncodedOutput("v", 2, b"\x00" * 25)], "3 rows of 2"),
        ([EncodedOutput("v", 2**31 - 1, b"\x00" * 24)], "3 rows of"),
        ([EncodedOutput("v", 0, b"")], ">= 1"),
        ([EncodedOutput("v", 1, b"\x00" * 12), EncodedOutput("v", 1, b"\x00" * 12)], "one name"),
        ([EncodedOutput("v", 1, np.array([0, np.nan, 0], "<f4").tobytes())], "not finite"),
        ([EncodedOutput("v", 1, np.array([0, 0, np.inf], "<f4").tobytes())], "not finite"),
        ([EncodedOutput("v", 1, np.array([-np.inf, 0, 0], "<f4").tobytes())], "not finite"),
    ],
)
def test_outputs_that_are_no_answer_are_refused(outputs: list[EncodedOutput], why: str) -> None:
    pack = encodings_of(pack_of([[1, 2]], [[3], [4, 5]]), v=2)
    assert_bad(decode_encoding_pack, encode_pack(msgspec.structs.replace(pack, outputs=outputs)), why)


def test_the_name_of_an_output_may_be_long_but_what_is_said_of_it_is_not() -> None:
    pack = msgspec.structs.replace(
        encodings_of(pack_of([[1]])), outputs=[EncodedOutput("v\n" * 1_000_000, 2, b"\x00" * 16)]
    )
    with pytest.raises(BadRecord) as raised:
        decode_encoding_pack(encode_pack(pack))
    assert len(raised.value.message) <= 500
    assert raised.value.message.isprintable()


# What was a pack, and has been damaged on its way.


@st.composite
def damaged(draw: st.DrawFn, value: bytes) -> bytes:
    """A few bits flipped, bytes changed, taken out or put in, or the end cut off."""
    damaged = bytearray(value)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(damaged) - 1)))
        match draw(st.sampled_from(["flip", "set", "cut", "grow", "end"])):
            case "flip" if damaged:
                damaged[at] ^= 1 << draw(st.integers(0, 7))
            case "set" if damaged:
                damaged[at] = draw(st.integers(0, 255))
            case "cut":
                del damaged[at : at + draw(st.integers(1, 4))]
            case "grow":
                damaged[at:at] = draw(st.binary(min_size=1, max_size=5))
            case "end":
                del damaged[at:]
    return bytes(damaged)


def assert_texts_and_lengths_agree(pack: TokenPack | EncodingPack) -> None:
    lengths = pack.chunk_lengths().tolist()
    assert min(lengths) >= 1
    for text in pack.texts:
        assert text.chunks >= 1
        assert sum(lengths[: text.chunks]) == text.tokens
        del lengths[: text.chunks]
    assert not lengths


@given(pack=packs(), data=st.data())
@settings(max_examples=250, deadline=None)
def test_a_damaged_token_pack_is_a_consistent_one_or_a_bad_record(pack: TokenPack, data: st.DataObject) -> None:
    try:
        read = decode_token_pack(data.draw(damaged(encode_pack(pack))))
    except BadRecord:
        return
    assert_texts_and_lengths_agree(read)
    assert [len(window) for window in read.chunk_ids()] == read.chunk_lengths().tolist()


@given(pack=encoding_packs(), data=st.data())
@settings(max_examples=250, deadline=None)
def test_a_damaged_encoding_pack_is_a_consistent_one_or_a_bad_record(pack: EncodingPack, data: st.DataObject) -> None:
    try:
        read = decode_encoding_pack(data.draw(damaged(encode_pack(pack))))
    except BadRecord:
        return
    assert_texts_and_lengths_agree(read)
    assert len({output.name for output in read.outputs}) == len(read.outputs)
    for output in read.outputs:
        assert output.rows().shape == (len(read.chunk_lengths()), output.width)
        assert np.isfinite(output.rows()).all()


def test_every_beginning_of_a_pack_is_a_bad_record() -> None:
    tokens = pack_of([[1, 2], [70_000]], [[3]])
    for value, decode in (
        (encode_pack(tokens), decode_token_pack),
        (encode_pack(encodings_of(tokens, a=2, b=1)), decode_encoding_pack),
    ):
        for end in range(len(value)):
            assert_bad(decode, value[:end])
        assert_bad(decode, value + b"\x00")


# MessagePack's 32-bit sizes: an array of 4,294,967,295 entries, as many bytes, a map, a string.
HUGE = {"array": b"\xdd\xff\xff\xff\xff", "bytes": b"\xc6\xff\xff\xff\xff", "map": b"\xdf\xff\xff\xff\xff"}
HUGE |= {"string": b"\xdb\xff\xff\xff\xff", "extension": b"\xc9\xff\xff\xff\xff\x01"}


@pytest.mark.parametrize("claim", HUGE.values(), ids=HUGE.keys())
@pytest.mark.parametrize("decode", [decode_token_pack, decode_encoding_pack])
def test_a_claim_of_four_billion_entries_takes_no_memory(
    decode: Callable[[bytes | None], object], claim: bytes
) -> None:
    pack = pack_of([[1, 2]])
    value = encode_pack(pack) if decode is decode_token_pack else encode_pack(encodings_of(pack, vector=2))
    tracemalloc.start()
    try:
        for place in range(len(value)):
            assert_bad(decode, value[:place] + claim + value[place:])
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1 << 20
