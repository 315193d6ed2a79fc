"""Amazon Transcribe's streaming TranscriptEvent.

Source: docs.aws.amazon.com/transcribe, API reference, "TranscriptEvent" and "Result". A result keeps its ResultId from
the first partial to the one that is not; times are seconds. With channel identification each channel has results of
its own. It doesn't say when a stream ends.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from schemas.errors import BadRecord, Reason
from schemas.feeds.tracks import Event, Feed, Seconds, hypothesis, milliseconds
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


class _Message(msgspec.Struct, gc=False, rename="pascal"):
    """The event itself, or, as the SDKs for JavaScript print it, by its name."""

    transcript: _Transcript | None = None
    transcript_event: _TranscriptEvent | None = None


_message = msgspec.json.Decoder(_Message)


def read(value: bytes, feed: Feed) -> list[Event]:
    """The events in a message. Raises BadRecord."""
    message: _Message = decode_speech(value, _message, _ALLOWED)
    transcript = message.transcript_event.transcript if message.transcript_event else message.transcript
    if transcript is None:
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
