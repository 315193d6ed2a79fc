"""Amazon Transcribe's streaming TranscriptEvent.

Source: docs.aws.amazon.com/transcribe, API reference, "TranscriptEvent" and "Result". A result keeps its ResultId from
the first partial to the one that is not; times are seconds. With channel identification each channel has results of
its own. It doesn't say when a stream ends. An error is an event too, by the
exception's name where the SDKs for JavaScript print it, or the exception's Message alone.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from schemas.errors import BadRecord, Reason
from schemas.feeds.tracks import Event, Feed, Seconds, hypothesis, milliseconds, reported_error
from schemas.speech import Id, decode_speech

_ALLOWED = 'Transcribe\'s {"Transcript": {"Results": [{"ResultId": ..., "IsPartial": ..., "Alternatives": [...]}]}}'


class _Alternative(msgspec.Struct, gc=False, rename="pascal"):
    transcript: str = ""


class _Result(msgspec.Struct, gc=False, rename="pascal"):
    result_id: Id
    is_partial: bool
    alternatives: Annotated[list[_Alternative], Meta(min_length=1)]
    start_time: Seconds | None = None
    end_time: Seconds | None = None


class _Transcript(msgspec.Struct, gc=False, rename="pascal"):
    results: list[_Result] = []


class _TranscriptEvent(msgspec.Struct, gc=False, rename="pascal"):
    transcript: _Transcript


class _Exception(msgspec.Struct, gc=False, rename="pascal"):
    message: object = None


class _Message(msgspec.Struct, gc=False, rename="pascal"):
    """The event itself, or, as the SDKs for JavaScript print it, by its name."""

    transcript: _Transcript | None = None
    transcript_event: _TranscriptEvent | None = None
    message: object = None
    bad_request_exception: _Exception | None = None
    limit_exceeded_exception: _Exception | None = None
    internal_failure_exception: _Exception | None = None
    conflict_exception: _Exception | None = None
    service_unavailable_exception: _Exception | None = None

    def error(self) -> BadRecord | None:
        """What it reports, if anything."""
        for field in msgspec.structs.fields(self):
            told = getattr(self, field.name)
            if isinstance(told, _Exception):
                return reported_error("Transcribe", told.message, field.encode_name)
        return None if self.message is None else reported_error("Transcribe", self.message)


_message = msgspec.json.Decoder(_Message)


def read(value: bytes, feed: Feed) -> list[Event]:
    """The events in a message. Raises BadRecord."""
    message: _Message = decode_speech(value, _message, _ALLOWED)
    transcript = message.transcript_event.transcript if message.transcript_event else message.transcript
    if transcript is None:
        if (error := message.error()) is not None:
            raise error
        raise BadRecord(Reason.BAD_EVENT, f"no Transcript is in the message; allowed: {_ALLOWED}")
    return [event for result in transcript.results for event in _read_result(result, feed)]


def _read_result(result: _Result, feed: Feed) -> list[Event]:
    text = result.alternatives[0].transcript
    track = feed.track(result.result_id)
    if not text.strip() and not track.revision:
        if not result.is_partial:
            del feed.tracks[result.result_id]
        return []
    event = hypothesis(
        feed,
        track,
        result.result_id,
        text,
        is_final=not result.is_partial,
        start_ms=None if result.start_time is None else milliseconds(result.start_time),
        end_ms=None if result.end_time is None else milliseconds(result.end_time),
    )
    if event.is_final:
        del feed.tracks[result.result_id]
    return [event]
