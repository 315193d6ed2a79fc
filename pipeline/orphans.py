"""Finds a topic's partitions that a consumer group has left to nobody.

With cooperative rebalancing a partition changes hands in two rebalances: its holder gives it up after the first, and
by joining anew asks for the second. A holder that dies in between and comes back by its name (static membership) gets
its part of the first back without a rebalance, so that nobody asks for the second: until something else does, what was
given up is read by no member, however long. Only a member of a name can bring that about, and only by starting. So each
looks, from its start on, until it has seen a group at rest that reads everything.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from confluent_kafka import ConsumerGroupState, KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # they are exported, but not in mypy's sense
    AdminClient,
    ConsumerGroupDescription,
    TopicDescription,
)

_LOOK_MS = 1_000.0
# Members that look all see the same: each waits so much longer than the one before it by name.
_TURN_MS = 3_000.0
# A group that has been rebalanced so often and still leaves partitions out has another trouble.
_MOST_FINDS = 3
_REQUEST_S = 5.0
_HOPELESS = frozenset(
    {
        KafkaError._UNSUPPORTED_FEATURE,
        KafkaError.UNSUPPORTED_VERSION,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    }
)

log = logging.getLogger("penstock.orphans")


@dataclass(frozen=True, slots=True)
class _Look:
    """What was asked, as answers that come."""

    group: Future[ConsumerGroupDescription]
    topic: Future[TopicDescription]

    @property
    def done(self) -> bool:
        return self.group.done() and (self.group.exception() is not None or self.topic.done())


class OrphanSearch:
    """Of one topic in one classic group, for its member `name`. Never blocks: asks, and sees at a later call what was
    answered.

    Giving up a partition may take a member up to `hand_over_ms`, in which it is nobody's too: an orphan is what has
    been for longer. `connect` makes the client that asks; there is one until the search is over.
    """

    def __init__(
        self, connect: Callable[[], AdminClient], *, group: str, topic: str, name: str, hand_over_ms: float
    ) -> None:
        # No more is looked for.
        self.over = False
        self._connect = connect
        self._group = group
        self._topic = topic
        self._name = name
        self._hand_over_ms = hand_over_ms
        self._admin: AdminClient | None = None
        self._asked: _Look | None = None
        self._due_ms = 0.0
        self._since_ms: dict[int, float] = {}
        self._finds = 0

    def look(self, now_ms: float) -> list[int]:
        """The partitions that are orphans, told once each time; empty as long as there are none."""
        if self.over or (self._asked is None and now_ms < self._due_ms):
            return []
        asked = self._asked = self._asked or self._ask()
        if not asked.done:
            return []
        self._asked = None
        self._due_ms = now_ms + _LOOK_MS
        try:
            group, topic = asked.group.result(), asked.topic.result()
        except KafkaException as err:
            # The embedded broker does not tell, others may forbid it; one that is away is asked again.
            if err.args[0].code() in _HOPELESS:
                self._end(f"it can't be seen whether all is read: {err.args[0].str()}")
            return []
        if group.state != ConsumerGroupState.STABLE:
            self._since_ms.clear()
            return []
        unread = _unread(group, topic)
        if not unread:
            self._end("all is read")
            return []
        self._since_ms = {partition: self._since_ms.get(partition, now_ms) for partition in unread}
        patience_ms = self._hand_over_ms + _TURN_MS * _turn(group, self._name)
        orphans = sorted(partition for partition, since in self._since_ms.items() if now_ms - since > patience_ms)
        if orphans:
            self._since_ms.clear()
            self._finds += 1
            if self._finds == _MOST_FINDS:
                self._end("partitions stay unread", level=logging.WARNING)
        return orphans

    def _ask(self) -> _Look:
        admin = self._admin = self._admin or self._connect()
        return _Look(
            admin.describe_consumer_groups([self._group], request_timeout=_REQUEST_S)[self._group],
            admin.describe_topics(TopicCollection([self._topic]), request_timeout=_REQUEST_S)[self._topic],
        )

    def _end(self, why: str, *, level: int = logging.DEBUG) -> None:
        log.log(level, "%s: %s", self._group, why)
        self.over = True
        self._admin = None


def _unread(group: ConsumerGroupDescription, topic: TopicDescription) -> set[int]:
    read = {
        place.partition
        for member in group.members
        for place in member.assignment.topic_partitions
        if place.topic == topic.name
    }
    return {each.id for each in topic.partitions} - read


def _turn(group: ConsumerGroupDescription, name: str) -> int:
    """A member's place among all by name, from 0."""
    return sum(str(member.group_instance_id) < name for member in group.members if member.group_instance_id)
