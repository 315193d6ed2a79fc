"""Annotated transcripts: what Penstock writes to `<ensemble>.transcripts`, keyed by the stream.

While a stream goes on, a record for each annotated hypothesis,

    {"type": "utterance", "stream_id": "call-7", "utterance_id": "3", "revision": 2, "is_final": false,
     "text": "good mor", "start_ms": 1200, "end_ms": 1900, "outputs": {"sentiment": [...]}}

and once it has ended, the whole of it,

    {"type": "transcript", "stream_id": "call-7", "ended_by": "event", "part": 1, "parts": 1, "utterances": [...]}

`outputs` are those of the result (schemas.results), made from this very text; what could not be answered has `error`
and no outputs. A record is repeated after a crash; the same utterance and revision says the same again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

EndedBy = Literal["event", "silence"]

# Half of what a record may have: a transcript that is longer comes in parts.
MAX_PART_BYTES = 8 << 20


class AnnotatedUtterance(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A hypothesis with what the ensemble says of its text."""

    utterance_id: str
    revision: int
    is_final: bool
    text: str
    start_ms: int | None
    end_ms: int | None
    outputs: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: str | msgspec.UnsetType = msgspec.UNSET


_encode = msgspec.json.Encoder().encode


def encode_utterance(stream_id: str, utterance: AnnotatedUtterance) -> bytes:
    """The record of one annotated hypothesis."""
    head = _encode({"type": "utterance", "stream_id": stream_id})
    return head[:-1] + b"," + _encode(utterance)[1:]


def encode_transcript(stream_id: str, ended_by: EndedBy, utterances: Sequence[AnnotatedUtterance]) -> list[bytes]:
    """The records of a whole transcript: one, or as many as its size makes necessary."""
    parts: list[list[bytes]] = [[]]
    size_bytes = 0
    for utterance in map(_encode, utterances):
        if parts[-1] and size_bytes + len(utterance) > MAX_PART_BYTES:
            parts.append([])
            size_bytes = 0
        parts[-1].append(utterance)
        size_bytes += len(utterance)
    records: list[bytes] = []
    for place, part in enumerate(parts, 1):
        head: dict[str, Any] = {"type": "transcript", "stream_id": stream_id, "ended_by": ended_by}
        head |= {"part": place, "parts": len(parts)}
        records.append(_encode(head)[:-1] + b',"utterances":[' + b",".join(part) + b"]}")
    return records
