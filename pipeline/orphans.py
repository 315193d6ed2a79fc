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

# Giving up a partition takes milliseconds, unless its holder has much to finish first. What is nobody's in two looks at
# a group at rest is taken for forgotten: one rebalance too many costs nobody a partition.
_LOOK_MS = 1_000.0
# Asking for rebalances again and again would not hurry a holder that has much to finish.
_AGAIN_MS = 10_000.0
_REQUEST_S = 5.0

log = logging.getLogger("penstock.orphans")


@dataclass(slots=True)
class _Look:
    """What was asked, as answers that come."""

    group: Future[ConsumerGroupDescription]
    topic: Future[TopicDescription]

    @property
    def done(self) -> bool:
        return self.group.done() and (self.group.exception() is not None or self.topic.done())


class Orphans:
    """Of one topic in one classic group. Never blocks: asks, and sees at a later call what was answered.

    `connect` makes the client that asks; there is one until the group has been seen whole.
    """

    def __init__(self, connect: Callable[[], AdminClient], *, group: str, topic: str) -> None:
        self._connect = connect
        self._group = group
        self._topic = topic
        self._admin: AdminClient | None = None
        self._look: _Look | None = None
        self._due_ms = 0.0
        self._suspects: frozenset[int] = frozenset()
        self.whole = False
        """Nothing more is looked for."""

    def seen(self, now_ms: float) -> list[int]:
        """Partitions that were nobody's twice in a row, told once; empty as long as there are none."""
        if self.whole or (self._look is None and now_ms < self._due_ms):
            return []
        if self._look is None:
            self._ask()
        if self._look is None or not self._look.done:
            return []
        look, self._look = self._look, None
        self._due_ms = now_ms + _LOOK_MS
        orphans = self._missing(look)
        if self.whole:
            self._admin = None
            return []
        confirmed, self._suspects = orphans & self._suspects, orphans
        if confirmed:
            self._suspects = frozenset()
            self._due_ms = now_ms + _AGAIN_MS
        return sorted(confirmed)

    def _ask(self) -> None:
        admin = self._admin = self._admin or self._connect()
        self._look = _Look(
            admin.describe_consumer_groups([self._group], request_timeout=_REQUEST_S)[self._group],
            admin.describe_topics(TopicCollection([self._topic]), request_timeout=_REQUEST_S)[self._topic],
        )

    def _missing(self, look: _Look) -> frozenset[int]:
        try:
            group, topic = look.group.result(), look.topic.result()
        except KafkaException as err:
            # The embedded broker does not tell; one that is away is asked again.
            self.whole = err.args[0].code() == KafkaError._UNSUPPORTED_FEATURE
            log.debug("%s is not described: %s", self._group, err.args[0].str())
            return frozenset()
        if group.state != ConsumerGroupState.STABLE:
            return frozenset()
        held = {
            place.partition
            for member in group.members
            for place in member.assignment.topic_partitions
            if place.topic == self._topic
        }
        missing = frozenset(each.id for each in topic.partitions) - held
        self.whole = not missing
        return missing
