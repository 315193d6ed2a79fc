"""One transactional producer: outputs of its partitions and the offsets they answer, committed together or not at all.

A commit, in steps: (1) all outputs are acknowledged; (2) nothing of it belongs to a partition that was taken away; (3)
the offsets of the units join the transaction, with this worker's membership of the group, which the broker checks: a
worker that the group has replaced can't commit; (4) the transaction commits; (5) the lines move on.

Where a step fails the transaction is aborted and the same units are produced again in a new one: their outputs are kept
until they are committed, so nothing is computed twice. Whether a commit that failed without an answer has happened
after all is read off the group's committed offsets before anything is produced again.

Of threads it knows two: the one that calls `turn`, and whoever calls `finish` and `release`.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from pipeline.attempts import Attempts
from pipeline.deadline import Deadline
from pipeline.delivery import PURGED, TOO_LARGE
from pipeline.errors import WorkerFailure
from pipeline.lines import PartitionLine, Unit
from pipeline.metrics import StageMetrics
from pipeline.transactional_producer import TransactionalProducer, usable_after
from schemas.records import OutputRecord

log = logging.getLogger("penstock.transactions")

# All steps of a commit: by then the broker has aborted it (transaction.timeout.ms).
_COMMIT_S = 10.0
# Delivering all that is on its way, before and after a record that goes alone.
_ALONE_S = 5.0


class _Again(Exception):
    """Raised when an open transaction must be aborted and its units produced once more: at once where what was wrong
    will not be there again."""

    def __init__(self, why: str, *, at_once: bool) -> None:
        super().__init__(why)
        self.at_once = at_once


class TransactionLane:
    """Delivers the units of some partitions, in order, in one transaction after the other.

    `connect` makes a producer; `committed` reads the group's offsets of partitions; `oversized` makes what stands for
    an output too large for its topic (nothing, where nothing can). `turn` raises WorkerFailure where no attempt helps.
    """

    def __init__(
        self,
        *,
        topic: str,
        connect: Callable[[], Producer],
        membership: Callable[[], object],
        committed: Callable[[Sequence[int]], Mapping[int, int]],
        on_arrived: Callable[[Unit], None],
        oversized: Callable[[Unit, OutputRecord, str], list[OutputRecord]],
        metrics: StageMetrics,
        commit_interval_ms: float,
        max_records: int,
        clock_ms: Callable[[], float],
    ) -> None:
        self.hurried = False
        self._topic = topic
        self._producer = TransactionalProducer(connect, clock_ms=clock_ms)
        self._membership = membership
        self._committed = committed
        self._on_arrived = on_arrived
        self._oversized = oversized
        self._metrics = metrics
        self._commit_interval_ms = commit_interval_ms
        self._max_records = max_records
        self._clock_ms = clock_ms
        self._inbox: queue.SimpleQueue[Unit | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        # Released by their lines in order: `_waiting` for a transaction, `_open` in the one that is open.
        self._waiting: deque[Unit] = deque()
        self._open: list[Unit] = []
        self._records_open = 0
        self._committed_ms = -math.inf
        self._in_doubt = False
        self._too_large: list[tuple[Unit, OutputRecord, str]] = []
        # By identity: a broker refuses a batch of records for its size as a whole, so that each is tried alone then.
        self._tried_alone: list[OutputRecord] = []
        self._delivery_error: KafkaError | None = None
        self._refused_at: str | None = None
        self._attempts = Attempts(topic, clock_ms=clock_ms)

    @property
    def connected(self) -> bool:
        """Whether there is a producer, and no transaction of a predecessor is open any more."""
        return self._producer.connected

    def finish(self, unit: Unit) -> None:
        """A unit's outputs are complete. From any thread; never blocks."""
        self._inbox.put(unit)

    def wake(self) -> None:
        """Let a `turn` that waits return."""
        self._inbox.put(None)

    def release(self, line: PartitionLine) -> None:
        """Nothing of the partition is committed after this returns. It waits for a commit that is under way."""
        line.dropped = True
        with self._lock:
            pass

    def turn(self, wait_s: float) -> None:
        """Do what is due; with nothing due, wait so long for a unit."""
        self._take(min(wait_s, self._due_in_s()))
        if self._clock_ms() < self._attempts.next_ms:
            return
        try:
            if not self._producer.start():
                return
            if self._in_doubt:
                self._settle_doubt()
            self._produce_waiting()
            if self._open and self._due_in_s() <= 0:
                self._commit()
        except (_Again, KafkaException, SystemError) as err:
            self._recover(err)

    def close(self) -> None:
        """Abort what is open."""
        self._producer.close()

    def _take(self, wait_s: float) -> None:
        try:
            unit = self._inbox.get(timeout=wait_s) if wait_s > 0 else self._inbox.get_nowait()
            while True:
                if unit is not None and not unit.line.dropped:
                    for ready in unit.line.finish(unit):
                        ready.undelivered = 1  # one commit
                        self._waiting.append(ready)
                unit = self._inbox.get_nowait()
        except queue.Empty:
            pass

    def _due_in_s(self) -> float:
        """Seconds until there is something to do that no unit brings."""
        now_ms = self._clock_ms()
        if now_ms < self._attempts.next_ms:
            return (self._attempts.next_ms - now_ms) / 1e3
        if not self._producer.connected or self._waiting:
            return 0.0
        if not self._open:
            return float("inf")
        if self.hurried or self._records_open >= self._max_records:
            return 0.0
        # The interval is between commits: what comes after a pause is committed at once.
        return (self._committed_ms + self._commit_interval_ms - now_ms) / 1e3

    def _settle_doubt(self) -> None:
        """The group's committed offsets say which units arrived in a commit that nobody answered."""
        self._waiting = deque(unit for unit in self._waiting if not unit.line.dropped)
        partitions = sorted({unit.line.partition for unit in self._waiting})
        try:
            committed = self._committed(partitions) if partitions else {}
        except KafkaException as err:
            raise _Again(f"the group's offsets can't be read: {err.args[0].str()}", at_once=False) from err
        self._in_doubt = False
        waiting, self._waiting = self._waiting, deque()
        for unit in waiting:
            if unit.next_offset <= committed.get(unit.line.partition, -1):
                self._arrive([unit])
            else:
                self._waiting.append(unit)

    def _produce_waiting(self) -> None:
        while self._waiting and self._records_open < self._max_records:
            unit = self._waiting.popleft()
            if unit.line.dropped:
                continue
            self._open.append(unit)
            for output in list(unit.outputs):
                alone = any(each is output for each in self._tried_alone)
                if alone:
                    self._producer.flush(self._deadline(_ALONE_S))
                self._produce(unit, output)
                if alone:
                    self._producer.flush(self._deadline(_ALONE_S))
        self._producer.serve()

    def _produce(self, unit: Unit, output: OutputRecord) -> None:
        self._records_open += 1
        try:
            self._producer.produce(output, unit.line.partition, partial(self._reported, unit, output))
        except KafkaException as err:
            if err.args[0].code() not in TOO_LARGE:
                self._refused_at = f"{output.topic} [{unit.line.partition}]"
                raise
            for replacement in self._replace(unit, output, err.args[0].str()):
                self._produce(unit, replacement)

    def _reported(self, unit: Unit, output: OutputRecord, err: KafkaError | None, _message: Message) -> None:
        if err is None:
            return
        if err.code() in TOO_LARGE:
            self._too_large.append((unit, output, err.str()))
        elif self._delivery_error is None and err.code() not in PURGED:
            self._delivery_error, self._refused_at = err, f"{output.topic} [{unit.line.partition}]"

    def _commit(self) -> None:
        deadline = self._deadline(_COMMIT_S)
        started_ms = self._clock_ms()
        while not self._producer.flush(deadline):
            self._require_owned()
            if deadline.expired:
                raise _Again("the broker does not acknowledge the outputs", at_once=False)
        if self._too_large:
            raise _Again("an output is too large for its topic", at_once=True)
        with self._lock:  # whoever takes a partition away waits for what follows, and for no more
            self._require_owned()
            ends = {unit.line.partition: unit.next_offset for unit in self._open}
            places = [TopicPartition(self._topic, partition, offset) for partition, offset in ends.items()]
            self._producer.commit(places, self._membership(), deadline)
            committed, self._open, self._records_open = self._open, [], 0
        self._committed_ms = self._clock_ms()
        self._attempts.succeeded()
        self._tried_alone.clear()
        self._metrics.committed(self._clock_ms() - started_ms)
        self._arrive(committed)

    def _require_owned(self) -> None:
        if any(unit.line.dropped for unit in self._open):
            raise _Again("a partition was taken away", at_once=True)

    def _arrive(self, units: Iterable[Unit]) -> None:
        for unit in units:
            unit.undelivered = 0
            for arrived in unit.line.advance():
                self._on_arrived(arrived)

    def _recover(self, err: Exception) -> None:
        """Abort, and put the units back where they wait. Raises WorkerFailure where that is no use."""
        error = err.args[0] if isinstance(err, KafkaException) else None
        told = self._delivery_error or error
        why = told.str() if told is not None else str(err)
        at_once = isinstance(err, _Again) and err.at_once
        # A broker that refuses a topic as part of a transaction does not say which.
        topics = sorted({output.topic for unit in self._open for output in unit.outputs})
        where = self._refused_at or " -> ".join([self._topic, *([", ".join(topics)] if topics else [])])
        self._attempts.failed(why, told, where=where, at_once=at_once)
        log.log(
            logging.INFO if at_once else logging.WARNING,
            "%s: transaction aborted, to be tried again: %s",
            self._topic,
            why,
        )
        self._metrics.aborted()
        self._producer.abort(usable=isinstance(err, _Again) or (error is not None and usable_after(error)))
        for unit, output, reason in self._too_large:
            if any(each is output for each in self._tried_alone):
                self._replace(unit, output, reason)
            else:
                self._tried_alone.append(output)
        self._too_large, self._delivery_error, self._refused_at = [], None, None
        self._waiting.extendleft(reversed(self._open))
        self._open, self._records_open = [], 0
        self._in_doubt = True

    def _deadline(self, budget_s: float) -> Deadline:
        return Deadline(budget_s, clock=lambda: self._clock_ms() / 1e3)

    def _replace(self, unit: Unit, output: OutputRecord, why: str) -> list[OutputRecord]:
        self._metrics.delivery_failed()
        replacements = self._oversized(unit, output, why)
        if not replacements:
            raise WorkerFailure(f"{output.topic} [{unit.line.partition}]: not delivered: {why}")
        unit.replace(output, replacements)
        return replacements
