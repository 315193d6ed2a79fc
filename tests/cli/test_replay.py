"""`penstock replay`: history once more, in a topic of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline.apache_kafka.broker import ApacheBroker
from pipeline.broker import BrokerProcess
from pipeline.ensemble import Ensemble, Refused
from pipeline.settings import load_ensemble
from schemas.records import InputRecord
from schemas.results import Result
from tests.cli.conftest import Penstock, WriteEnsemble
from tests.cli.records import Topics

pytestmark = pytest.mark.broker

Live = tuple[Path, Topics]
NOON_MS = 1_795_608_000_000  # 2026-11-25T12:00Z
HOUR_MS = 3_600_000


@pytest.fixture
def live(kafka: BrokerProcess, ensemble: WriteEnsemble, penstock: Penstock) -> Live:
    """An ensemble file and its topics, which are empty."""
    file = ensemble(bootstrap=kafka.bootstrap)
    assert penstock("topics", file, "--create").code == 0
    return file, Topics(kafka.bootstrap, load_ensemble(file).name)


def said(topics: Topics, *lines: str) -> list[str]:
    return [f"penstock: {line.replace('NAME', topics.ensemble)}" for line in lines]


def results(topics: Topics, topic: str = "replay") -> list[tuple[int | None, Any]]:
    """Partition and id of each result."""
    return [(message.partition(), msgspec.json.decode(message.value() or b"")["id"]) for message in topics.read(topic)]


def test_results_and_dead_letters_are_what_the_live_path_writes(live: Live, penstock: Penstock) -> None:
    file, topics = live
    for number in range(4):
        topics.send(b'{"text": "a", "id": "%d"}' % number, partition=number % 2, key=b"k", headers=[("trace", b"1")])
    topics.send(b"{", partition=1, key=b"bad", headers=[("trace", None)])
    topics.send(b'{"text": "last", "id": "4"}', partition=1)
    found = penstock("replay", file, "--from", "beginning", "--create")
    assert (found.code, found.out) == (0, "")
    assert found.lines[:2] == said(topics, "made topic NAME.replay", "made topic NAME.replay.dead-letters")
    assert found.lines[2].startswith(said(topics, "NAME.replay: 5 results, ")[0])
    assert found.lines[3:] == said(topics, "NAME.replay.dead-letters: 1 that can't be answered")
    assert results(topics) == [(0, "0"), (0, "2"), (1, "1"), (1, "3"), (1, "4")]
    first = topics.read("replay")[0]
    assert (first.key(), first.headers()) == (b"k", [("trace", b"1")])
    [dead] = topics.read("replay.dead-letters")
    assert (dead.partition(), dead.key(), dead.value()) == (1, b"bad", b"{")
    headers = dict(dead.headers() or [])
    assert headers["__dlq.errors.reason"] == b"not_json"
    assert headers["__dlq.errors.offset"] == b"2"
    assert topics.read("results") == topics.read("dead-letters") == []


def test_it_ends_at_the_end_and_goes_on_from_offsets(live: Live, penstock: Penstock) -> None:
    file, topics = live
    assert penstock("replay", file, "--from", "beginning", "--create").lines[-1:] == said(
        topics, "NAME.requests: nothing was sent in that time"
    )
    for number in range(6):
        topics.send(b'{"text": "a", "id": "%d"}' % number, partition=number % 2)
    assert penstock("replay", file, "--from-offsets", "0:1,1:3").code == 0
    assert results(topics) == [(0, "2"), (0, "4")]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], ["replay: give either --from or --from-offsets"]),
        (["--from", "beginning", "--from-offsets", "0:1"], ["replay: give either --from or --from-offsets"]),
        (["--from", "-2h"], ["replay: the embedded broker can't find records by time; use --from beginning, without"]),
        (["--from", "beginning", "--to", "-2h"], ["replay: the embedded broker can't find records by time; use "]),
        (["--from", "noon"], ["--from: 'noon' is not allowed; allowed: a time in ISO 8601"]),
        (["--from-offsets", "0:1"], ["--from-offsets: names partitions 0; allowed: each of 0, 1, once"]),
        (["--from-offsets", "0:1,1:0"], ["--from-offsets: 0:1 is behind the end, 0:0"]),
        (["--from-offsets", "0-1"], ["--from-offsets: '0-1' is not allowed; allowed: PARTITION:OFFSET, such as"]),
        (["--from", "beginning", "--into", "NAME.results"], ["--into: NAME.results is the live ensemble's topic of "]),
        (["--from", "beginning", "--into", "NAME"], ["--into: NAME.dead-letters is the live ensemble's topic of "]),
        (["--from", "beginning", "--into", "a b"], ["--into: 'a b' is not allowed; allowed: letters, digits, "]),
        (
            ["--from", "beginning"],
            ["NAME.replay: doesn't exist", "NAME.replay.dead-letters: doesn't exist", "make what is missing with --cr"],
        ),
    ],
    ids=range(12),
)
def test_a_mistake_is_told_before_anything_is_written(
    live: Live, penstock: Penstock, arguments: list[str], says: list[str]
) -> None:
    file, topics = live
    found = penstock("replay", file, *[argument.replace("NAME", topics.ensemble) for argument in arguments])
    assert (found.code, found.out) == (2, "")
    assert len(found.lines) == len(says)
    for line, begins in zip(found.lines, said(topics, *says), strict=True):
        assert line.startswith(begins)


def test_interrupted_it_says_where_to_go_on(live: Live, penstock: Penstock, monkeypatch: pytest.MonkeyPatch) -> None:
    file, topics = live
    for number in range(6):
        topics.send(b"{" if number == 1 else b'{"text": "a", "id": "%d"}' % number, partition=int(number > 3))
    answer, answered = Ensemble.answer, 0

    def interrupted(self: Ensemble, records: list[InputRecord]) -> Iterator[Result | Refused]:
        nonlocal answered
        for each in answer(self, records):
            if answered == 3:
                raise SystemExit(130)  # as Ctrl-C does
            answered += 1
            yield each

    with monkeypatch.context() as patched:
        patched.setattr(Ensemble, "answer", interrupted)
        found = penstock("replay", file, "--from", "beginning", "--create")
    assert found.code == 130
    assert found.lines[-1:] == said(topics, "stopped before the end; go on with --from-offsets 0:3,1:0")
    assert results(topics) == [(0, "0"), (0, "2")]
    assert penstock("replay", file, "--from-offsets", "0:3,1:0").code == 0
    assert results(topics) == [(0, "0"), (0, "2"), (0, "3"), (1, "4"), (1, "5")]
    assert len(topics.read("replay.dead-letters")) == 1


def test_a_result_that_is_too_large_is_a_dead_letter(
    kafka: BrokerProcess, ensemble: WriteEnsemble, small_model: Path, penstock: Penstock
) -> None:
    models = [
        {"name": f"vector-{number}", "source": str(small_model), "task": "sentence-embedding"} for number in range(9)
    ]
    small = {"bootstrap.servers": kafka.bootstrap, "producer": {"message.max.bytes": 1000}}
    file = ensemble(models=models, kafka=small)
    assert penstock("topics", file, "--create").code == 0
    topics = Topics(kafka.bootstrap, load_ensemble(file).name)
    topics.send(b'{"text": "a"}')
    found = penstock("replay", file, "--from", "beginning", "--create")
    assert (found.code, found.lines[3:]) == (0, said(topics, "NAME.replay.dead-letters: 1 that can't be answered"))
    [dead] = topics.read("replay.dead-letters")
    assert dict(dead.headers() or [])["__dlq.errors.reason"] == b"result_too_large"
    assert topics.read("replay") == []


@pytest.mark.apache
def test_times_choose_what_is_replayed(
    apache_broker: ApacheBroker, ensemble: WriteEnsemble, penstock: Penstock
) -> None:
    bootstrap = apache_broker.bootstrap
    file = ensemble(kafka={"bootstrap.servers": bootstrap})
    assert penstock("topics", file, "--create").code == 0
    topics = Topics(bootstrap, load_ensemble(file).name)
    for hour in range(6):
        value = b'{"text": "a", "id": "%d"}' % hour
        topics.send(value, partition=hour % 2, milliseconds=NOON_MS + hour * HOUR_MS)
    into = f"{topics.ensemble}.again"
    times = ("--from", "2026-11-25T13:00Z", "--to", "2026-11-25T16:00Z")
    assert penstock("replay", file, *times, "--into", into, "--create").code == 0
    assert results(topics, "again") == [(0, "2"), (1, "1"), (1, "3")]
    late = penstock("replay", file, "--from", "2026-11-25T18:00Z", "--into", into)
    assert (late.code, late.lines) == (0, said(topics, "NAME.requests: nothing was sent in that time"))
    assert penstock("replay", file, "--from", "2026-11-25T17:00Z", "--into", into).code == 0
    assert results(topics, "again") == [(0, "2"), (1, "1"), (1, "3"), (1, "5")]
