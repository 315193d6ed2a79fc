"""When a group's partitions are taken for nobody's, without a broker."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import ConsumerGroupState, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from pipeline.orphans import Orphans


class Group:
    """A group of two members over a topic of three partitions, as an admin client describes it."""

    def __init__(self) -> None:
        self.held: Sequence[Sequence[int]] = [[0, 1], [2]]
        self.state = ConsumerGroupState.STABLE
        self.refusal: int | None = None
        self.answers = True
        self.asked = 0

    def describe_consumer_groups(self, groups: list[str], **_: object) -> dict[str, Future[Any]]:
        self.asked += 1
        members = [
            SimpleNamespace(
                assignment=SimpleNamespace(topic_partitions=[TopicPartition("t", number) for number in numbers])
            )
            for numbers in self.held
        ]
        return {group: self._answer(SimpleNamespace(state=self.state, members=members)) for group in groups}

    def describe_topics(self, topics: Any, **_: object) -> dict[str, Future[Any]]:
        partitions = [SimpleNamespace(id=number) for number in range(3)]
        return {"t": self._answer(SimpleNamespace(partitions=partitions))}

    def _answer(self, result: object) -> Future[Any]:
        future: Future[Any] = Future()
        if self.refusal is not None:
            future.set_exception(KafkaException(KafkaError(self.refusal)))
        elif self.answers:
            future.set_result(result)
        return future


@pytest.fixture
def group() -> Group:
    return Group()


@pytest.fixture
def orphans(group: Group) -> Orphans:
    return Orphans(lambda: cast(AdminClient, group), group="g", topic="t")


def test_a_group_that_reads_everything_is_looked_at_once(group: Group, orphans: Orphans) -> None:
    assert orphans.seen(0) == []
    assert orphans.whole
    assert orphans.seen(60_000) == []
    assert group.asked == 1


def test_what_is_nobody_s_twice_is_told_once(group: Group, orphans: Orphans) -> None:
    group.held = [[1], []]
    assert orphans.seen(0) == []
    assert orphans.seen(999) == []
    assert group.asked == 1
    assert orphans.seen(1_000) == [0, 2]
    assert orphans.seen(2_000) == []
    group.held = [[0, 1], [2]]
    assert orphans.seen(11_000) == []
    assert orphans.whole


def test_what_stays_nobody_s_is_told_again_later(group: Group, orphans: Orphans) -> None:
    group.held = [[0, 1], []]
    assert [now_ms for now_ms in range(0, 30_000, 500) if orphans.seen(now_ms)] == [1_000, 12_000, 23_000]


def test_what_is_on_its_way_is_not_told(group: Group, orphans: Orphans) -> None:
    for now_ms, held in enumerate(([[0, 1], []], [[0, 2], []], [[1, 2], []])):
        group.held = held
        assert orphans.seen(now_ms * 1_000) == []
    group.state = ConsumerGroupState.PREPARING_REBALANCING
    group.held = [[], []]
    assert [orphans.seen(now_ms) for now_ms in range(3_000, 9_000, 1_000)] == [[]] * 6
    assert not orphans.whole


def test_an_answer_is_not_waited_for(group: Group, orphans: Orphans) -> None:
    group.answers = False
    assert [orphans.seen(now_ms) for now_ms in range(0, 60_000, 1_000)] == [[]] * 60
    assert group.asked == 1


def test_a_broker_that_is_away_is_asked_again_and_one_that_cannot_tell_is_not(group: Group, orphans: Orphans) -> None:
    group.refusal = KafkaError._TIMED_OUT
    assert [orphans.seen(now_ms) for now_ms in range(0, 5_000, 1_000)] == [[]] * 5
    assert group.asked == 5
    group.refusal = KafkaError._UNSUPPORTED_FEATURE
    assert [orphans.seen(now_ms) for now_ms in range(5_000, 9_000, 1_000)] == [[]] * 4
    assert group.asked == 6
