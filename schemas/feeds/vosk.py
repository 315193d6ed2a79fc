"""Vosk's results, as KaldiRecognizer returns them and vosk-server sends them.

Source: alphacephei.com/vosk, and vosk-api, `Result`, `PartialResult`, `FinalResult`. `{"partial": "..."}` is what is
being said, `{"text": "...", "result": [words]}` settles it; with several alternatives asked for, the best stands first.
Words have times in seconds where they were asked for. It doesn't say when a stream ends.
"""

from __future__ import annotations

import msgspec

from schemas.errors import BadRecord, Reason
from schemas.feeds.tracks import Event, Feed, Seconds, begin_session, hypothesis, milliseconds, next_utterance
from schemas.speech import decode_speech

_ALLOWED = 'Vosk\'s {"partial": "..."} or {"text": "...", "result": [...]}'
# Vosk has one channel.
_CHANNEL = "0"


class _Word(msgspec.Struct, gc=False):
    start: Seconds
    end: Seconds


class _Alternative(msgspec.Struct, gc=False):
    text: str
    result: list[_Word] = []


class _Message(msgspec.Struct, gc=False):
    partial: str | None = None
    partial_result: list[_Word] = []
    text: str | None = None
    result: list[_Word] = []
    alternatives: list[_Alternative] = []


_message = msgspec.json.Decoder(_Message)


def read(value: bytes, feed: Feed) -> list[Event]:
    """The events in a message. Raises BadRecord."""
    message: _Message = decode_speech(value, _message, _ALLOWED)
    if message.partial is not None:
        return _hypothesis(feed, message.partial, message.partial_result, is_final=False)
    if message.alternatives:
        best = message.alternatives[0]
        return _hypothesis(feed, best.text, best.result, is_final=True)
    if message.text is not None:
        return _hypothesis(feed, message.text, message.result, is_final=True)
    raise BadRecord(Reason.BAD_EVENT, f"neither partial nor text is in the message; allowed: {_ALLOWED}")


def _hypothesis(feed: Feed, text: str, words: list[_Word], *, is_final: bool) -> list[Event]:
    track = feed.track(_CHANNEL)
    if words:
        begin_session(feed, track, milliseconds(words[-1].end))
    end_ms = feed.stream_ms(milliseconds(words[-1].end)) if words else None
    if end_ms is not None and end_ms <= track.settled_ms:
        return []  # settled before: a repeat
    # Silence: an utterance that was never begun.
    if not text.strip() and (not is_final or not track.revision):
        return []
    if words and track.start_ms is None:
        track.start_ms = feed.stream_ms(milliseconds(words[0].start))
    event = hypothesis(
        feed, track, str(track.utterance), text, is_final=is_final, start_ms=track.start_ms, end_ms=end_ms
    )
    if is_final:
        next_utterance(track)
        track.settled_ms = end_ms or track.settled_ms
    return [event]
