"""Recorded speech, said again by any number of speakers at its own pace: the events of a recognizer, and when.

The recording (`asr_events.jsonl`) is a real recognizer's: Whisper tiny.en decoding a growing window of five LibriVox
clips (public domain) every 0.5 s. A speaker says the clips one after the other, each as an utterance, and begins with
another one than the speaker before, a little later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from schemas.speech import EndOfStream, SpeechEvent, decode_event

RECORDING = Path(__file__).with_name("asr_events.jsonl")

# Between two utterances of a speaker.
_PAUSE_MS = 500
# Over which the speakers' beginnings are spread: as long as a recognizer waits between two hypotheses.
_SPREAD_MS = 500


class Said(NamedTuple):
    """An event, and when it is sent, in milliseconds from the beginning."""

    due_ms: float
    stream_id: str
    event: SpeechEvent | EndOfStream

    @property
    def value(self) -> bytes:
        """The record's, JSON."""
        return msgspec.json.encode(self.event)


def read_recording(path: Path = RECORDING) -> list[list[SpeechEvent]]:
    """Each clip's events, in the order in which the recognizer emitted them."""
    clips: dict[str, list[SpeechEvent]] = {}
    for line in path.read_bytes().splitlines():
        event = decode_event(line)
        clips.setdefault(event.stream_id, []).append(event)
    return [*clips.values()]


def speech(
    clips: Sequence[Sequence[SpeechEvent]], *, speakers: int, seconds: float, name: str = "speaker"
) -> list[Said]:
    """What all of them say, in order of time. A speaker begins no utterance after `seconds`, finishes the one that is
    begun, and then ends the stream."""
    said = [
        each
        for number in range(speakers)
        for each in _speaker(clips, number, speakers=speakers, seconds=seconds, stream_id=f"{name}-{number}")
    ]
    return sorted(said, key=lambda each: each.due_ms)


def _speaker(
    clips: Sequence[Sequence[SpeechEvent]], number: int, *, speakers: int, seconds: float, stream_id: str
) -> Iterator[Said]:
    now_ms = _SPREAD_MS * number // speakers
    utterance = 0
    while utterance == 0 or now_ms < seconds * 1e3:
        clip = clips[(number + utterance) % len(clips)]
        for event in clip:
            own = msgspec.structs.replace(
                event,
                stream_id=stream_id,
                utterance_id=f"{stream_id}/{utterance}",
                start_ms=now_ms + (event.start_ms or 0),
                end_ms=now_ms + (event.end_ms or 0),
                emitted_ms=now_ms + (event.emitted_ms or 0),
            )
            yield Said(own.emitted_ms or 0, stream_id, own)
        now_ms += (clip[-1].emitted_ms or 0) + _PAUSE_MS
        utterance += 1
    yield Said(now_ms, stream_id, EndOfStream(end_of_stream=True, stream_id=stream_id, emitted_ms=now_ms))
