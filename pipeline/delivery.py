"""Delivery: what a worker does with finished units until they have arrived and their offsets are committed.

Two ways: `emitter.Emitter` (at least once: produce; the worker commits the offsets of what was acknowledged) and
`exactly_once.ExactlyOnce` (outputs and offsets in one transaction).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from confluent_kafka import KafkaError

from pipeline.deadline import Deadline
from pipeline.lines import PartitionLine, Unit

# What an abort does to outputs that are on their way.
PURGED = frozenset({KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT})
# The client's own limit (message.max.bytes) and the topic's (max.message.bytes).
TOO_LARGE = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE})


class Delivery(Protocol):
    """Takes units from any thread; their lines move on when what was made of them has arrived."""

    @property
    def commits_offsets(self) -> bool:
        """Whether it commits the offsets too. Otherwise the worker does, from the lines' watermarks."""
        ...

    def open(self, stopped: Callable[[], bool]) -> None:
        """Get ready to deliver, before any partition is read; early back when `stopped`."""
        ...

    def finish(self, unit: Unit) -> None:
        """A unit's outputs are complete. Called once a unit; never blocks."""
        ...

    def hurry(self, hurried: bool) -> None:
        """While hurried, deliver at once what there is: somebody waits for it."""
        ...

    def release(self, lines: Iterable[PartitionLine]) -> None:
        """These partitions are another worker's: nothing of them is committed after this returns."""
        ...

    def stop(self) -> None:
        """The worker failed: deliver and commit nothing more."""
        ...

    def close(self, deadline: Deadline) -> None:
        """End the threads, as far as the deadline allows."""
        ...
