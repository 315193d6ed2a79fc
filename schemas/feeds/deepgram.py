"""Deepgram's live transcription: messages `Results`, `UtteranceEnd`, `SpeechStarted`, `Metadata`, `Error`.

Source: developers.deepgram.com, "Live Audio", "Endpointing & Interim Results", "Utterance End". `is_final` settles the
text of one stretch of audio, `speech_final` (a pause) the utterance, which may have several stretches; so does
`UtteranceEnd`, where words are followed by a gap. `Metadata` comes when the stream has been closed.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from schemas.errors import BadRecord, Reason
from schemas.feeds.tracks import (
    MAX_UTTERANCE_CHARACTERS,
    Channel,
    Event,
    Feed,
    Seconds,
    Track,
    begin_session,
    hypothesis,
    joined,
    milliseconds,
    next_utterance,
    reported_error,
)
from schemas.speech import EndOfStream, SpeechEvent, decode_speech

_ALLOWED = 'Deepgram\'s messages: {"type": "Results", ...}, UtteranceEnd, SpeechStarted, Metadata'


# The channel, of how many.
_Channels = Annotated[tuple[Channel, ...], Meta(min_length=1)]


class _Alternative(msgspec.Struct, gc=False):
    transcript: str


class _Channel(msgspec.Struct, gc=False):
    alternatives: Annotated[list[_Alternative], Meta(min_length=1)]


class _Results(msgspec.Struct, gc=False):
    start: Seconds
    duration: Seconds
    is_final: bool
    channel: _Channel
    speech_final: bool = False
    channel_index: _Channels = (0,)


class _UtteranceEnd(msgspec.Struct, gc=False):
    channel: _Channels = (0,)


class _Error(msgspec.Struct, gc=False):
    description: object = None
    message: object = None
    variant: object = None


class _Type(msgspec.Struct, gc=False):
    type: str


_type = msgspec.json.Decoder(_Type)
_results = msgspec.json.Decoder(_Results)
_utterance_end = msgspec.json.Decoder(_UtteranceEnd)
_error = msgspec.json.Decoder(_Error)


def read(value: bytes, feed: Feed) -> list[Event]:
    """The events in a message. Raises BadRecord."""
    match decode_speech(value, _type, _ALLOWED).type:
        case "Results":
            return [*_read_results(decode_speech(value, _results, _ALLOWED), feed)]
        case "UtteranceEnd":
            channel = decode_speech(value, _utterance_end, _ALLOWED).channel[0]
            return [*_closed(feed, str(channel))]
        case "Metadata":
            ends = [event for name in sorted(feed.tracks) for event in _closed(feed, name)]
            return [*ends, EndOfStream(end_of_stream=True, stream_id=feed.stream_id)]
        case "SpeechStarted":
            return []
        case "Error":
            error: _Error = decode_speech(value, _error, _ALLOWED)
            raise reported_error("Deepgram", error.description, error.message, error.variant)
        case other:
            raise BadRecord(Reason.BAD_EVENT, f"type {other!r} is not known; allowed: {_ALLOWED}")


def _read_results(results: _Results, feed: Feed) -> list[SpeechEvent]:
    name = str(results.channel_index[0])
    track = feed.track(name)
    end_ms = milliseconds(results.start + results.duration)
    begin_session(feed, track, end_ms)
    start_ms, end_ms = feed.stream_ms(milliseconds(results.start)), feed.stream_ms(end_ms)
    if end_ms <= track.settled_ms:
        return []  # a stretch that was settled before: a repeat
    text = joined([track.text, results.channel.alternatives[0].transcript])
    if track.start_ms is None and text:
        track.start_ms = start_ms
    if results.is_final:
        track.text, track.settled_ms = text, end_ms
        if results.speech_final or len(text) > MAX_UTTERANCE_CHARACTERS:
            return _closed(feed, name)
    return [_hypothesis(feed, name, track, text, end_ms=end_ms)] if text else []


def _closed(feed: Feed, name: str) -> list[SpeechEvent]:
    """The utterance as it is, final."""
    track = feed.track(name)
    if not track.text and not track.revision:
        return []
    event = _hypothesis(feed, name, track, track.text, end_ms=track.settled_ms, is_final=True)
    next_utterance(track)
    return [event]


def _hypothesis(feed: Feed, name: str, track: Track, text: str, *, end_ms: int, is_final: bool = False) -> SpeechEvent:
    utterance_id = f"{name}/{track.utterance}"
    return hypothesis(feed, track, utterance_id, text, is_final=is_final, start_ms=track.start_ms, end_ms=end_ms)
