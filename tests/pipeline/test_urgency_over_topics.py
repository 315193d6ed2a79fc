"""Deadlines, revisions and lanes as a user of the topics sees them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Message

from pipeline.settings import EnsembleSettings
from schemas.errors import Reason
from schemas.headers import read_cause
from schemas.records import Headers
from tests.pipeline.conftest import Topics, running

pytestmark = pytest.mark.broker

MakeSettings = Callable[..., EnsembleSettings]


@pytest.fixture(params=[False, True], ids=["spread", "fused"])
def fused(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def request(text: str, id: str) -> bytes:
    return json.dumps({"text": text, "id": id}).encode()


def revision(number: int, *, final: bool = False) -> Headers:
    return [
        ("penstock.utterance", b"u1"),
        ("penstock.revision", b"%d" % number),
        ("penstock.final", b"true" if final else b"false"),
    ]


def by_id(messages: list[Message]) -> dict[str, dict[str, Any]]:
    return {(value := json.loads(message.value() or b""))["id"]: value for message in messages}


def test_what_has_expired_is_answered_so_in_its_turn(settings: MakeSettings, fused: bool) -> None:
    made = settings(partitions=1)
    topics = Topics(made)
    for number in range(6):
        expired: Headers = [("ce_expirytime", b"2020-01-01T00:00:00Z")] if number % 2 else []
        topics.send(request("hello", str(number)), key=b"k", headers=expired)
    with running(made, fused=fused):
        results = topics.read(made.topic_names.results, 6)
    assert [*by_id(results)] == [str(number) for number in range(6)]
    for number, each in enumerate(by_id(results).values()):
        assert each.get("unanswered") == ("expired" if number % 2 else None)
        assert bool(each["outputs"]) is not bool(number % 2)
    assert [message.key() for message in results] == [b"k"] * 6


def test_a_request_expires_so_long_after_it_was_written(settings: MakeSettings, fused: bool) -> None:
    made = settings(partitions=1, requests={"deadline_ms": 60_000})
    topics = Topics(made)
    now_ms = round(time.time() * 1e3)
    topics.send(request("old", "old"), timestamp=now_ms - 61_000)
    topics.send(request("new", "new"), timestamp=now_ms)
    with running(made, fused=fused):
        results = by_id(topics.read(made.topic_names.results, 2))
    assert {id: result.get("unanswered") for id, result in results.items()} == {"old": "expired", "new": None}


@pytest.mark.parametrize("answered", [False, True])
def test_of_what_is_revised_while_it_waits_the_newest_is_answered(
    settings: MakeSettings, fused: bool, answered: bool
) -> None:
    made = settings(partitions=1, requests={"answer_superseded": answered})
    topics = Topics(made)
    for number in range(100):
        topics.send(request(f"text {number}", str(number)), key=b"s", headers=revision(number, final=number == 99))
    topics.send(request("other", "other"), key=b"s")
    with running(made, fused=fused):
        results = topics.read_until(made.topic_names.results, lambda messages: "other" in by_id(messages))
    found = {id: result.get("unanswered") for id, result in by_id(results).items()}
    # The first are read alone; those behind them come together, and wait together.
    assert [*found] == sorted(found, key=lambda id: 100 if id == "other" else int(id)), "in the order of the requests"
    assert [found["99"], found["other"]] == [None, None]
    assert set(found.values()) == ({None, "superseded"} if answered else {None})
    assert len(found) == 101 if answered else len(found) < 101
    assert results[-2].headers() == revision(99, final=True)


def test_headers_that_say_nothing_sensible_are_dead_letters(settings: MakeSettings) -> None:
    made = settings(partitions=1, batching={"lanes": {"interactive": 8, "bulk": 1}})
    topics = Topics(made)
    topics.send(request("a", "a"), headers=[("penstock.lane", b"fast")])
    topics.send(request("b", "b"), headers=[("penstock.revision", b"1")])
    topics.send(request("c", "c"), headers=[("penstock.lane", b"bulk")])
    topics.send(request("d", "d"), headers=revision(1))
    with running(made, fused=True):
        letters = topics.read(made.topic_names.dead_letters, 3)
        results = topics.read(made.topic_names.results, 1)
    causes = [read_cause(message.headers() or []) for message in letters]
    assert [cause and cause.reason for cause in causes] == [Reason.BAD_HEADERS] * 3
    assert [cause and cause.message for cause in causes] == [
        "penstock.lane: 'fast'; allowed: interactive, bulk",
        "penstock.utterance: missing or empty; penstock.utterance and penstock.revision go together",
        "penstock.utterance: the record has no key, which says whose utterance it is",
    ]
    assert [*by_id(results)] == ["c"]
