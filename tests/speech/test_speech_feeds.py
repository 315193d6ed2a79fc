"""Each recognizer's messages, written by hand after its documentation, and the events that they are."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.speech.desk import Desk
from schemas.errors import BadRecord, Reason
from schemas.feeds.tracks import Event, Feed
from schemas.records import InputRecord, Source
from schemas.speech import EndOfStream, SpeechEvent
from schemas.speech_feeds import FeedName, read_events
from tests.speech.speech_world import make_settings

EXAMPLES = Path(__file__).parent / "examples"

# Utterance, revision, final or not, text, from and to.
Said = list[tuple[str, int, bool, str, int | None, int | None] | str]
EXPECTED: dict[str, Said] = {
    "penstock": [("0", 0, False, "good", 0, 500), ("0", 1, True, "Good morning.", 0, 900), "end"],
    "deepgram": [
        ("0/0", 0, False, "good", 0, 1000),
        ("0/0", 1, False, "Good morning,", 0, 2000),
        ("0/0", 2, False, "Good morning, how", 0, 2800),
        ("0/0", 3, True, "Good morning, how are you?", 0, 3500),
        ("0/1", 0, False, "Fine.", 4500, 5500),
        ("0/1", 1, True, "Fine.", 4500, 5500),
        ("0/2", 0, False, "Bye", 5500, 6500),
        ("0/2", 1, True, "Bye", 5500, 6500),
        "end",
    ],
    "assemblyai": [
        ("0", 0, False, "good", 240, 480),
        ("0", 1, False, "good morn", 240, 700),
        ("0", 2, True, "good morning", 240, 900),
        ("0", 3, True, "Good morning.", 240, 900),
        ("1", 0, True, "Bye.", 1200, 1500),
        "end",
    ],
    "google": [
        ("0/0", 0, False, "good mor", 0, 700),
        ("0/0", 1, True, "good morning", 0, 900),
        ("0/1", 0, True, "how are", 900, 1800),
        ("0/2", 0, False, "you", 1800, 2000),
        ("0/2", 1, True, "you", 1800, 2200),
        "end",
    ],
    "riva": [
        ("1/0", 0, False, "good", 0, 500),
        ("1/0", 1, False, "good mor", 0, 800),
        ("1/0", 2, True, "Good morning.", 0, 900),
        ("1/1", 0, True, "Bye.", 900, 2000),
        "end",
    ],
    "aws-transcribe": [
        ("8f2a-1", 0, False, "Good", 110, 500),
        ("8f2a-1", 1, True, "Good morning.", 110, 900),
        # The repeat of a final is a lower revision, which the transcript drops.
        ("8f2a-1", 0, True, "Good morning.", 110, 900),
        ("8f2a-2", 0, True, "Bye.", 1200, 1500),
        "end",
    ],
    "vosk": [
        ("0", 0, False, "good", None, None),
        ("0", 1, False, "good morning", 120, 900),
        ("0", 2, True, "good morning", 120, 900),
        ("1", 0, False, "by", None, None),
        ("1", 1, True, "bye", 1200, 1500),
        "end",
    ],
}


def read(feed_name: FeedName, value: bytes | None, feed: Feed, *, key: bytes = b"call-7") -> list[Event]:
    record = InputRecord(Source("talk.speech", 0, 0), key, value, [])
    return read_events(record, feed_name, feed, max_text_bytes=1_000)


@pytest.mark.parametrize("feed_name", get_args(FeedName))
def test_messages_are_these_events(feed_name: FeedName) -> None:
    feed = Feed("call-7")
    said: Said = []
    for line in (EXAMPLES / f"{feed_name}.jsonl").read_bytes().splitlines():
        # What is remembered of a stream is kept between two messages.
        feed = msgspec.convert(msgspec.to_builtins(feed), Feed)
        for event in read(feed_name, line, feed):
            assert event.stream_id in ("call-7", None)
            if isinstance(event, EndOfStream):
                said.append("end")
            else:
                place = (event.utterance_id, event.revision, event.is_final)
                said.append((*place, event.text, event.start_ms, event.end_ms))
    assert said == EXPECTED[feed_name]


def test_channels_have_utterances_of_their_own() -> None:
    feed = Feed("call-7")
    message = (
        '{"type": "Results", "channel_index": [%d, 2], "start": 0, "duration": 1, "is_final": false, "channel": %s}'
    )
    channel = '{"alternatives": [{"transcript": "hm"}]}'
    found = [read("deepgram", (message % (number, channel)).encode(), feed) for number in (0, 1, 0)]
    assert [(event.utterance_id, event.revision) for [event] in found if isinstance(event, SpeechEvent)] == [
        ("0/0", 0),
        ("1/0", 0),
        ("0/0", 1),
    ]


# The second at which it begins, and ends, a tenth of one later.
_SESSIONS: dict[FeedName, str] = {
    "deepgram": '{"type": "Results", "start": %d, "duration": 0.1, "is_final": true, "speech_final": %s,'
    ' "channel": {"alternatives": [{"transcript": "hm"}]}}',
    "google": '{"results": [{"alternatives": [{"transcript": "hm"}], "resultEndTime": "%d.1s", "isFinal": %s}]}',
}


@pytest.mark.parametrize("feed_name", [*_SESSIONS])
def test_a_session_that_is_begun_anew_goes_on_with_other_utterances(feed_name: FeedName) -> None:
    feed = Feed("call-7")
    said: list[tuple[str, int, int | None]] = []
    for second, final in [(290, "true"), (291, "false"), (290, "true"), (1, "false"), (2, "true"), (2, "true")]:
        feed = msgspec.convert(msgspec.to_builtins(feed), Feed)
        for event in read(feed_name, (_SESSIONS[feed_name] % (second, final)).encode(), feed):
            assert isinstance(event, SpeechEvent)
            said.append((event.utterance_id, event.revision, event.end_ms))
    # Where the one before was settled: Deepgram settles what is not the end of an utterance, too.
    before_ms = 291_100 if feed_name == "deepgram" else 290_100
    assert said == [
        ("0/0", 0, 290_100),
        ("0/1", 0, 291_100),
        ("0/2", 0, before_ms + 1_100),
        ("0/2", 1, before_ms + 2_100),
    ]


def test_a_session_of_vosk_that_is_begun_anew_goes_on_with_other_utterances() -> None:
    feed = Feed("call-7")
    message = '{"text": "hm", "result": [{"start": %d, "end": %d}]}'
    said = [read("vosk", (message % place).encode(), feed) for place in [(289, 290), (289, 290), (0, 1), (1, 2)]]
    assert [
        (event.utterance_id, event.start_ms, event.end_ms)
        for events in said
        for event in events
        if isinstance(event, SpeechEvent)
    ] == [("0", 289_000, 290_000), ("1", 290_000, 291_000), ("2", 291_000, 292_000)]


def test_sessions_that_can_not_be_told_apart_are_told() -> None:
    feed = Feed("call-7")
    assert read("assemblyai", b'{"type": "Begin"}', feed) == []
    read("assemblyai", b'{"type": "Turn", "turn_order": 0, "end_of_turn": true, "transcript": "hm"}', feed)
    with pytest.raises(BadRecord, match="each session needs a stream's id"):
        read("assemblyai", b'{"type": "Begin"}', feed)


def test_empty_results_are_no_utterance_until_something_is_said() -> None:
    feed = Feed("call-7")
    message = (
        '{"Transcript": {"Results": [{"ResultId": "a", "IsPartial": %s, "Alternatives": [{"Transcript": "%s"}]}]}}'
    )

    def said(partial: str, text: str) -> list[tuple[int, str]]:
        events = read("aws-transcribe", (message % (partial, text)).encode(), feed)
        return [(event.revision, event.text) for event in events if isinstance(event, SpeechEvent)]

    assert [said("true", ""), said("true", " "), said("false", ""), feed.tracks] == [[], [], [], {}]
    assert [said("true", ""), said("true", "hm"), said("false", ""), feed.tracks] == [[], [(0, "hm")], [(1, "")], {}]


def test_an_utterance_without_end_is_ended() -> None:
    feed = Feed("call-7")
    message = '{"type": "Results", "start": %d, "duration": 1, "is_final": true, "channel": %s}'
    channel = '{"alternatives": [{"transcript": "%s"}]}' % ("word " * 100)
    finals = 0
    for second in range(100):
        record = InputRecord(Source("s", 0, 0), b"call-7", (message % (second, channel)).encode(), [])
        [event] = read_events(record, "deepgram", feed, max_text_bytes=65_536)
        assert isinstance(event, SpeechEvent)
        assert len(event.text) < 9_000
        finals += event.is_final
    assert finals == 5


@pytest.mark.parametrize(
    ("feed_name", "value", "reason", "message"),
    [
        ("penstock", None, Reason.NULL_VALUE, "tombstone"),
        ("penstock", b"{", Reason.NOT_JSON, "allowed: {"),
        ("penstock", b"", Reason.NOT_JSON, 'the value is empty; allowed: {"stream_id"'),
        (
            "penstock",
            rb'{"text": "\ud800"}',
            Reason.BAD_EVENT,
            r"\ud800 is half of a surrogate pair: send both or neither",
        ),
        ("penstock", b'\xef\xbb\xbf{"text": "a"}', Reason.NOT_JSON, "byte-order mark"),
        ("vosk", b" ", Reason.NOT_JSON, "the value is empty; allowed: Vosk's {"),
        ("vosk", rb'{"text": "\uDC00"}', Reason.BAD_EVENT, r"\uDC00 is half of a surrogate pair"),
        ("penstock", b'{"stream_id": "call-7"}', Reason.BAD_EVENT, "missing required field `utterance_id`"),
        ("penstock", b'{"stream_id": "call-7", "speaker": 1}', Reason.BAD_EVENT, "unknown field `speaker`"),
        (
            "penstock",
            b'{"end_of_stream": false}',
            Reason.BAD_EVENT,
            "end_of_stream: false is not allowed; allowed: true",
        ),
        ("penstock", b'{"text": "\xff"}', Reason.NOT_UTF8, "the value is not UTF-8: invalid start byte at its byte 10"),
        ("penstock", b'{"stream_id": "call-8", "end_of_stream": true}', Reason.BAD_KEY, "must be the same"),
        ("penstock", b'{"end_of_stream":' + b"[" * 100_000, Reason.BAD_EVENT, "nested too deeply"),
        ("deepgram", b'{"type": "Results"}', Reason.BAD_EVENT, "missing required field"),
        ("deepgram", b'{"type": "Eror"}', Reason.BAD_EVENT, "'Eror' is not known; allowed: Deepgram's messages"),
        ("assemblyai", b'{"x": 1}', Reason.BAD_EVENT, "no type is in the message; allowed: AssemblyAI's messages"),
        ("riva", b'{"results": [{"result_end_time": "x", "is_final": true}]}', Reason.BAD_EVENT, "no duration"),
        ("aws-transcribe", b"{}", Reason.BAD_EVENT, "no Transcript"),
        ("vosk", b"{}", Reason.BAD_EVENT, "neither partial nor text"),
        ("vosk", b'{"text": "%s"}' % (b"a" * 1_001), Reason.TEXT_TOO_LARGE, "(speech.max_text_bytes)"),
    ],
)
def test_what_is_no_message_says_what_would_be(
    feed_name: FeedName, value: bytes | None, reason: Reason, message: str
) -> None:
    with pytest.raises(BadRecord) as found:
        read(feed_name, value, Feed("call-7"))
    assert (found.value.reason, message in found.value.message) == (reason, True), found.value.message


@pytest.mark.parametrize(
    ("feed_name", "value", "message"),
    [
        ("deepgram", b'{"type": "Error", "description": "quota", "variant": "x"}', "Deepgram reports an error: quota"),
        ("deepgram", b'{"type": "Error"}', "Deepgram reports an error: it does not say which"),
        (
            "assemblyai",
            b'{"type": "Error", "error_code": 3006, "error": "Bad"}',
            "AssemblyAI reports an error: Bad",
        ),
        ("assemblyai", b'{"error": "Not Authorized"}', "AssemblyAI reports an error: Not Authorized"),
        ("google", b'{"error": {"code": 11, "message": "late"}}', "the recognizer reports an error: late"),
        ("riva", b'{"error": {"code": 11}}', "the recognizer reports an error: 11"),
        ("aws-transcribe", b'{"Message": "Bad signature"}', "Transcribe reports an error: Bad signature"),
        (
            "aws-transcribe",
            b'{"LimitExceededException": {"Message": ""}}',
            "Transcribe reports an error: LimitExceededException",
        ),
    ],
)
def test_an_error_of_the_recognizer_is_told_in_its_words(feed_name: FeedName, value: bytes, message: str) -> None:
    with pytest.raises(BadRecord) as found:
        read(feed_name, value, Feed("call-7"))
    assert (found.value.reason, found.value.message) == (Reason.BAD_EVENT, message)


@pytest.mark.parametrize("feed_name", get_args(FeedName))
def test_an_end_without_an_id_is_of_the_stream_of_its_key(feed_name: FeedName) -> None:
    assert read(feed_name, b'{"end_of_stream": true}', Feed("call-7")) == [EndOfStream(end_of_stream=True)]


def test_an_event_must_not_end_before_it_begins() -> None:
    event = {"stream_id": "call-7", "utterance_id": "0", "revision": 0, "is_final": True, "text": "a"}
    value = msgspec.json.encode(event | {"start_ms": 2, "end_ms": 1})
    with pytest.raises(BadRecord, match="end_ms 1 is before start_ms 2"):
        read("penstock", value, Feed("call-7"))


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
_NAMES = st.sampled_from(
    ["type", "results", "alternatives", "transcript", "Transcript", "Results", "words", "text", "partial", "isFinal"]
)
_JSON = st.recursive(_SCALARS, lambda part: st.lists(part, max_size=3) | st.dictionaries(_NAMES, part, max_size=4))


@settings(max_examples=40)
@given(feed_name=st.sampled_from(get_args(FeedName)), value=_JSON.map(msgspec.json.encode) | st.binary(max_size=40))
def test_rubbish_is_a_bad_record_and_nothing_else(feed_name: FeedName, value: bytes) -> None:
    with contextlib.suppress(BadRecord):
        read(feed_name, value, Feed("call-7"))


# `@` is where a number stands.
_NUMBERS: list[tuple[FeedName, str]] = [
    ("penstock", '{"stream_id": "a", "utterance_id": "0", "revision": @, "is_final": true, "text": "hm"}'),
    (
        "penstock",
        '{"stream_id": "a", "utterance_id": "0", "revision": 0, "is_final": true, "text": "hm", "start_ms": @}',
    ),
    (
        "deepgram",
        '{"type": "Results", "start": @, "duration": @, "is_final": true, "speech_final": true,'
        ' "channel": {"alternatives": [{"transcript": "hm"}]}}',
    ),
    (
        "deepgram",
        '{"type": "Results", "start": 0, "duration": 1, "is_final": true, "speech_final": true, "channel_index": [@],'
        ' "channel": {"alternatives": [{"transcript": "hm"}]}}',
    ),
    ("deepgram", '{"type": "UtteranceEnd", "channel": [@]}'),
    ("assemblyai", '{"type": "Turn", "turn_order": @, "end_of_turn": true, "transcript": "hm"}'),
    (
        "assemblyai",
        '{"type": "Turn", "turn_order": 0, "end_of_turn": true, "transcript": "hm",'
        ' "words": [{"text": "hm", "start": @, "end": @}]}',
    ),
    ("google", '{"results": [{"alternatives": [{"transcript": "hm"}], "isFinal": true, "resultEndTime": "@s"}]}'),
    ("google", '{"results": [{"alternatives": [{"transcript": "hm"}], "isFinal": true, "channelTag": @}]}'),
    ("riva", '{"results": [{"alternatives": [{"transcript": "hm"}], "is_final": true, "audio_processed": @}]}'),
    (
        "riva",
        '{"results": [{"alternatives": [{"transcript": "hm", "words": [{"start_time": @, "end_time": @}]}],'
        ' "is_final": true}]}',
    ),
    (
        "aws-transcribe",
        '{"Transcript": {"Results": [{"ResultId": "a", "IsPartial": false, "StartTime": @, "EndTime": @,'
        ' "Alternatives": [{"Transcript": "hm"}]}]}}',
    ),
    ("vosk", '{"text": "hm", "result": [{"start": @, "end": @}]}'),
]
_EXTREMES = ["0", "-1", "-1e-9", str(10**20), str(-(10**20)), str((1 << 53) - 1), "9" * 400, "9" * 5_000]
_EXTREMES += ["1e9", "1e308", "1e999", "NaN", "Infinity", "-Infinity", "0.1", "1e-320"]


@pytest.mark.parametrize(("feed_name", "message"), _NUMBERS)
def test_extreme_numbers_are_events_that_can_be_kept_or_bad_records(feed_name: FeedName, message: str) -> None:
    for number in _EXTREMES:
        desk = Desk(make_settings(feed=feed_name))
        value = message.replace("@", number).encode()
        for offset in (0, 1):
            record = InputRecord(Source("talk.speech", 0, offset), b"a", value, [])
            for sent in desk.speech(record, now_s=0, now_ms=0):
                assert sent.record.topic in ("talk.requests", "talk.dead-letters")
        kept = {each.record.key: each.record.value for each in desk.writes() if each.record.value is not None}
        Desk(make_settings(feed=feed_name)).load(kept.items(), now_s=0)
