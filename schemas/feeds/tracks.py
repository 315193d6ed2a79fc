"""What a reader of a recognizer's messages must remember of a stream: utterances and revisions where the recognizer
numbers neither, and what was settled already.

It is kept with the stream's state, so a reader is a function of a message and of this.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta

from schemas.errors import BadRecord, Reason
from schemas.speech import Count, EndOfStream, SpeechEvent

# An utterance that never ends is ended here: ten minutes of speech.
MAX_UTTERANCE_CHARACTERS = 8_000
# What a producer sends again reaches back some seconds; times that go back further are another session's.
REPEATED_MS = 10_000
# Times of a stream stay below this, whatever its sessions say.
_MOST_SESSIONS_MS = 1 << 52
# Turns, or results, that are begun and not final.
_MAX_OPEN = 64

# Structs made in code are not validated: what a recognizer counts must be within bounds when it is read.
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Milliseconds = Annotated[int, Meta(ge=-(10**12), le=10**12)]
Channel = Count
Event = SpeechEvent | EndOfStream


class Track(msgspec.Struct, array_like=True, omit_defaults=True):
    """An utterance in the making: its number, its next revision, what of its text is settled; and up to where its
    channel is settled at all."""

    utterance: int = 0
    revision: int = 0
    text: str = ""
    start_ms: int | None = None
    settled_ms: int = 0


class Feed(msgspec.Struct, array_like=True, omit_defaults=True):
    """Of a stream: a track for each channel, or for each result that is not final yet; and where in the stream the
    recognizer's session began, whose times count from there."""

    stream_id: str
    tracks: dict[str, Track] = {}
    session_ms: int = 0

    def track(self, name: str) -> Track:
        """The track of that name, a new one where there is none."""
        if name not in self.tracks:
            while len(self.tracks) >= _MAX_OPEN:
                del self.tracks[next(iter(self.tracks))]
            self.tracks[name] = Track(settled_ms=self.session_ms)
        return self.tracks[name]

    def stream_ms(self, session_ms: int) -> int:
        """A time of the recognizer's session, in the stream."""
        return self.session_ms + session_ms


def begin_session(feed: Feed, track: Track, end_ms: int | None) -> None:
    """Where what ends at `end_ms` ends far before what is settled: the recognizer has begun a session anew, which goes
    on where the one before ended, with other utterances."""
    if end_ms is None or feed.session_ms + end_ms >= track.settled_ms - REPEATED_MS:
        return
    feed.session_ms = min(max(each.settled_ms for each in feed.tracks.values()), _MOST_SESSIONS_MS)
    for each in feed.tracks.values():
        each.settled_ms = feed.session_ms
        if each.revision or each.text:
            next_utterance(each)


def hypothesis(
    feed: Feed, track: Track, utterance_id: str, text: str, *, is_final: bool, start_ms: int | None, end_ms: int | None
) -> SpeechEvent:
    """The next revision of a track's utterance."""
    event = SpeechEvent(
        stream_id=feed.stream_id,
        utterance_id=utterance_id,
        revision=track.revision,
        is_final=is_final,
        text=text,
        start_ms=start_ms,
        end_ms=max(start_ms or 0, end_ms) if end_ms is not None else None,
    )
    track.revision += 1
    return event


def next_utterance(track: Track) -> None:
    """What comes next belongs to another utterance."""
    track.utterance += 1
    track.revision = 0
    track.text = ""
    track.start_ms = None


def reported_error(recognizer: str, *said: object) -> BadRecord:
    """What to say of a recognizer's message of an error: the first of its fields that says something."""
    what = next((str(each) for each in said if each not in (None, "")), "it does not say which")
    return BadRecord(Reason.BAD_EVENT, f"{recognizer} reports an error: {what}")


def joined(pieces: Iterable[str]) -> str:
    """Texts that were said one after the other, with one space between them."""
    return " ".join(stripped for piece in pieces if (stripped := piece.strip()))


def milliseconds(seconds: float) -> int:
    """Recognizers count in seconds."""
    return round(seconds * 1e3)
