"""Packs: the records of the intermediate topics, many texts of one partition in one record.

One Kafka record a text costs Python 1.9 us a hop, a pack of 64 texts 0.5 us a text. A pack is MessagePack: a
struct as an array that starts with its kind and format version, arrays of numbers as raw little-endian bytes.
Order inside a pack is the order of the source partition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.errors import BadRecord, Reason
from schemas.parameters import Parameters
from schemas.records import Headers, Source
from schemas.urgency import Unanswered, Urgency

# Token ids fit 16 bits for vocabularies of up to 65,536; XLM-R's 250,002 need 32.
NARROW = np.dtype("<u2")
WIDE = np.dtype("<u4")
_INT32 = np.dtype("<i4")
_FLOAT32 = np.dtype("<f4")

Number = TypeVar("Number", bound=np.generic)

# Added to a token's number where it belongs to the second text of a pair (BERT's token type 1).
SECOND_TEXT = 1 << 30

# Numbers of a token's details, and what is the place of one that was added to the text.
DETAILS = 4
SPECIAL = -1

# What a pack says of places must be sayable to Kafka, whose client fails on any other number or name.
_Topic = Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z0-9._-]{1,249}\Z")]
_Partition = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
_Offset = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Count = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]


class PackedText(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """One text's identity, and what it asks of the tasks, as it travels along with its numbers."""

    id: str
    key: bytes | None
    headers: Headers
    offset: _Offset
    chunks: _Count
    tokens: _Count
    truncated: bool
    parameters: Parameters | None = None
    # What the result repeats: of zero-shot classification the sequence and the candidate labels, of token
    # classification the text, of question answering the context.
    echo: list[str] | None = None
    urgency: Urgency | None = None


class ClosedText(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A text that travels without numbers, to be answered in its turn: it expired, or was superseded."""

    id: str
    key: bytes | None
    headers: Headers
    offset: _Offset
    why: Unanswered


class TokenPack(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="tokens/2"):
    """Tokenized texts. `lengths` int32 (chunks,) and `input_ids` uint16 or uint32 (sum of lengths,), flat: a token's
    number in the vocabulary, and SECOND_TEXT more where it belongs to the second text of a pair.

    `details` is int32 (sum of lengths, 4), flat, where a task asks for each token, and else empty: its number in the
    vocabulary, its place in the text (SPECIAL: in none, it was added), and the characters of the text where it starts
    and ends. Question answering has others: the characters of the context where the token starts and ends, and where
    its word does; SPECIAL in all four where it is not of the context, 0 in those of a window's first token where that
    stands for no answer. `closed` are in no chunk, and their place in the order is by their offset.
    """

    topic: _Topic
    partition: _Partition
    texts: list[PackedText]
    wide: bool
    lengths: bytes
    input_ids: bytes
    details: bytes = b""
    closed: list[ClosedText] = []

    def chunk_lengths(self) -> NDArray[np.int32]:
        """Tokens of each chunk, (chunks,)."""
        return np.frombuffer(self.lengths, _INT32)

    def chunk_ids(self) -> list[NDArray[np.int32]]:
        """Token ids of each chunk, views of one flat array."""
        flat = np.frombuffer(self.input_ids, WIDE if self.wide else NARROW).astype(np.int32)
        return split_rows(flat, self.chunk_lengths())

    def chunk_details(self) -> list[NDArray[np.int32]]:
        """Of each chunk, (tokens, 4); empty where there are none."""
        flat = np.frombuffer(self.details, _INT32).reshape(-1, DETAILS)
        return split_rows(flat, self.chunk_lengths()) if len(flat) else []


class EncodedOutput(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One model's numbers for every chunk of a pack, float32 (chunks, width), flat; or for every token of every
    chunk, (sum of lengths, width); or for some of the tokens: `chosen`, int32 (chosen,), says which of the pack's, in
    their order."""

    name: str
    width: _Count
    values: bytes
    of_tokens: bool = False
    chosen: bytes | None = None

    def rows(self) -> NDArray[np.float32]:
        """(chunks, width), or of tokens (sum of lengths, width), or of some (chosen, width)"""
        return np.frombuffer(self.values, _FLOAT32).reshape(-1, self.width)

    def places(self) -> NDArray[np.int32]:
        """Which of the pack's tokens its rows are of, where they are of some."""
        assert self.chosen is not None, "an output of some tokens"
        return np.frombuffer(self.chosen, _INT32)

    @property
    def shape(self) -> tuple[str, int, bool, bool]:
        """What packs that are joined have in common."""
        return self.name, self.width, self.of_tokens, self.chosen is not None


class EncodingPack(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="encodings/2"):
    """What the engine made of a TokenPack: the same texts, the same chunks, the same `details`; what is `closed`."""

    topic: _Topic
    partition: _Partition
    texts: list[PackedText]
    lengths: bytes
    outputs: list[EncodedOutput]
    details: bytes = b""
    closed: list[ClosedText] = []

    def chunk_lengths(self) -> NDArray[np.int32]:
        """Tokens of each chunk, (chunks,)."""
        return np.frombuffer(self.lengths, _INT32)

    def token_details(self) -> NDArray[np.int32]:
        """(sum of lengths, 4), or (0, 4)."""
        return np.frombuffer(self.details, _INT32).reshape(-1, DETAILS)


def split_rows(rows: NDArray[Number], lengths: Sequence[int] | NDArray[np.int32]) -> list[NDArray[Number]]:
    """What lies end to end, in views of so many rows each. np.split does the same, at ten times the price."""
    return [rows[start:end] for start, end in pairwise([0, *np.cumsum(lengths).tolist()])]


def token_pack(
    *,
    topic: str,
    partition: int,
    texts: list[PackedText],
    chunks: list[NDArray[np.int32]],
    details: Sequence[NDArray[np.int32]] = (),
    closed: Sequence[ClosedText] = (),
) -> TokenPack:
    """A pack of `texts`, whose chunks' token ids lie one after another in `chunks`, and so their `details`, if any,
    each (tokens, 4)."""
    lengths = np.fromiter((len(chunk) for chunk in chunks), _INT32, len(chunks))
    flat = np.concatenate(chunks) if chunks else np.zeros(0, np.int32)
    wide = bool(flat.max(initial=0) > np.iinfo(NARROW).max)
    return TokenPack(
        topic=topic,
        partition=partition,
        texts=texts,
        wide=wide,
        lengths=lengths.tobytes(),
        input_ids=flat.astype(WIDE if wide else NARROW).tobytes(),
        details=b"".join(each.astype(_INT32, copy=False).tobytes() for each in details),
        closed=[*closed],
    )


def encoding_pack(
    pack: TokenPack,
    outputs: dict[str, NDArray[np.float32]],
    of_tokens: frozenset[str] = frozenset(),
    chosen: Mapping[str, NDArray[np.int32]] | None = None,
) -> EncodingPack:
    """The encodings of a token pack; each output is float32 (chunks, width), or `of_tokens` (sum of lengths, width);
    of those that are `chosen` (chosen, width), of the tokens that these say."""
    places = {name: each.astype(_INT32, copy=False).tobytes() for name, each in (chosen or {}).items()}
    return EncodingPack(
        topic=pack.topic,
        partition=pack.partition,
        texts=pack.texts,
        lengths=pack.lengths,
        outputs=[
            EncodedOutput(
                name,
                rows.shape[1],
                rows.astype(_FLOAT32, copy=False).tobytes(),
                name in of_tokens or name in places,
                places.get(name),
            )
            for name, rows in outputs.items()
        ],
        details=pack.details,
        closed=pack.closed,
    )


def source_of(pack: TokenPack | EncodingPack, text: PackedText | ClosedText) -> Source:
    """Where the request of `text` was read."""
    return Source(pack.topic, pack.partition, text.offset)


def sources_of(pack: TokenPack | EncodingPack) -> list[Source]:
    """Where all its requests were read."""
    return [Source(pack.topic, pack.partition, text.offset) for texts in (pack.texts, pack.closed) for text in texts]


def closed_text(text: PackedText, why: Unanswered) -> ClosedText:
    """The text without its numbers."""
    return ClosedText(text.id, text.key, text.headers, text.offset, why)


_encoder = msgspec.msgpack.Encoder()
_tokens_decoder = msgspec.msgpack.Decoder(TokenPack)
_encodings_decoder = msgspec.msgpack.Decoder(EncodingPack)

Pack = TypeVar("Pack", TokenPack, EncodingPack)


def encode_pack(pack: TokenPack | EncodingPack) -> bytes:
    """MessagePack bytes."""
    return _encoder.encode(pack)


def decode_token_pack(value: bytes | None) -> TokenPack:
    """The pack in a record of `<ensemble>.tokens`. Raises BadRecord where it is none, or contradicts itself."""
    pack = _decode(_tokens_decoder, value)
    lengths = _checked_lengths(pack)
    expected_bytes = int(lengths.sum()) * (WIDE if pack.wide else NARROW).itemsize
    _require(len(pack.input_ids) == expected_bytes, "input_ids and lengths disagree")
    _check_details(pack, lengths)
    return pack


def decode_encoding_pack(value: bytes | None) -> EncodingPack:
    """The pack in a record of `<ensemble>.encodings`. Raises BadRecord where it is none, or contradicts
    itself."""
    pack = _decode(_encodings_decoder, value)
    lengths = _checked_lengths(pack)
    _check_details(pack, lengths)
    names = [output.name for output in pack.outputs]
    _require(len(set(names)) == len(names), "two outputs have one name")
    for output in pack.outputs:
        rows = int(lengths.sum()) if output.of_tokens else len(lengths)
        if output.chosen is not None:
            rows = _checked_places(output, rows)
        _require(
            len(output.values) == rows * output.width * _FLOAT32.itemsize,
            f"output {output.name!r} has not {rows} rows of {output.width}",
        )
        _require(bool(np.isfinite(output.rows()).all()), f"output {output.name!r} is not finite")
    return pack


def _decode(decoder: msgspec.msgpack.Decoder[Pack], value: bytes | None) -> Pack:
    if value is None:
        raise BadRecord(Reason.NULL_VALUE, "the record has no value (a tombstone)")
    try:
        return decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise BadRecord(Reason.BAD_PACK, str(err)) from err


def _checked_lengths(pack: TokenPack | EncodingPack) -> NDArray[np.int32]:
    _require(bool(pack.texts or pack.closed), "the pack holds no text")
    _require(len(pack.lengths) % _INT32.itemsize == 0, "lengths are not whole int32")
    lengths = pack.chunk_lengths()
    chunks = [text.chunks for text in pack.texts]
    _require(len(lengths) == sum(chunks), "lengths and texts' chunks disagree")
    _require(bool((lengths > 0).all()), "a chunk has no tokens")
    # Nearly always a text is one chunk: the general way costs 10 us a pack more.
    first = np.cumsum([0, *chunks[:-1]]) if len(chunks) < len(lengths) else None  # never where there are no texts
    tokens = lengths if first is None else np.add.reduceat(lengths, first, dtype=np.int64)
    _require(tokens.tolist() == [text.tokens for text in pack.texts], "lengths and texts' tokens disagree")
    return lengths


def _check_details(pack: TokenPack | EncodingPack, lengths: NDArray[np.int32]) -> None:
    if pack.details:
        expected_bytes = int(lengths.sum()) * DETAILS * _INT32.itemsize
        _require(len(pack.details) == expected_bytes, "details and lengths disagree")
        _require(int(np.frombuffer(pack.details, _INT32).min()) >= SPECIAL, "details are not of a text")


def _checked_places(output: EncodedOutput, tokens: int) -> int:
    """How many of the tokens are chosen."""
    assert output.chosen is not None
    _require(output.of_tokens, f"output {output.name!r} has chosen tokens and is of none")
    _require(len(output.chosen) % _INT32.itemsize == 0, f"output {output.name!r}: places are not whole int32")
    places = output.places()
    rising = bool((np.diff(places) > 0).all()) and (not len(places) or 0 <= places[0] <= places[-1] < tokens)
    _require(rising, f"output {output.name!r} is of tokens that the pack has not")
    return len(places)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise BadRecord(Reason.BAD_PACK, message)
