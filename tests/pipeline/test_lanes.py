"""Lanes: a backlog of one is in nobody's way, and all of them are answered."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.settings import EnsembleSettings
from pipeline.topics import wanted_topics
from schemas.headers import read_cause
from stages.encode import Encoded, EncodeStage
from tests.eventually import WAIT_S, eventually
from tests.pipeline.conftest import Topics, running

pytestmark = pytest.mark.broker

MakeSettings = Callable[..., EnsembleSettings]

LANES: dict[str, Any] = {"lanes": {"interactive": 8, "bulk": 1}}


@pytest.fixture(params=[False, True], ids=["spread", "fused"])
def fused(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def request(text: str, id: str) -> bytes:
    return json.dumps({"text": text, "id": id}).encode()


def test_a_backlog_of_bulk_is_in_nobodys_way_and_is_answered_in_its_order(
    settings: MakeSettings, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The engine begins when both lanes' readers have read: either may be the first to join.
    begin = threading.Event()
    encode = EncodeStage.__call__

    def gated(*arguments: Any) -> Encoded:
        assert begin.wait(WAIT_S)
        return encode(*arguments)

    monkeypatch.setattr(EncodeStage, "__call__", gated)
    made = settings(partitions=1, batching=LANES | {"max_batch_tokens": 64, "max_in_flight_tokens": 4096})
    topics = Topics(made)
    topics.send(*(request("many words " * 8, f"b{number}") for number in range(600)), topic="reviews.requests.bulk")
    topics.send(b"no JSON", topic="reviews.requests.bulk")
    topics.send(*(request("few words", f"i{number}") for number in range(20)))
    with running(made, fused=fused) as workers:
        encoding = workers[0 if fused else 1].state
        read = [20, 1] if fused else [1, 1]  # requests, or packs of them
        eventually(
            lambda: (
                len(encoding.workers) == 2
                and all(
                    worker._assignment.records_in_flight >= count  # type: ignore[union-attr]
                    for worker, count in zip(encoding.workers, read, strict=True)
                )
            )
        )
        begin.set()
        results = topics.read(made.topic_names.results, 620)
        [letter] = topics.read(made.topic_names.dead_letters, 1)
        for lane, count in (("", 20), (".bulk", 601)):
            topic = f"reviews.requests{lane}"
            group = f"reviews{lane}.tokenize".replace(".bulk", ":bulk")
            topics.await_committed(group, topic, {0: count})
    values = [json.loads(message.value() or b"") for message in results]
    for lane, count in (("i", 20), ("b", 600)):
        assert [each["id"] for each in values if each["id"][0] == lane] == [f"{lane}{n}" for n in range(count)]
    last = max(place for place, each in enumerate(values) if each["id"][0] == "i")
    assert last < 300, "it did not wait for the bulk that was there before"
    assert values[-1]["source"]["topic"] == "reviews.requests.bulk"
    cause = read_cause(letter.headers() or [])
    assert cause is not None
    assert (cause.topic, cause.group) == ("reviews.requests.bulk", "reviews:bulk.tokenize")


def test_each_lane_has_topics_and_groups_of_its_own(settings: MakeSettings) -> None:
    made = settings(batching=LANES)
    assert [topic.name for topic in wanted_topics(made)] == [
        "reviews.requests",
        "reviews.tokens",
        "reviews.encodings",
        "reviews.requests.bulk",
        "reviews.tokens.bulk",
        "reviews.encodings.bulk",
        "reviews.results",
        "reviews.dead-letters",
    ]
    assert [topic.name for topic in wanted_topics(made, fused=True)] == [
        "reviews.requests",
        "reviews.requests.bulk",
        "reviews.results",
        "reviews.dead-letters",
    ]
    assert [lane.group_id("encode") for lane in made.by_lane().values()] == ["reviews.encode", "reviews:bulk.encode"]
