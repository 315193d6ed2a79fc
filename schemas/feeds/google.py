"""StreamingRecognizeResponse of Google Cloud Speech-to-Text, and of NVIDIA Riva, whose protocol is made after it.

Source: cloud.google.com/speech-to-text/docs/reference (v1 and v2); docs.nvidia.com/deeplearning/riva, riva_asr.proto.
As JSON of protobuf: names in either case, durations as "1.500s". A response has at most one final result, which
settles what was said last, and after it interim ones, which together are what is being said; Riva's words have times in
milliseconds, Google's results a resultEndTime. Neither says when a stream ends.
"""

from __future__ import annotations

import re

import msgspec

from schemas.errors import BadRecord, Reason
from schemas.feeds.tracks import (
    Channel,
    Event,
    Feed,
    Milliseconds,
    Seconds,
    Track,
    begin_session,
    hypothesis,
    joined,
    milliseconds,
    next_utterance,
    reported_error,
)
from schemas.speech import decode_speech

_ALLOWED = 'a StreamingRecognizeResponse: {"results": [{"alternatives": [{"transcript": ...}], "isFinal": ...}]}'


class _Word(msgspec.Struct, gc=False):
    start_time: Milliseconds | str | None = None
    startTime: Milliseconds | str | None = None  # noqa: N815 - as JSON of protobuf has it
    end_time: Milliseconds | str | None = None
    endTime: Milliseconds | str | None = None  # noqa: N815


class _Alternative(msgspec.Struct, gc=False):
    transcript: str = ""
    words: list[_Word] = []


class _Result(msgspec.Struct, gc=False):
    alternatives: list[_Alternative] = []
    is_final: bool = False
    isFinal: bool = False  # noqa: N815
    result_end_time: str | None = None
    resultEndTime: str | None = None  # noqa: N815
    result_end_offset: str | None = None
    resultEndOffset: str | None = None  # noqa: N815
    audio_processed: Seconds | None = None
    audioProcessed: Seconds | None = None  # noqa: N815
    channel_tag: Channel = 0
    channelTag: Channel = 0  # noqa: N815

    @property
    def final(self) -> bool:
        return self.is_final or self.isFinal

    @property
    def text(self) -> str:
        # An empty list of alternatives is a result without words, such as one of silence.
        return self.alternatives[0].transcript if self.alternatives else ""

    @property
    def start_ms(self) -> int | None:
        words = self.alternatives[0].words if self.alternatives else []
        return _time_ms(words[0].start_time, words[0].startTime) if words else None

    @property
    def end_ms(self) -> int | None:
        words = self.alternatives[0].words if self.alternatives else []
        told = self.result_end_time or self.resultEndTime or self.result_end_offset or self.resultEndOffset
        if told is not None:
            return _time_ms(told)
        if words and (end_ms := _time_ms(words[-1].end_time, words[-1].endTime)) is not None:
            return end_ms
        processed = self.audio_processed if self.audio_processed is not None else self.audioProcessed
        return None if processed is None else milliseconds(processed)


class _Response(msgspec.Struct, gc=False):
    results: list[_Result] = []
    error: object = None


_response = msgspec.json.Decoder(_Response)


def read(value: bytes, feed: Feed) -> list[Event]:
    """The events in a response, of each channel. Raises BadRecord."""
    response: _Response = decode_speech(value, _response, _ALLOWED)
    if response.error is not None:
        status = response.error if isinstance(response.error, dict) else {"message": response.error}
        raise reported_error("the recognizer", status.get("message"), status.get("status"), status.get("code"))
    channels: dict[int, list[_Result]] = {}
    for result in response.results:
        channels.setdefault(result.channel_tag or result.channelTag, []).append(result)
    return [event for channel, results in channels.items() for event in _read_channel(str(channel), results, feed)]


def _read_channel(name: str, results: list[_Result], feed: Feed) -> list[Event]:
    track = feed.track(name)
    events: list[Event] = []
    interim: list[_Result] = []
    for result in results:
        begin_session(feed, track, result.end_ms)
        end_ms = _in_stream(feed, result.end_ms)
        if end_ms is not None and end_ms <= track.settled_ms:
            continue  # settled before: a repeat
        if not result.final:
            interim.append(result)
        elif result.text.strip() or track.revision:
            events.append(_hypothesis(feed, name, track, [result], is_final=True))
            next_utterance(track)
        if result.final and end_ms is not None:
            track.settled_ms = end_ms
    if joined(result.text for result in interim):
        events.append(_hypothesis(feed, name, track, interim, is_final=False))
    return events


def _hypothesis(feed: Feed, name: str, track: Track, results: list[_Result], *, is_final: bool) -> Event:
    """Of results that follow each other. Where none says when it began: where the one before it ended."""
    if track.start_ms is None:
        told_ms = _in_stream(feed, results[0].start_ms)
        track.start_ms = track.settled_ms if told_ms is None else told_ms
    text = joined(result.text for result in results)
    end_ms = max((end for result in results if (end := _in_stream(feed, result.end_ms)) is not None), default=None)
    utterance_id = f"{name}/{track.utterance}"
    return hypothesis(feed, track, utterance_id, text, is_final=is_final, start_ms=track.start_ms, end_ms=end_ms)


def _in_stream(feed: Feed, time_ms: int | None) -> int | None:
    return None if time_ms is None else feed.stream_ms(time_ms)


def _time_ms(*told: int | str | None) -> int | None:
    """The first that is told: a number of milliseconds, or seconds as protobuf's JSON writes a duration."""
    time = next((each for each in told if each is not None), None)
    if isinstance(time, str):
        duration = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)s", time)
        if duration is None:
            raise BadRecord(Reason.BAD_EVENT, f'{time!r} is no duration; allowed: seconds, such as "1.500s"')
        return milliseconds(float(duration[1]))
    return None if time is None or time < 0 else time
