"""Speech events out of a record, whichever recognizer's messages the topic carries.

Penstock's own shape names stream, utterance and revision. In every other the record's key is the stream's id and the
value a message of the recognizer as it came; what those leave out follows from the messages before (`Feed`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

from schemas.errors import BadRecord, Reason
from schemas.feeds import assemblyai, aws_transcribe, deepgram, google, vosk
from schemas.feeds.tracks import Event, Feed
from schemas.json_values import why_not_utf8
from schemas.records import InputRecord
from schemas.speech import MAX_ID_CHARACTERS, SpeechEvent, decode_event, end_of_stream

FeedName = Literal["penstock", "deepgram", "assemblyai", "google", "aws-transcribe", "vosk", "riva"]

_READERS: Mapping[str, Callable[[bytes, Feed], list[Event]]] = {
    "deepgram": deepgram.read,
    "assemblyai": assemblyai.read,
    "google": google.read,
    "aws-transcribe": aws_transcribe.read,
    "vosk": vosk.read,
    "riva": google.read,
}
assert {*_READERS, "penstock"} == set(get_args(FeedName))


def stream_of(record: InputRecord) -> str:
    """The stream that a record belongs to: its key. Raises BadRecord."""
    if record.key is None or not record.key:
        raise BadRecord(Reason.BAD_KEY, "the record has no key; the key is the stream's id")
    try:
        stream_id = record.key.decode()
    except UnicodeDecodeError as err:
        raise BadRecord(Reason.BAD_KEY, f"the key is not UTF-8: {why_not_utf8(err)}; it is the stream's id") from err
    if len(stream_id) > MAX_ID_CHARACTERS:
        message = f"the key has {len(stream_id)} characters; a stream's id has at most {MAX_ID_CHARACTERS}"
        raise BadRecord(Reason.BAD_KEY, message)
    return stream_id


def read_events(record: InputRecord, feed_name: FeedName, feed: Feed, *, max_text_bytes: int) -> list[Event]:
    """The events in a record, in order; none where its message is of no interest. Changes `feed`, also where it then
    raises BadRecord: no event of such a record counts."""
    if record.value is None:
        raise BadRecord(Reason.NULL_VALUE, "the record has no value (a tombstone)")
    end = end_of_stream(record.value)
    if end is not None:
        events: list[Event] = [end]
    elif feed_name == "penstock":
        events = [decode_event(record.value)]
    else:
        events = _READERS[feed_name](record.value, feed)
    for event in events:
        if event.stream_id not in (feed.stream_id, None):
            message = f"the key is {feed.stream_id!r}, stream_id {event.stream_id!r}; they must be the same"
            raise BadRecord(Reason.BAD_KEY, message)
        if isinstance(event, SpeechEvent) and (size_bytes := len(event.text.encode())) > max_text_bytes:
            message = f"the text has {size_bytes} bytes, allowed are {max_text_bytes} (speech.max_text_bytes)"
            raise BadRecord(Reason.TEXT_TOO_LARGE, message)
    return events
