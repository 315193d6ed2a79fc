"""A worker: polls one topic, feeds steps, sees to it that what has arrived is committed.

The thread that runs it polls Kafka and never waits for an engine or a full producer: work goes to the steps' threads
and comes back through the delivery's. In-flight tokens are bounded; above the bound the partitions are paused (polling
goes on, so the group never evicts a slow worker), below half of it they are resumed. Only where a partition is taken
away it waits, until what was read of it has arrived.

Shutting down, in this order: stop reading; let what was read arrive; commit; leave the group; end the threads. The
same budget covers all of it. A worker that failed skips to the end: it commits nothing, and another takes over from
the last commit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from functools import partial

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from pipeline import clients
from pipeline.assignment import Assignment
from pipeline.clock import now_ms
from pipeline.dead_letters import DeadLetters
from pipeline.deadline import Deadline, returns_within
from pipeline.delivery import Delivery
from pipeline.errors import WorkerFailure
from pipeline.group_offsets import committed_offsets
from pipeline.intake import Intake
from pipeline.lines import PartitionLine, Unit
from pipeline.metrics import StageMetrics
from pipeline.orphans import OrphanSearch
from pipeline.worker_health import OnError, WorkerHealth, told
from schemas.records import InputRecord, OutputRecord

OnCommit = Callable[[KafkaError | None, list[TopicPartition]], None]

log = logging.getLogger("penstock.worker")

# A poll returns with the first record; this is how long an idle one waits, and so how late a stop is noticed.
_POLL_S = 0.05
# Records taken in one go: a few packs a partition.
_CONSUME_RECORDS = 512
# How soon a worker that is full sees that it has room again.
_FULL_LOOK_S = 0.002
# Committing and leaving the group, where draining has used up its budget.
_LEAVE_GRACE_S = 2.0
# Asking whether a broker that was away is back, while there is nothing else to do.
_BROKER_LOOK_S = 0.2


class Worker:
    """A member of one consumer group, reading one topic until it is told to stop.

    `finish` is where the last step hands its units; `fail` is where any thread reports what can't be mended.
    A group without a committed offset begins at the beginning. `connect` makes the consumer, which reports errors and
    commits; `deliver` makes what delivers this worker's units. After a read the next one comes no sooner than
    `read_delay_ms`, unless there is a backlog. `orphans` is for a member of a name.
    """

    def __init__(
        self,
        *,
        topic: str,
        connect: Callable[[OnError, OnCommit], Consumer],
        deliver: Callable[[Worker], Delivery],
        intake: Intake,
        dead_letters: DeadLetters,
        metrics: StageMetrics,
        max_in_flight_tokens: int,
        commit_interval_ms: int,
        drain_timeout_ms: int,
        read_delay_ms: float = 0.0,
        orphans: OrphanSearch | None = None,
        clock_ms: Callable[[], float] = now_ms,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._topic = topic
        self._orphans = orphans
        self._rejoin: Deadline | None = None
        self._read_delay_ms = read_delay_ms
        self._next_read_ms = 0.0
        self._clock_ms = clock_ms
        self._intake = intake
        self._dead_letters = dead_letters
        self._metrics = metrics
        self._commit_interval_ms = commit_interval_ms
        self._commit_due_ms = clock_ms() + commit_interval_ms
        self._drain_timeout_s = drain_timeout_ms / 1e3
        self.health = WorkerHealth(topic, clock_ms=clock_ms)
        self._open = False
        self._stopping = False
        self._joined = False
        self._lost = False
        self._left = 0
        self._delivery = deliver(self)
        self._assignment = Assignment(
            topic,
            max_in_flight_tokens=max_in_flight_tokens,
            metrics=metrics,
            delivery=self._delivery,
            sleep=self._wait,
        )
        self._sleep = sleep
        self._consumer = connect(self.health.on_error, self._assignment.on_commit)
        self._membership: object = None

    def finish(self, unit: Unit) -> None:
        """A unit has its outputs. Called once a unit, from any thread; never blocks."""
        self._delivery.finish(unit)

    def fail(self, err: BaseException) -> None:
        """Stop without committing anything more. The first failure is the one that is told."""
        self.health.fail(err)

    def live(self) -> bool:
        """Whether the polling thread still comes round."""
        return self.health.live()

    def not_ready(self) -> str | None:
        """Why this worker takes no work at the moment; None where it does."""
        if (unwell := self.health.not_ready()) is not None:
            return unwell
        if not self._open:
            return "waiting for the broker to take transactions"
        if self._lost:
            return "lost its partitions: waiting for the consumer group to give it some"
        # A member without partitions is a spare, and ready.
        return None if self._joined else "waiting to join the consumer group"

    def run(self, submit: Callable[[Unit], None], stopped: Callable[[], bool]) -> None:
        """Read and submit until `stopped`, then drain. Raises WorkerFailure, having committed nothing since."""
        try:
            self.start(lambda: stopped() or self._failed())
            while not stopped() and not self._failed():
                self.turn(submit)
        except Exception as err:
            log.debug("", exc_info=True)
            self.fail(err)
        self.shut_down()

    def start(self, stopped: Callable[[], bool]) -> None:
        """Get ready to deliver, then join the group: in this order, so that nothing is read that can't be answered."""
        self.health.polled()  # stages may have been loaded since this was made, for minutes
        self._delivery.open(stopped)
        self._open = True
        self._join()

    def turn(self, submit: Callable[[Unit], None]) -> None:
        """Once round: read, submit, keep the bound, commit when it is time."""
        if (early_ms := self._next_read_ms - self._clock_ms()) > 0:
            self._sleep(early_ms / 1e3)
        self.health.polled()
        if self._delivery.commits_offsets:
            self._membership = self._consumer.consumer_group_metadata()  # another thread answers: 12 us, or a wait
        self._joined = self._joined or bool(self._consumer.memberid())
        if self._rejoin is None and self._assignment.has_room(self._consumer, self._clock_ms()):
            for unit in self._read():
                unit.line.begin(unit)
                submit(unit)
        else:
            self._sleep(_FULL_LOOK_S)
        if self._clock_ms() >= self._commit_due_ms:
            self._assignment.commit(self._consumer, wait=False)
            self._assignment.observe_lag(self._consumer)
            self.health.look(self._consumer, _BROKER_LOOK_S)
            self._commit_due_ms = self._clock_ms() + self._commit_interval_ms
        self._adopt_orphans()

    def _join(self) -> None:
        self._consumer.subscribe(
            [self._topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def _adopt_orphans(self) -> None:
        """Have the group rebalanced where nobody reads a partition, by joining it anew.

        First all that was read is to arrive: without a subscription librdkafka sends no heartbeats while it waits for
        that. What it sends then is no good-bye but another JoinGroup, which differs from the last one in its bytes.
        """
        if self._rejoin is None:
            if self._orphans is None or not self._joined or not (orphans := self._orphans.look(self._clock_ms())):
                return
            log.warning("nobody in the group reads %s %s: joining it anew", self._topic, orphans)
            self._rejoin = self._deadline()
        if self._rejoin.expired or not self._assignment.records_in_flight:
            self._rejoin = None
            self._consumer.unsubscribe()
            self._join()

    def membership(self) -> object:
        """Of the group, for the broker to check an offset's commit against: it refuses an old one.

        As of the last turn, since no other thread gets a word in while a consumer is polled. Only where the delivery
        commits offsets.
        """
        return self._membership

    def shut_down(self) -> None:
        """Drain, leave the group, end the delivery. Raises WorkerFailure where the worker had failed, or where not all
        has arrived that was read: then it is read again."""
        self._stopping = True
        deadline = self._deadline()
        if self._failed():
            self._delivery.stop()
        log.info(
            "%s: draining %d records, for at most %g s",
            self._topic,
            self._assignment.records_in_flight,
            self._drain_timeout_s,
        )
        if not returns_within(deadline.remaining_s() + _LEAVE_GRACE_S, partial(self._leave, deadline)):
            log.warning("%s: the broker does not answer: left without a good-bye", self._topic)
        self._delivery.close(deadline)
        if (failure := self.health.failure) is not None:
            raise WorkerFailure(told(failure)) from failure
        if left := self._left or self._assignment.records_in_flight:
            raise WorkerFailure(f"{self._topic}: {left} records did not arrive in time: they will be read again")

    def _leave(self, deadline: Deadline) -> None:
        # Committing and leaving wait for a broker that may be away, for up to a minute.
        partitions = self._assignment.partitions
        self._left = self._assignment.hand_over(self._consumer, partitions, deadline, self._failed)
        self._consumer.close()

    def _read(self) -> list[Unit]:
        try:
            messages = clients.read(self._consumer, _CONSUME_RECORDS, _POLL_S)
        except KafkaException as err:
            self.fail(WorkerFailure(f"{self._topic}: {err.args[0].str()}"))
            return []
        records: dict[PartitionLine, list[InputRecord]] = {}
        for message in messages:
            error = message.error()
            if error is not None:
                self._on_message_error(message, error)
            elif (line := self._assignment.line(message.partition())) is not None:
                records.setdefault(line, []).append(clients.input_record(message))
        read_ms = self._clock_ms()
        units = [unit for line, read in records.items() for unit in self._intake(line, read, read_ms)]
        # A backlog fills its packs without waiting.
        if 0 < len(messages) < _CONSUME_RECORDS and len(units) <= len(records):
            self._next_read_ms = read_ms + self._read_delay_ms
        return units

    def _deadline(self) -> Deadline:
        return Deadline(self._drain_timeout_s, clock=lambda: self._clock_ms() / 1e3)

    def _failed(self) -> bool:
        return self.health.failure is not None

    def _wait(self, seconds: float) -> None:
        self.health.polled()
        self._sleep(seconds)

    # What comes back from the delivery's threads.

    def arrived(self, unit: Unit) -> None:
        """What was made of the unit is where it belongs, and so is all before it."""
        dead = sum(output.topic == self._dead_letters.topic for output in unit.outputs)
        self._metrics.arrived(texts=unit.texts - dead - unit.closed, total_ms=self._clock_ms() - unit.read_ms)

    def oversized(self, unit: Unit, output: OutputRecord, why: str) -> list[OutputRecord]:
        """What stands for an output that is too large for its topic; nothing, where nothing can."""
        return self._dead_letters.in_place_of(output, why, unit.records)

    # The group's callbacks, which the client runs inside of poll().

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._stopping:
            # The answer would come to a poll that is not there any more.
            consumer.incremental_assign(partitions)
            return
        try:
            committed = committed_offsets(consumer, self._topic, [each.partition for each in partitions])
        except KafkaException as err:
            self.fail(WorkerFailure(f"no committed offsets from the broker: {err.args[0].str()}"))
            return
        for each in partitions:
            each.offset = committed.get(each.partition, OFFSET_BEGINNING)
        self._assignment.add(each.partition for each in partitions)
        consumer.incremental_assign(partitions)
        if self._assignment.paused:
            consumer.pause(partitions)
        self._lost = False
        log.info("assigned %s %s", self._topic, _numbers(partitions))

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # The group is a generation on by now, and refuses offsets of the one before.
        self._membership = consumer.consumer_group_metadata()
        revoked = [each.partition for each in partitions]
        left = self._assignment.hand_over(consumer, revoked, self._deadline(), self._failed)
        if left:
            log.warning("%s: %d records did not arrive in time: others read them again", self._topic, left)
        consumer.incremental_unassign(partitions)
        log.info("revoked %s %s", self._topic, _numbers(partitions))

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._assignment.drop([each.partition for each in partitions])
        consumer.incremental_unassign(partitions)
        self._lost = True
        log.warning("lost %s %s: others may work on it now", self._topic, _numbers(partitions))

    def _on_message_error(self, message: Message, error: KafkaError) -> None:
        line = self._assignment.line(message.partition())
        if error.code() == KafkaError._AUTO_OFFSET_RESET and line is not None:
            self._metrics.records_lost()
            what = "records were deleted before they were read"
            log.error("%s [%d]: %s: %s", self._topic, line.partition, what, error.str())
            self._read_from_beginning(TopicPartition(self._topic, line.partition, OFFSET_BEGINNING))
        else:
            self.health.on_read_error(error)

    def _read_from_beginning(self, partition: TopicPartition) -> None:
        # A partition whose offset is out of range has no fetcher that could seek: it is assigned anew.
        self._consumer.incremental_unassign([partition])
        self._consumer.incremental_assign([partition])
        if self._assignment.paused:
            self._consumer.pause([partition])


def _numbers(partitions: Iterable[TopicPartition]) -> list[int]:
    return sorted(each.partition for each in partitions)
