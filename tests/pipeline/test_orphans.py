"""When a group's partitions are taken for nobody's, without a broker."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import ConsumerGroupState, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from pipeline.orphans import OrphanSearch


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
                group_instance_id=name,
                assignment=SimpleNamespace(topic_partitions=[TopicPartition("t", number) for number in numbers]),
            )
            for name, numbers in zip("ab", self.held, strict=True)
        ]
        return {group: self._answer(SimpleNamespace(state=self.state, members=members)) for group in groups}

    def describe_topics(self, topics: Any, **_: object) -> dict[str, Future[Any]]:
        partitions = [SimpleNamespace(id=number) for number in range(3)]
        return {"t": self._answer(SimpleNamespace(name="t", partitions=partitions))}

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


HAND_OVER_MS = 5_000


def search_of(group: Group, *, name: str = "a") -> OrphanSearch:
    return OrphanSearch(lambda: cast(AdminClient, group), group="g", topic="t", name=name, hand_over_ms=HAND_OVER_MS)


@pytest.fixture
def search(group: Group) -> OrphanSearch:
    return search_of(group)


def found(search: OrphanSearch, until_ms: int) -> dict[int, list[int]]:
    """What is told when, looked at twice a second."""
    told = {now_ms: search.look(now_ms) for now_ms in range(0, until_ms, 500)}
    return {now_ms: orphans for now_ms, orphans in told.items() if orphans}


def test_a_group_that_reads_everything_is_looked_at_once(group: Group, search: OrphanSearch) -> None:
    assert found(search, 60_000) == {}
    assert search.over
    assert group.asked == 1


def test_what_is_nobody_s_for_longer_than_a_hand_over_is_told(group: Group, search: OrphanSearch) -> None:
    group.held = [[1], []]
    assert found(search, 7_000) == {6_000: [0, 2]}
    group.held = [[0, 1], [2]]
    assert search.look(8_000) == []
    assert search.over


def test_members_take_turns(group: Group) -> None:
    group.held = [[0, 1], []]
    assert found(search_of(group, name="b"), 10_000) == {9_000: [2]}


def test_what_stays_nobody_s_is_told_three_times(
    group: Group, search: OrphanSearch, caplog: pytest.LogCaptureFixture
) -> None:
    group.held = [[0, 1], []]
    assert found(search, 120_000) == {6_000: [2], 13_000: [2], 20_000: [2]}
    assert search.over
    assert [record.message for record in caplog.records] == ["g: partitions stay unread"]


def test_what_is_on_its_way_is_not_told(group: Group, search: OrphanSearch) -> None:
    for now_ms in range(0, 60_000, 1_000):
        group.held = [[now_ms // 1_000 % 3], [(now_ms // 1_000 + 1) % 3]]
        assert search.look(now_ms) == []
    group.held = [[], []]
    for now_ms in range(60_000, 120_000, 1_000):
        stable = now_ms % 5_000
        group.state = ConsumerGroupState.STABLE if stable else ConsumerGroupState.PREPARING_REBALANCING
        assert search.look(now_ms) == []
    assert not search.over


def test_an_answer_is_not_waited_for(group: Group, search: OrphanSearch) -> None:
    group.answers = False
    assert found(search, 60_000) == {}
    assert group.asked == 1


def test_a_broker_that_is_away_is_asked_again_and_one_that_cannot_tell_is_not(
    group: Group, search: OrphanSearch
) -> None:
    group.refusal = KafkaError._TIMED_OUT
    assert found(search, 5_000) == {}
    assert group.asked == 5
    group.refusal = KafkaError._UNSUPPORTED_FEATURE
    assert search.look(5_000) == []
    assert search.over
