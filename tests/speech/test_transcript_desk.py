"""What becomes of each kind of event, result and silence, one at a time."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from pipeline.topics import MAX_RECORD_BYTES
from schemas.feeds.tracks import Feed
from schemas.headers import original_headers, read_cause
from schemas.records import Headers, Source
from schemas.speech import SpeechEvent
from schemas.transcripts import AnnotatedUtterance, encode_transcript
from stages.transcripts import Ask, Head, Stream
from tests.speech.speech_world import World, answer, end, event, failed, make_settings


def told(world: World) -> list[tuple[str, int, bool, str]]:
    """Utterances as they came: id, revision, final or not, and the text that the annotation is of."""
    return [
        (each["utterance_id"], each["revision"], each["is_final"], each["outputs"]["m"][0]["label"])
        for each in world.transcripts
        if each["type"] == "utterance"
    ]


def said(*values: bytes, answers: Any = answer, **speech: Any) -> World:
    """Each event's results are there before the next event comes."""
    world = World(make_settings(**speech), answers=answers)
    for value in values:
        world.say(value)
        world.read("speech")
        world.settle()
    return world


def reasons(world: World) -> list[str | None]:
    return [cause.reason if (cause := read_cause(each.headers)) else None for each in world.letters]


def test_a_noise_is_annotated_as_any_text() -> None:
    """Consumers find outputs of the same shape; what they are worth, the text says."""
    world = said(event("a", "0", 0, "hm"), event("a", "0", 1, "", final=True), end("a"))
    assert told(world) == [("0", 0, False, "hm"), ("0", 1, True, "")]
    [utterance] = world.transcripts[-1]["utterances"]
    assert (utterance["text"], utterance["outputs"]["m"][0]["label"]) == ("", "")


def test_a_stream_from_its_first_word_to_its_transcript() -> None:
    world = said(
        event("a", "0", 0, "good mor", start_ms=0, end_ms=500),
        event("a", "0", 1, "Good morning.", final=True, start_ms=0, end_ms=900),
        end("a"),
    )
    assert told(world) == [("0", 0, False, "good mor"), ("0", 1, True, "Good morning.")]
    assert json.loads(world.raw[0]) == {
        "type": "utterance",
        "stream_id": "a",
        "utterance_id": "0",
        "revision": 0,
        "is_final": False,
        "text": "good mor",
        "start_ms": 0,
        "end_ms": 500,
        "outputs": {"m": [{"label": "good mor", "score": 1.1429}]},
    }
    final = {name: value for name, value in json.loads(world.raw[1]).items() if name not in ("type", "stream_id")}
    assert json.loads(world.raw[2]) == {
        "type": "transcript",
        "stream_id": "a",
        "ended_by": "event",
        "part": 1,
        "parts": 1,
        "utterances": [final],
    }
    assert len(world.raw) == 3


def test_requests_say_whose_they_are() -> None:
    world = said(event("a", "u/1", 3, "hm"), event("a", "u/1", 4, "Hm.", final=True), partial_budget_ms=250)
    assert world.requests == [
        (
            "hm",
            {
                "ce_id": b"a/u/1/3",
                "penstock.utterance": b"u/1",
                "penstock.revision": b"3",
                "penstock.final": b"false",
                "ce_expirytime": b"1970-01-01T00:00:00.250+00:00",
            },
        ),
        (
            "Hm.",
            {
                "ce_id": b"a/u/1/4",
                "penstock.utterance": b"u/1",
                "penstock.revision": b"4",
                "penstock.final": b"true",
            },
        ),
    ]


def test_stale_and_repeated_revisions_are_dropped() -> None:
    world = said(
        event("a", "0", 2, "two"),
        event("a", "0", 1, "one"),
        event("a", "0", 2, "two"),
        event("a", "0", 1, "the end", final=True),
        event("a", "0", 9, "too late"),
        event("a", "0", 1, "the end", final=True),
    )
    assert [text for text, _ in world.requests] == ["two", "the end"]
    assert world.letters == []


def test_a_final_may_be_corrected_by_a_higher_one() -> None:
    world = said(
        event("a", "0", 1, "good morning", final=True), event("a", "0", 2, "Good morning.", final=True), end("a")
    )
    assert [each["text"] for each in world.transcripts[-1]["utterances"]] == ["Good morning."]


def test_a_text_that_did_not_change_is_not_asked_again() -> None:
    world = said(event("a", "0", 0, "hm"), event("a", "0", 1, "hm"), event("a", "0", 2, "hm", final=True))
    assert len(world.requests) == 1
    assert told(world) == [("0", 0, False, "hm"), ("0", 1, False, "hm"), ("0", 2, True, "hm")]


def test_a_text_that_is_on_its_way_is_asked_again_only_as_a_final() -> None:
    world = World(make_settings())
    for revision, final in enumerate((False, False, True)):
        world.say(event("a", "0", revision, "hm", final=final))
        world.read("speech")
    assert [headers["penstock.final"] for _, headers in world.requests] == [b"false", b"true"]
    world.settle()
    assert told(world) == [("0", 2, True, "hm")]


def test_of_what_is_heard_at_once_only_the_newest_is_asked() -> None:
    world = World(make_settings())
    world.say(event("a", "0", 0, "x"), event("a", "0", 1, "y"), event("a", "1", 0, "z"), event("a", "0", 2, "x"))
    world.read("speech")
    assert [text for text, _ in world.requests] == ["z", "x"]
    world.settle()
    assert told(world) == [("1", 0, False, "z"), ("0", 2, False, "x")]


def test_a_result_that_comes_late_is_not_put_on_the_newer_text() -> None:
    world = World(make_settings())
    for revision in range(3):
        world.say(event("a", "0", revision, f"text {revision}"))
        world.read("speech")
    world.read("result", 1)
    assert told(world) == [("0", 0, False, "text 0")]
    # The newest overtakes the one before it, which is of no use then.
    world.logs["result"][1], world.logs["result"][2] = world.logs["result"][2], world.logs["result"][1]
    world.settle()
    assert told(world) == [("0", 0, False, "text 0"), ("0", 2, False, "text 2")]


def test_what_is_not_final_at_the_end_is_asked_as_if_it_were() -> None:
    def superseding(text: str, headers: dict[str, bytes | None]) -> dict[str, Any]:
        return answer(text) if headers["penstock.final"] == b"true" else {"unanswered": "superseded"}

    world = said(event("a", "0", 0, "hm"), end("a"), answers=superseding)
    assert [headers["penstock.final"] for _, headers in world.requests] == [b"false", b"true"]
    [whole] = world.transcripts[-1]["utterances"]
    assert (whole["is_final"], whole["text"], "outputs" in whole) == (False, "hm", True)


def test_a_final_without_a_result_has_an_error_instead() -> None:
    world = said(event("a", "0", 0, "hm"), event("a", "0", 1, "Hm.", final=True), end("a"), answers=lambda *_: failed())
    [whole] = world.transcripts[-1]["utterances"]
    assert (whole["error"], "outputs" in whole) == ("engine_failed: boom", False)


def test_a_dead_letter_that_is_sent_again_annotates_after_all() -> None:
    world = said(event("a", "0", 1, "Hm.", final=True), answers=lambda *_: failed())
    [letter] = world.logs["dead_letter"]
    world._append("result", letter.key, json.dumps(answer("Hm.")).encode(), letter.headers)
    world.settle()
    world.say(end("a"))
    world.settle()
    assert "outputs" in world.transcripts[-1]["utterances"][0]


def test_a_final_that_came_too_late_is_asked_again() -> None:
    """requests.deadline_ms holds for finals too."""
    late = [{"unanswered": "expired"}]
    world = said(
        event("a", "0", 0, "Hm.", final=True), end("a"), answers=lambda text, _: late.pop() if late else answer(text)
    )
    assert world.transcripts == []
    world.tick(1)
    world.tick(30)
    world.settle()
    assert [each["type"] for each in world.transcripts] == ["utterance", "transcript"]


def test_what_is_answered_in_time_is_not_asked_again() -> None:
    """However long some request of the stream has been outstanding."""
    world = World(make_settings(resend_after_ms=3_000))
    for second in range(20):
        world.say(event("a", str(second), 0, f"{second}", final=True))
        world.read("speech")
        world.read("result", max(0, len(world.logs["result"]) - 2 - world.committed["result"]))
        world.tick(1)
    assert world.desk.counts["asked_again"] == 0


def test_waits_double_for_each_request_and_are_forgotten_with_its_stream() -> None:
    silent = {"0", "1"}
    world = World(
        make_settings(resend_after_ms=1_000, remember_ms=1_000),
        answers=lambda text, _: None if text in silent else answer(text),
    )
    asked: list[tuple[int, str]] = []
    for half in range(16):
        if half in (0, 5):
            world.say(event("a", str(half), 0, str(half // 5), final=True))
            world.settle()
        before = len(world.requests)
        world.tick(0.5)
        asked += [(half, text) for text, _ in world.requests[before:]]
    # First seen half a second after it was asked; after that 1 s, 2 s, 4 s.
    assert asked == [(2, "0"), (6, "0"), (7, "1"), (11, "1"), (14, "0")]
    silent.clear()
    world.say(end("a"))
    world.tick(8)
    world.settle()
    world.tick(2)
    assert (world.desk.streams, world.desk._overdue) == ({}, {})


def test_silence_ends_a_stream_and_time_forgets_it() -> None:
    world = said(event("a", "0", 0, "hm", final=True), silence_ms=1_000, remember_ms=2_000)
    world.tick(0.9)
    assert world.whole() == {}
    world.tick(0.2)
    world.settle()
    assert (len(world.whole()["a"]), world.transcripts[-1]["ended_by"]) == (1, "silence")
    world.say(event("a", "0", 0, "hm", final=True), event("a", "1", 0, "late"), end("a"))
    world.settle()
    assert reasons(world) == ["stream_ended"]
    assert [key for key in world.kept if b'"0"' in key] == []
    world.tick(2.1)
    assert world.kept == {}
    world.say(event("a", "0", 0, "another"))
    world.settle()
    assert told(world)[-1] == ("0", 0, False, "another")


def test_silence_begins_anew_with_a_process() -> None:
    world = said(event("a", "0", 0, "hm", final=True), silence_ms=1_000)
    world.now_s += 5
    world.start()
    world.tick(0.9)
    assert world.whole() == {}


def test_utterances_are_in_the_order_in_which_they_were_said() -> None:
    world = said(
        event("a", "second", 0, "b", final=True, start_ms=900),
        event("a", "first", 0, "a", final=True, start_ms=100),
        end("a"),
    )
    assert [each["text"] for each in world.transcripts[-1]["utterances"]] == ["a", "b"]


def test_a_stream_of_nothing_has_an_empty_transcript() -> None:
    assert said(end("a")).transcripts[-1]["utterances"] == []


@pytest.mark.parametrize(
    ("value", "key", "reason"),
    [
        (event("a", "0", 0, "hm"), b"b", "bad_key"),
        (event("a", "0", 0, "hm"), None, "bad_key"),
        (event("a", "0", 0, "hm"), b"\xff", "bad_key"),
        (event("a", "0", 0, "hm"), b"x" * 300, "bad_key"),
        (None, b"a", "null_value"),
        (b"hm", b"a", "not_json"),
        (b"{}", b"a", "bad_event"),
        (event("a", "", 0, "hm"), b"a", "bad_event"),
        (event("a", "0", -1, "hm"), b"a", "bad_event"),
        (event("a", "0", 0, "h" * 101), b"a", "text_too_large"),
    ],
)
def test_a_bad_event_is_a_dead_letter_and_its_neighbours_do_not_notice(
    value: bytes | None, key: bytes | None, reason: str
) -> None:
    world = World(make_settings(max_text_bytes=100))
    world.say(event("a", "1", 0, "before"))
    world.say(value, key=key, headers=[("mine", b"1")])
    world.say(event("a", "2", 0, "after"))
    world.settle()
    assert [text for text, _ in world.requests] == ["before", "after"]
    [letter] = world.letters
    assert (letter.key, letter.value, letter.headers[0]) == (key, value, ("mine", b"1"))
    cause = read_cause(letter.headers)
    assert cause is not None
    assert (cause.reason, cause.stage, cause.topic, cause.offset) == (reason, "transcripts", "talk.speech", 1)


_LARGE = MAX_RECORD_BYTES - 200


@pytest.mark.parametrize(
    ("value", "key", "headers", "left_out"),
    [
        (b"x" * _LARGE, b"a", [("trace", b"1")], ["value"]),
        (b"x", b"a", [("trace", b"1" * _LARGE)], ["value", "headers"]),
        (b"x", b"k" * _LARGE, [], ["value", "headers", "key"]),
        (b'{"type": "%s"}' % (b"x" * (1 << 20)), b"a", [("trace", b"1")], []),
    ],
)
def test_a_bad_event_that_is_too_large_is_told_without_what_has_no_room(
    value: bytes, key: bytes, headers: Headers, left_out: list[str]
) -> None:
    world = World(make_settings(feed="deepgram"))
    world.say(value, key=key, headers=headers)
    world.settle()
    [letter] = world.letters
    assert letter.value == (None if left_out else value)
    assert letter.key == (None if "key" in left_out else key)
    assert original_headers(letter.headers) == ([] if "headers" in left_out else headers)
    cause = read_cause(letter.headers)
    assert cause is not None
    assert cause.source == Source("talk.speech", 0, 0)
    said = cause.message or ""
    assert len(said) < 5_000
    words = {"value": "its value of", "headers": "its headers are left out", "key": "its key of"}
    assert [word for word, phrase in words.items() if phrase in said] == left_out


def test_a_stream_has_so_many_utterances() -> None:
    world = said(*(event("a", str(number), 0, "hm", final=True) for number in range(3)), end("a"), max_utterances=2)
    assert reasons(world) == ["stream_too_long"]
    assert len(world.transcripts[-1]["utterances"]) == 2


def test_what_was_said_before_is_read_too_and_left_out_of_the_outputs() -> None:
    def entities(text: str, _headers: object) -> dict[str, Any]:
        spans = [(start, start + len(word)) for word in text.split() for start in [text.index(word)]]
        found = [{"entity_group": "X", "score": 0.123456789, "word": text[a:b], "start": a, "end": b} for a, b in spans]
        return {"outputs": {"m": found, "v": [-0.000001, 1]}}

    world = said(
        event("a", "0", 0, "My name is Ada.", final=True),
        event("a", "1", 0, "Not final"),
        event("a", "2", 0, "And yours?", final=True),
        answers=entities,
        context_characters=7,
    )
    assert [text for text, _ in world.requests] == ["My name is Ada.", "is Ada. Not final", "is Ada. And yours?"]
    assert world.transcripts[-1]["outputs"] == {
        "m": [
            {"entity_group": "X", "score": 0.1235, "word": "And", "start": 0, "end": 3},
            {"entity_group": "X", "score": 0.1235, "word": "yours?", "start": 4, "end": 10},
        ],
        "v": [0.0, 1],
    }


class _Counted(tuple[int, int]):
    """A place in the feed that counts how often one is compared."""

    compared = 0

    def __lt__(self, other: tuple[int, int]) -> bool:
        _Counted.compared += 1
        return super().__lt__(other)


def test_for_its_context_only_the_end_of_a_long_stream_is_looked_at() -> None:
    stream = Stream(Head(0, Feed("a")), context_characters=20, max_utterances=1_000)
    for number in range(200):
        _Counted.compared = 0
        heard = SpeechEvent(
            stream_id="a", utterance_id=str(number), revision=0, is_final=True, text=f"said as number {number}"
        )
        [ask] = stream.hear(heard, _Counted((number, 0)))
    assert isinstance(ask, Ask)
    assert ask.hypothesis.context == "said as number 198"
    assert _Counted.compared < 10


def test_the_context_is_in_order_where_a_crash_has_kept_the_later_of_two() -> None:
    def heard(number: int) -> SpeechEvent:
        return SpeechEvent(stream_id="a", utterance_id=str(number), revision=0, is_final=True, text=f"said {number}")

    stream = Stream(Head(0, Feed("a")), context_characters=100, max_utterances=9)
    for offset in (0, 2, 1, 3):
        [ask] = stream.hear(heard(offset), (offset, 0))
    assert isinstance(ask, Ask)
    assert ask.hypothesis.context == "said 0 said 1 said 2"
    kept = [*stream.utterances.values()][::-1]
    again = Stream(stream.head, kept, context_characters=100, max_utterances=9)
    [ask] = again.hear(heard(4), (4, 0))
    assert isinstance(ask, Ask)
    assert ask.hypothesis.context == "said 0 said 1 said 2 said 3"


def test_others_results_and_rubbish_are_passed_over() -> None:
    world = said(event("a", "0", 0, "hm"))
    mine = {"penstock.utterance": b"0", "penstock.revision": b"1", "penstock.final": b"false"}
    for key, value, headers in [
        (None, b"{}", {}),
        (b"a", b"{}", {}),
        (b"\xff", b"{}", mine),
        (b"b", b"{}", mine),
        (b"a", b"{}", mine | {"penstock.revision": b"x"}),
        (b"a", b"{}", mine | {"penstock.utterance": b"\xff"}),
        (b"a", b"[", mine),
        (b"a", b'{"outputs": 1}', mine | {"penstock.revision": b"0"}),
        (b"a", None, mine),
    ]:
        world._append("result", key, value, [*headers.items()])
    world.settle()
    assert told(world) == [("0", 0, False, "hm")]


def test_a_record_of_a_recognizer_counts_once() -> None:
    """Its reader's state has moved on when a record comes again after a crash."""
    world = World(make_settings(feed="vosk"))
    for value in (b'{"partial": "good"}', b'{"text": "good morning"}', b'{"text": "bye"}'):
        world.say(value, key=b"a")
    world.read("speech")
    world.committed["speech"] = 0
    world.start()
    world.settle()
    world.say(b'{"end_of_stream": true}', key=b"a")
    world.settle()
    assert [each["text"] for each in world.transcripts[-1]["utterances"]] == ["good morning", "bye"]


def test_a_long_transcript_comes_in_parts() -> None:
    utterances = [
        AnnotatedUtterance(
            utterance_id=str(number), revision=0, is_final=True, text="", start_ms=None, end_ms=None,
            outputs=msgspec.Raw(b'{"m":"%s"}' % (b"x" * (3 << 20))),
        )
        for number in range(5)
    ]  # fmt: skip
    parts = [json.loads(each) for each in encode_transcript("a", "event", utterances)]
    assert [(each["part"], each["parts"], len(each["utterances"])) for each in parts] == [
        (1, 3, 2),
        (2, 3, 2),
        (3, 3, 1),
    ]


def test_state_is_kept_in_small_pieces() -> None:
    """A long stream costs as much to keep, a revision, as a short one."""
    world = said(*(event("a", str(number), 0, "word " * 20, final=True) for number in range(50)))
    world.say(event("a", "50", 0, "hm"))
    outgoing = world.desk.speech(world.logs["speech"][-1], now_s=0, now_ms=0)
    assert len(outgoing) == 1
    writes = world.desk.writes()
    assert [json.loads(each.record.key or b"") for each in writes] == [["a", "50"], ["a"]]
    assert sum(len(each.record.value or b"") for each in writes) < 200
    assert msgspec.msgpack.decode(writes[1].record.value or b"", type=Head) == Head(0, Feed("a"), 50)
