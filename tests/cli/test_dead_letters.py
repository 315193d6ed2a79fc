"""`penstock dead-letters`: what was refused is found, shown, sent again once, deleted."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import dead_letter_views
from pipeline.apache_kafka.broker import ApacheBroker
from pipeline.broker import BrokerProcess
from pipeline.dead_letter_box import Wanted
from pipeline.dead_letter_views import list_dead_letters
from pipeline.settings import load_ensemble
from schemas.errors import Reason
from tests.cli.conftest import Penstock, WriteEnsemble
from tests.cli.records import Topics
from tests.pipeline.conftest import running

pytestmark = pytest.mark.broker

Box = tuple[Path, Topics]


def made(file: Path, bootstrap: str, penstock: Penstock) -> Box:
    name = load_ensemble(file).name
    assert penstock("topics", file, "--create").code == 0
    return file, Topics(bootstrap, name)


@pytest.fixture
def box(kafka: BrokerProcess, ensemble: WriteEnsemble, penstock: Penstock) -> Box:
    """An ensemble file, and its topics, which are empty."""
    return made(ensemble(bootstrap=kafka.bootstrap), kafka.bootstrap, penstock)


@pytest.fixture
def letters(penstock: Penstock) -> Callable[..., Any]:
    """Runs `penstock dead-letters`."""
    return lambda *arguments: penstock("dead-letters", *arguments)


def test_of_no_dead_letters_each_command_says_so(box: Box, letters: Penstock) -> None:
    file, topics = box
    name = f"penstock: {topics.ensemble}.dead-letters:"
    assert letters("list", file).lines == [f"{name} no dead letters"]
    assert letters("show", file, "0/0").lines == [f"{name} 0/0: no such offset; the partition is empty"]
    assert letters("replay", file).lines == [f"{name} 0 replayed to {topics.ensemble}.requests"]


def test_list_has_a_line_each_whatever_wrote_them(box: Box, letters: Penstock) -> None:
    file, topics = box
    topics.bury(b"1", offset=5)
    topics.bury(b"2", style="connect", stage="encode", reason=Reason.ENGINE_FAILED)
    topics.bury(b"3", style="spring", partition=1, offset=7)
    topics.send(b"4", to="dead-letters")
    topics.send(
        b"5", to="dead-letters", headers=[("__dlq.errors.topic", None), ("__dlq.errors.message", b"\x1b[2J\n\t")]
    )
    found = letters("list", file)
    assert found.code == 0
    rows = [line.split("\t") for line in found.out.splitlines()]
    requests = f"{topics.ensemble}.requests"
    assert [row[:1] + row[2:] for row in rows] == [
        ["0/0", "tokenize", "not_json", f"{requests}/0/5", "because"],
        ["0/1", "encode", "engine_failed", f"{requests}/0/0", "because"],
        ["0/2", "-", "-", "-", "-"],
        ["0/3", "-", "-", "-", "\\x1b[2J\\n\\t"],
        ["1/0", "tokenize", "not_json", f"{requests}/1/7", "because"],
    ]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", row[1]) for row in rows)


def test_list_chooses_by_stage_reason_time_and_number(box: Box, letters: Penstock) -> None:
    file, topics = box
    for hour in range(4):
        topics.bury(
            b"%d" % hour,
            partition=hour % 2,
            stage="encode" if hour == 2 else "tokenize",
            reason=Reason.ENGINE_FAILED if hour == 2 else Reason.NOT_JSON,
            milliseconds=1_795_615_200_000 + hour * 3_600_000,
        )

    def places(*arguments: str) -> list[str]:
        return [
            f"{line['partition']}/{line['offset']}" for line in letters("list", file, "--json", *arguments).json_lines
        ]

    assert places() == ["0/0", "0/1", "1/0", "1/1"]
    assert places("--stage", "encode") == ["0/1"]
    assert places("--stage", "encode", "--stage", "tokenize", "--reason", "not_json") == ["0/0", "1/0", "1/1"]
    assert places("--since", "2026-11-25T15:00Z", "--until", "2026-11-25T17:00Z") == ["0/1", "1/0"]
    assert places("--count", "2") == ["0/1", "1/1"]
    assert letters("list", file, "--stage", "postprocess").lines == [
        f"penstock: {topics.ensemble}.dead-letters: no dead letter matches"
    ]


def test_list_on_a_terminal_is_a_table_of_80_columns(
    box: Box, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    file, topics = box
    topics.bury(b"1", reason=Reason.TEXT_TOO_LARGE, stage="postprocess")
    topics.bury(b"2")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(dead_letter_views, "_TABLE_ROWS", 1)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    list_dead_letters(load_ensemble(file), Wanted(), count=None, as_json=False)
    lines = capfdbinary.readouterr().out.decode().splitlines()
    assert [line.split()[0] for line in lines] == ["place", "0/0", "place", "0/1"]
    assert lines[0].split() == ["place", "written", "stage", "reason", "message"]
    assert max(map(len, lines)) <= 80


def test_show_tells_all_of_one_and_gives_its_bytes(box: Box, letters: Penstock) -> None:
    file, topics = box
    topics.bury(b"bad \xff\x1b[2J", offset=9, key=b"k", headers=[("trace", b"1"), ("trace", None)], style="spring")
    name = f"{topics.ensemble}.dead-letters"
    found = letters("show", file, "0/0")
    assert found.out.splitlines()[0].startswith(f"{name}/0/0, written ")
    assert found.out.splitlines()[1:] == [
        "stage:    tokenize",
        "reason:   not_json",
        "message:  because",
        f"original: {topics.ensemble}.requests/0/9",
        f"group:    {topics.ensemble}.tokenize",
        "attempt:  1",
        "key:      k",
        "header:   trace = 1",
        "header:   trace = null",
        "value:    9 bytes",
        "bad \\xff\\x1b[2J",
    ]
    [shown] = letters("show", file, "0/0", "--json").json_lines
    assert shown["headers"] == [["trace", "1"], ["trace", None]]
    assert shown["value"] == "bad \\xff\x1b[2J"
    assert shown["dead_letter"]["header_style"] == "spring"
    assert shown["dead_letter"]["original"]["offset"] == 9


def test_show_writes_the_value_as_it_is(box: Box, letters: Penstock) -> None:
    file, topics = box
    topics.bury("ä\n\0".encode())
    topics.bury(None)
    assert letters("show", file, "0/0", "--value").out == "ä\n\0"
    found = letters("show", file, "0/1", "--value")
    assert (found.code, found.out) == (2, "")
    assert found.lines == [f"penstock: {topics.ensemble}.dead-letters/0/1: it has no value"]


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("0/7", "0/7: no such offset; its offsets are 0 to 0"),
        ("9/0", "9/0: no such partition; there are 0 to 1"),
        ("17", "'17' is no place; write PARTITION/OFFSET, such as 0/17"),
        ("0/-1", "'0/-1' is no place; write PARTITION/OFFSET, such as 0/17"),
    ],
    ids=["offset", "partition", "number", "negative"],
)
def test_a_place_that_is_none_is_told(box: Box, letters: Penstock, place: str, says: str) -> None:
    file, topics = box
    topics.bury(b"1")
    for command in ("show", "replay"):
        found = letters(command, file, place)
        assert (found.code, found.out) == (2, "")
        assert found.lines == [f"penstock: {topics.ensemble}.dead-letters: {says}"]
    assert topics.read("requests") == []


def test_replay_sends_what_was_sent_and_counts_the_attempt(box: Box, letters: Penstock) -> None:
    file, topics = box
    headers = [("trace", b"1"), ("__connect.errors.topic", b"orders"), ("empty", None)]
    topics.bury(b"{}", partition=1, offset=3, key=b"k", headers=headers)
    topics.bury(b"{", partition=1, style="connect", headers=[("penstock.attempt", b"2")])
    topics.bury(b"[", partition=0, style="spring")
    assert letters("replay", file).lines == [
        f"penstock: {topics.ensemble}.dead-letters: 3 replayed to {topics.ensemble}.requests"
    ]
    sent = [(m.partition(), m.key(), m.value(), m.headers()) for m in topics.read("requests")]
    assert sent == [
        (0, None, b"[", [("penstock.attempt", b"2")]),
        (1, b"k", b"{}", [*headers, ("penstock.attempt", b"2")]),
        (1, None, b"{", [("penstock.attempt", b"3")]),
    ]


@pytest.mark.slow
def test_what_was_replayed_is_not_replayed_again_but_on_request(box: Box, letters: Penstock) -> None:
    file, topics = box
    for number in range(6):
        reason = Reason.TEXT_TOO_LARGE if number in (1, 4) else Reason.NOT_JSON
        topics.bury(b"%d" % number, offset=number, reason=reason)

    def replayed(*arguments: str) -> list[bytes | None]:
        before = len(topics.values("requests"))
        assert letters("replay", file, *arguments).code == 0
        return topics.values("requests")[before:]

    assert replayed("--reason", "text_too_large") == [b"1", b"4"]
    assert replayed("--reason", "text_too_large") == []
    assert replayed("0/3") == [b"3"]
    assert replayed("0/3") == [b"3"]
    assert replayed("--dry-run") == []
    assert replayed("--count", "2") == [b"0", b"2"]
    assert replayed() == [b"5"]
    assert replayed() == []
    topics.bury(b"6")
    assert replayed() == [b"6"]
    assert replayed("--from-beginning") == [b"0", b"1", b"2", b"3", b"4", b"5", b"6"]
    assert replayed() == []


def test_what_can_not_be_replayed_is_counted_with_its_reason(box: Box, letters: Penstock) -> None:
    file, topics = box
    topics.bury(b"pack", of="tokens")
    topics.bury(None)
    topics.bury(b"again", headers=[("penstock.attempt", b"3")])
    topics.send(b"who", to="dead-letters")
    topics.send(b"garbage", to="dead-letters", headers=[("__dlq.errors.topic", b"\xff"), ("__dlq.errors.offset", b"x")])
    where = [
        ("kafka_dlt-original-topic", f"{topics.ensemble}.requests".encode()),
        ("kafka_dlt-original-partition", (7).to_bytes(4)),
        ("kafka_dlt-original-offset", (7).to_bytes(8)),
    ]
    topics.send(b"there", to="dead-letters", headers=[*where])
    topics.bury(b"good")
    dry = letters("replay", file, "--dry-run")
    assert dry.out.splitlines() == [
        f"0/0  skipped: the original was in {topics.ensemble}.tokens, and only what was in {topics.ensemble}.requests "
        "can be sent again",
        "0/1  skipped: it has no value: the original had none, or it was left out",
        "0/2  skipped: it has been sent 3 times, --max-attempts are 3",
        "0/3  skipped: no header says where the original was",
        "0/4  skipped: no header says where the original was",
        f"0/5  skipped: {topics.ensemble}.requests has no partition 7",
        f"0/6  to {topics.ensemble}.requests/0, attempt 2",
    ]
    found = letters("replay", file)
    assert (found.code, found.out) == (0, "")
    said = [line.removeprefix(f"penstock: {topics.ensemble}.dead-letters: ") for line in found.lines]
    assert said[0] == f"1 replayed to {topics.ensemble}.requests"
    assert said[1] == "2 skipped: no header says where the original was"
    assert len(said) == 6
    assert topics.values("requests") == [b"good"]
    assert letters("replay", file).lines == [
        f"penstock: {topics.ensemble}.dead-letters: 0 replayed to {topics.ensemble}.requests"
    ]


def test_events_of_speech_and_requests_of_lanes_go_where_they_were(
    kafka: BrokerProcess, ensemble: WriteEnsemble, penstock: Penstock, letters: Penstock
) -> None:
    file = ensemble(bootstrap=kafka.bootstrap, speech={}, batching={"lanes": {"fast": 8, "bulk": 1}})
    file, topics = made(file, kafka.bootstrap, penstock)
    name = f"penstock: {topics.ensemble}.dead-letters:"
    topics.bury(b"heard", of="speech", stage="transcripts", reason=Reason.BAD_EVENT, partition=1, key=b"call-7")
    topics.bury(b"later", of="requests.bulk")
    rows = letters("list", file, "--stage", "transcripts").out.splitlines()
    assert [row.split("\t")[4] for row in rows] == [f"{topics.ensemble}.speech/1/0"]
    assert letters("replay", file, "--dry-run").lines == [
        f"{name} 0 would be replayed to {topics.ensemble}.requests",
        f"{name} 1 would be replayed to {topics.ensemble}.requests.bulk",
        f"{name} 1 would be replayed to {topics.ensemble}.speech",
    ]
    assert letters("replay", file, "--stage", "transcripts").lines == [
        f"{name} 0 replayed to {topics.ensemble}.requests",
        f"{name} 1 replayed to {topics.ensemble}.speech",
    ]
    assert letters("replay", file).code == 0
    (heard,) = topics.read("speech")
    assert (heard.key(), heard.value(), heard.partition()) == (b"call-7", b"heard", 1)
    assert heard.headers() == [("penstock.attempt", b"2")]
    assert (topics.values("requests.bulk"), topics.values("requests")) == ([b"later"], [])


def test_one_that_was_named_and_is_skipped_is_a_failure(box: Box, letters: Penstock) -> None:
    file, topics = box
    topics.bury(b"again", headers=[("penstock.attempt", b"3")])
    assert letters("replay", file, "0/0").code == 1
    assert letters("replay", file, "0/0", "--max-attempts", "4").code == 0
    assert topics.values("requests") == [b"again"]


def test_places_and_filters_are_one_too_many(box: Box, letters: Penstock) -> None:
    found = letters("replay", box[0], "0/0", "--stage", "encode")
    assert found.lines == ["penstock: replay: give either PARTITION/OFFSET or filters, --count, --from-beginning"]


def test_the_embedded_broker_purges_nothing(box: Box, letters: Penstock) -> None:
    found = letters("purge", box[0], "--yes")
    assert found.code == 2
    assert found.lines == [
        "penstock: purge: the embedded broker has no admin API and deletes nothing; it forgets all at its end"
    ]


@pytest.mark.parametrize("style", ["kafka", "connect", "spring"])
def test_a_text_that_was_too_large_is_answered_when_more_is_allowed(
    kafka: BrokerProcess, ensemble: WriteEnsemble, penstock: Penstock, style: str
) -> None:
    changes = {"bootstrap": kafka.bootstrap, "dead_letters": {"header_style": style}}
    file, topics = made(ensemble(**changes, requests={"max_text_bytes": 5}), kafka.bootstrap, penstock)
    with running(load_ensemble(file), fused=True):
        topics.send(b'{"text": "much too long", "id": "7"}', partition=1, key=b"k", headers=[("trace", b"1")])
        [found] = _eventually(lambda: penstock("dead-letters", "list", file, "--json").json_lines)
    assert (found["reason"], found["header_style"], found["original"]["partition"]) == ("text_too_large", style, 1)
    file = ensemble(**changes)
    assert penstock("dead-letters", "replay", file).code == 0
    with running(load_ensemble(file), fused=True):
        [result] = _eventually(lambda: topics.read("results"))
    assert (result.partition(), result.key()) == (1, b"k")
    assert result.headers() == [("trace", b"1"), ("penstock.attempt", b"2")]
    assert len(topics.read("dead-letters")) == 1


@pytest.mark.apache
def test_apache_kafka_purges_what_is_there_and_replays_what_comes_after(
    apache_broker: ApacheBroker, ensemble: WriteEnsemble, penstock: Penstock, letters: Penstock
) -> None:
    file = ensemble(bootstrap=apache_broker.bootstrap, kafka={"bootstrap.servers": apache_broker.bootstrap})
    file, topics = made(file, apache_broker.bootstrap, penstock)
    name = f"penstock: {topics.ensemble}.dead-letters:"
    assert letters("purge", file, "--yes").lines == [f"{name} is empty"]
    topics.bury(b"1")
    topics.bury(b"2", partition=1)
    topics.bury(b"3", partition=1)
    assert letters("replay", file, "--count", "1").code == 0
    asked = letters("purge", file)
    assert asked.code == 2
    assert asked.lines == [f"{name} 3 offsets in 2 partitions would be deleted for good: say so with --yes"]
    assert len(topics.read("dead-letters")) == 3
    purged = letters("purge", file, "--yes")
    assert (purged.code, purged.lines) == (0, [f"{name} 3 offsets deleted"])
    assert topics.read("dead-letters") == []
    topics.bury(b"4", partition=1)
    assert letters("show", file, "1/0").lines == [f"{name} 1/0: no such offset; its offsets are 2 to 2"]
    assert letters("replay", file).lines == [f"{name} 1 replayed to {topics.ensemble}.requests"]
    assert topics.values("requests") == [b"1", b"4"]


def _eventually(look: Callable[[], list[Any]]) -> list[Any]:
    for _ in range(200):
        if found := look():
            return found
    raise AssertionError("nothing came")
