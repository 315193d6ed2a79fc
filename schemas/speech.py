"""Speech events: what a recognizer says to `<ensemble>.speech`, one hypothesis a record, keyed by the stream.

JSON: a hypothesis of an utterance, which a later revision replaces until one is final,

    {"stream_id": "call-7", "utterance_id": "3", "revision": 2, "is_final": false, "text": "good mor",
     "start_ms": 1200, "end_ms": 1900, "emitted_ms": 2020}

(times in milliseconds of the stream's audio, all optional), or the end of a stream, where the id may be left out:

    {"stream_id": "call-7", "end_of_stream": true}

The record's key is the stream's id, in UTF-8, so that a stream stays in one partition and in order. What other
recognizers send instead: `schemas.speech_feeds`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from schemas.errors import BadRecord, Reason
from schemas.json_values import JSON_ERRORS, json_refusal

MAX_ID_CHARACTERS = 256
_EVENT = '{"stream_id", "utterance_id", "revision", "is_final", "text", ...} or {"stream_id", "end_of_stream": true}'

Id = Annotated[str, Meta(min_length=1, max_length=MAX_ID_CHARACTERS)]
# Numbers that every JSON library reads exactly.
Count = Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]


class SpeechEvent(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False, kw_only=True):
    """What a recognizer makes of an utterance so far. `revision` counts up within the utterance; of an utterance's
    hypotheses a final one stands above all partial ones, and among equals the higher revision."""

    stream_id: Id
    utterance_id: Id
    revision: Count
    is_final: bool
    text: str
    start_ms: Count | None = None
    end_ms: Count | None = None
    emitted_ms: Count | None = None


class EndOfStream(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False, kw_only=True):
    """Nothing more is said in this stream; without an id in that of the record's key, in any feed."""

    end_of_stream: Literal[True]
    stream_id: Id | None = None
    emitted_ms: Count | None = None


class _Kind(msgspec.Struct, gc=False):
    end_of_stream: Any = None


_kind = msgspec.json.Decoder(_Kind)
_event = msgspec.json.Decoder(SpeechEvent)
_end = msgspec.json.Decoder(EndOfStream)
_json = msgspec.json.Encoder().encode


def decode_speech(value: bytes, decoder: msgspec.json.Decoder[Any], allowed: str) -> Any:
    """What `decoder` reads in a record's value. Raises BadRecord with `allowed`, what could stand there."""
    try:
        return decoder.decode(value)
    except JSON_ERRORS as err:
        behind = f"; allowed: {allowed}"
        raise json_refusal(
            value, err, wrong=Reason.BAD_EVENT, another_shape=behind, empty=behind, no_json=behind
        ) from err


def end_of_stream(value: bytes) -> EndOfStream | None:
    """The end that a record tells, in any feed; None where it tells something else. Raises BadRecord."""
    # Cheap before exact: almost no record is one.
    if b"end_of_stream" not in value or (said := decode_speech(value, _kind, _EVENT).end_of_stream) is None:
        return None
    if said is not True:
        message = f"end_of_stream: {_json(said).decode():.40} is not allowed; allowed: true"
        raise BadRecord(Reason.BAD_EVENT, message)
    end: EndOfStream = decode_speech(value, _end, _EVENT)
    return end


def decode_event(value: bytes) -> SpeechEvent:
    """The hypothesis in a record of Penstock's own feed. Raises BadRecord."""
    event: SpeechEvent = decode_speech(value, _event, _EVENT)
    if event.start_ms is not None and event.end_ms is not None and event.end_ms < event.start_ms:
        raise BadRecord(Reason.BAD_EVENT, f"end_ms {event.end_ms} is before start_ms {event.start_ms}")
    return event
