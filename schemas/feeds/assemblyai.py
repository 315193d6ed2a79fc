"""AssemblyAI's Universal-Streaming (v3): messages `Begin`, `Turn`, `Termination`, `Error`.

Source: assemblyai.com/docs, "Streaming Audio", "Message sequence breakdown". A turn is an utterance. `transcript` has
its finished words only; `words` has the one that is being said too. Where turns are formatted, a turn that has ended
comes again with its capitals and full stops: a second final, of a higher revision.
"""

from __future__ import annotations

import msgspec

from schemas.errors import BadRecord, Reason
from schemas.feeds.tracks import Event, Feed, hypothesis, joined, reported_error
from schemas.speech import Count, EndOfStream, decode_speech

_ALLOWED = 'AssemblyAI\'s messages: {"type": "Turn", ...}, Begin, Termination'
# Turns end in order; what is said of those before is late by more than anybody revises.
_MAX_TURNS = 4


class _Word(msgspec.Struct, gc=False):
    text: str
    start: Count
    end: Count


class _Turn(msgspec.Struct, gc=False):
    turn_order: Count
    end_of_turn: bool
    transcript: str
    words: list[_Word] = []


class _Type(msgspec.Struct, gc=False):
    """The messages of an error that come before a session begins have no type."""

    type: str | None = None
    error: object = None
    error_code: object = None


_type = msgspec.json.Decoder(_Type)
_turn = msgspec.json.Decoder(_Turn)


def read(value: bytes, feed: Feed) -> list[Event]:
    """The events in a message. Raises BadRecord."""
    message: _Type = decode_speech(value, _type, _ALLOWED)
    match message.type:
        case "Turn":
            return _read_turn(decode_speech(value, _turn, _ALLOWED), feed)
        case "Termination":
            return [EndOfStream(end_of_stream=True, stream_id=feed.stream_id)]
        case "Begin" if feed.tracks:
            # Its turns are counted from 0 again: nothing would tell them from those that were.
            why = "a session begins in a stream that has had one; each session needs a stream's id (key) of its own"
            raise BadRecord(Reason.BAD_EVENT, why)
        case "Begin" | "SpeechStarted":
            return []
        case "Error" | None if message.type or message.error is not None:
            raise reported_error("AssemblyAI", message.error, message.error_code)
        case None:
            raise BadRecord(Reason.BAD_EVENT, f"no type is in the message; allowed: {_ALLOWED}")
        case other:
            raise BadRecord(Reason.BAD_EVENT, f"type {other!r} is not known; allowed: {_ALLOWED}")


def _read_turn(turn: _Turn, feed: Feed) -> list[Event]:
    text = turn.transcript if turn.end_of_turn or not turn.words else joined(word.text for word in turn.words)
    track = feed.track(str(turn.turn_order))
    while len(feed.tracks) > _MAX_TURNS:
        del feed.tracks[next(iter(feed.tracks))]
    if not text.strip() and not track.revision:
        return []
    return [
        hypothesis(
            feed,
            track,
            str(turn.turn_order),
            text,
            is_final=turn.end_of_turn,
            start_ms=turn.words[0].start if turn.words else None,
            end_ms=turn.words[-1].end if turn.words else None,
        )
    ]
