"""The partitions that a worker has at the moment: their lines, the bound on work in flight, and what is committed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from pipeline.deadline import Deadline
from pipeline.delivery import Delivery
from pipeline.lines import PartitionLine
from pipeline.metrics import StageMetrics

log = logging.getLogger("penstock.assignment")

# How often a shutdown or a rebalance looks whether everything has arrived.
_LOOK_S = 0.005
# A worker that is merely busy makes room in milliseconds. While it does not poll, a rebalance waits for it.
_PAUSE_AFTER_MS = 1_000.0


class Assignment:
    """One topic's partitions in one worker. Belongs to the thread that polls.

    Above `max_in_flight_tokens` nothing is read; where that lasts all partitions are paused, below half of it resumed.
    """

    def __init__(
        self,
        topic: str,
        *,
        max_in_flight_tokens: int,
        metrics: StageMetrics,
        delivery: Delivery,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.paused = False
        self._full_since_ms: float | None = None
        self._delivery = delivery
        self._sleep = sleep
        self._topic = topic
        self._max_in_flight_tokens = max_in_flight_tokens
        self._metrics = metrics
        self._lines: dict[int, PartitionLine] = {}
        self._committed: dict[int, int] = {}

    def line(self, partition: int | None) -> PartitionLine | None:
        """The line of a partition; None where it is another worker's."""
        return None if partition is None else self._lines.get(partition)

    @property
    def partitions(self) -> list[int]:
        """Sorted."""
        return sorted(self._lines)

    @property
    def records_in_flight(self) -> int:
        """Read and not yet arrived."""
        return sum(line.in_flight for line in self._lines.values())

    def add(self, partitions: Iterable[int]) -> None:
        """These are this worker's from now on."""
        for partition in partitions:
            self._lines[partition] = PartitionLine(partition)

    def drop(self, partitions: Iterable[int]) -> None:
        """These are not any more: what of them has not left is another worker's."""
        for partition in partitions:
            self._committed.pop(partition, None)
            line = self._lines.pop(partition, None)
            if line is not None:
                self._delivery.release([line])
                self._metrics.forget(self._topic, partition)

    def has_room(self, consumer: Consumer, now_ms: float) -> bool:
        """Keep the bound on tokens in flight: whether to poll now.

        Above the bound reading waits a moment without a poll, since a pause throws away what the client has prefetched.
        What lasts longer is a pause, with polls that bring no records, so that the group sees a living member.
        """
        tokens = sum(line.tokens_in_flight for line in self._lines.values())
        self._metrics.in_flight(self._topic, tokens)
        if self.paused:
            if tokens < self._max_in_flight_tokens // 2:
                consumer.resume(self._places())
                self._set_paused(False)
            return True
        if tokens <= self._max_in_flight_tokens:
            self._full_since_ms = None
            return True
        if self._full_since_ms is None:
            self._full_since_ms = now_ms
        if now_ms - self._full_since_ms < _PAUSE_AFTER_MS:
            return False
        consumer.pause(self._places())
        self._set_paused(True)
        return True

    def commit(self, consumer: Consumer, *, wait: bool, partitions: Sequence[int] | None = None) -> None:
        """Commit what has arrived, of all partitions or of some, unless the delivery does. A failure is logged: what is
        not committed is read again, a repeat and not a loss.

        With `wait`, also what was committed before: whether that succeeded is only reported later.
        """
        offsets = [
            TopicPartition(self._topic, partition, line.watermark)
            for partition, line in self._lines.items()
            if (partitions is None or partition in partitions)
            and line.watermark is not None
            and (wait or line.watermark != self._committed.get(partition))
        ]
        if not offsets or self._delivery.commits_offsets:
            return
        try:
            if wait:
                found = consumer.commit(offsets=offsets, asynchronous=False) or []
                refused = next((each.error for each in found if each.error is not None), None)
                if refused is not None:
                    raise KafkaException(refused)
            else:
                consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as err:
            log.warning("commit failed, its records may be answered twice: %s", err.args[0].str())
        else:
            self._committed.update((each.partition, each.offset) for each in offsets)

    def on_commit(self, err: KafkaError | None, offsets: list[TopicPartition]) -> None:
        """The client's report of a commit: one that failed is tried again at the next interval."""
        for each in offsets:
            refused = err or each.error
            if refused is not None:
                log.warning("commit of [%d] failed, it is tried again: %s", each.partition, refused.str())
                self._committed.pop(each.partition, None)

    def hand_over(
        self, consumer: Consumer, partitions: Sequence[int], deadline: Deadline, failed: Callable[[], bool]
    ) -> int:
        """Let what is in flight of these partitions arrive, commit it, and drop them; how many records did not arrive
        in time. A worker that failed only drops them."""
        lines = [line for partition in partitions if (line := self._lines.get(partition)) is not None]
        self._delivery.hurry(True)
        while any(line.in_flight for line in lines) and not failed():
            if deadline.expired:
                break
            self._sleep(_LOOK_S)
        self._delivery.hurry(False)
        if not failed():
            self.commit(consumer, wait=True, partitions=partitions)
        left = sum(line.in_flight for line in lines)
        self.drop(partitions)
        return left

    def observe_lag(self, consumer: Consumer) -> None:
        """Tell the metrics how far each partition is behind, from what the client knows already."""
        for partition, line in self._lines.items():
            _, end = consumer.get_watermark_offsets(TopicPartition(self._topic, partition), cached=True)
            self._metrics.lag(self._topic, partition, end, line.watermark, line.in_flight)

    def _set_paused(self, paused: bool) -> None:
        self.paused = paused
        self._full_since_ms = None
        self._metrics.paused(self._topic, paused)

    def _places(self) -> list[TopicPartition]:
        return [TopicPartition(self._topic, partition) for partition in self._lines]
