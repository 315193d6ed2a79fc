"""A worker of a share group: takes records of any partition, answers them in any order, accepts them one by one.

What differs from `pipeline.worker`: a partition is nobody's, so there are no watermarks, no commits and no rebalances.
The broker locks each record for the member that has it. It is accepted when what was made of it is acknowledged,
released when the worker stops or fails before that, and handed to another where the lock runs out: a repeat, no loss.
A record that comes back too often is not computed again but dead-lettered, before the broker drops it.

Work in flight is bounded by what the members may take in one poll, and by tokens: above the bound nothing is polled.
"""

from __future__ import annotations

import logging
import queue
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from confluent_kafka import KafkaException, Message, ShareConsumer

from pipeline import clients
from pipeline.clock import now_ms
from pipeline.dead_letters import DeadLetters
from pipeline.deadline import Deadline, returns_within
from pipeline.delivery import Delivery
from pipeline.errors import WorkerFailure
from pipeline.intake import Intake
from pipeline.lines import PartitionLine, Unit
from pipeline.metrics import StageMetrics
from pipeline.share_member import ShareMember
from pipeline.worker_health import OnError, WorkerHealth, told
from schemas.errors import BadRecord, Reason
from schemas.packs import source_of
from schemas.records import InputRecord, OutputRecord, Source

log = logging.getLogger("penstock.share_worker")

# One computes, one fetches.
_MEMBERS = 2
# How late a record, an arrival or a stop is noticed: all members take turns on one thread.
_POLL_S = 0.005
# How often metrics are told, and a broker that was away is looked for.
_OBSERVE_MS = 500.0
# Leaving the group, where draining has used up its budget.
_LEAVE_GRACE_S = 2.0
# Answered records whose acceptance came too late, so that they are not answered again: more than a worker ever holds.
_REMEMBERED = 4_096


@dataclass(slots=True)
class _InFlight:
    """A record between reading and arrival. Where its lock runs out, this worker's other member may get it too."""

    unit: Unit
    holders: list[ShareMember]


class ShareWorker:
    """Two members of one share group, reading one topic until it is told to stop.

    `connect` makes a consumer that reports errors, `deliver` what delivers this worker's units; `broker_answers` is
    asked once a broker was away.
    """

    def __init__(
        self,
        *,
        topic: str,
        connect: Callable[[OnError], ShareConsumer],
        deliver: Callable[[ShareWorker], Delivery],
        intake: Intake,
        dead_letters: DeadLetters,
        metrics: StageMetrics,
        max_in_flight_tokens: int,
        max_deliveries: int,
        drain_timeout_ms: int,
        broker_answers: Callable[[], bool],
        clock_ms: Callable[[], float] = now_ms,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._topic = topic
        self._intake = intake
        self._dead_letters = dead_letters
        self._metrics = metrics
        self._max_in_flight_tokens = max_in_flight_tokens
        self._max_deliveries = max_deliveries
        self._drain_timeout_s = drain_timeout_ms / 1e3
        self._broker_answers = broker_answers
        self._clock_ms = clock_ms
        self._sleep = sleep
        self.health = WorkerHealth(topic, clock_ms=clock_ms)
        self._observe_due_ms = clock_ms()
        self._polling = False
        self._paused = False
        self._in_flight: dict[Source, _InFlight] = {}
        self._tokens_in_flight = 0
        self._answered: OrderedDict[Source, None] = OrderedDict()
        self._arrivals: queue.SimpleQueue[Unit] = queue.SimpleQueue()
        self._partitions: set[int] = set()
        self._delivery = deliver(self)
        self._members = [
            ShareMember(connect(self.health.on_error), topic, on_refused=self._remember) for _ in range(_MEMBERS)
        ]

    def finish(self, unit: Unit) -> None:
        """A unit has its outputs. Called once a unit, from any thread; never blocks."""
        self._delivery.finish(unit)

    def fail(self, err: BaseException) -> None:
        """Stop: what has not arrived is released. The first failure is the one that is told."""
        self.health.fail(err)

    def live(self) -> bool:
        """Whether the polling thread still comes round."""
        return self.health.live()

    def not_ready(self) -> str | None:
        """Why this worker takes no work at the moment; None where it does. A share consumer doesn't say whether it has
        joined its group, which takes it some seconds more."""
        return self.health.not_ready() or (None if self._polling else "waiting to join the share group")

    def run(self, submit: Callable[[Unit], None], stopped: Callable[[], bool]) -> None:
        """Read and submit until `stopped`, then drain. Raises WorkerFailure, having accepted nothing since."""
        try:
            self.health.polled()  # stages may have been loaded since this was made, for minutes
            self._delivery.open(lambda: stopped() or self._failed())
            for member in self._members:
                member.join()
            while not stopped() and not self._failed():
                self.turn(submit)
        except Exception as err:
            log.debug("", exc_info=True)
            self.fail(err)
        self.shut_down()

    def turn(self, submit: Callable[[Unit], None]) -> None:
        """Once round: accept what has arrived, read, submit."""
        self.health.polled()
        self._accept_arrivals()
        idle = True
        for member in self._members:
            if self._has_room() and member.free:
                idle = False
                for unit in self._read(member):
                    submit(unit)
        self._polling = True
        if idle:
            self._sleep(_POLL_S)
        if self._clock_ms() >= self._observe_due_ms:
            self._observe()
            self._observe_due_ms = self._clock_ms() + _OBSERVE_MS

    def shut_down(self) -> None:
        """Drain, release what is left, leave the group, end the delivery. Raises WorkerFailure where the worker had
        failed, or where not all has arrived that was read: then it was released."""
        deadline = Deadline(self._drain_timeout_s, clock=lambda: self._clock_ms() / 1e3)
        if self._failed():
            self._delivery.stop()
        log.info("%s: draining %d records, for at most %g s", self._topic, len(self._in_flight), self._drain_timeout_s)
        self._accept_arrivals()
        while self._in_flight and not self._failed() and not deadline.expired:
            self.health.polled()
            self._sleep(_POLL_S)
            self._accept_arrivals()
        # What has not left stays here: another answers it.
        self._delivery.release(each.unit.line for each in self._in_flight.values())
        left = len(self._in_flight)
        if not returns_within(deadline.remaining_s() + _LEAVE_GRACE_S, self._leave):
            log.warning("%s: the broker does not answer: left without a good-bye", self._topic)
        self._delivery.close(deadline)
        for partition in self._partitions:
            self._metrics.forget(self._topic, partition)
        if (failure := self.health.failure) is not None:
            raise WorkerFailure(told(failure)) from failure
        if left:
            raise WorkerFailure(f"{self._topic}: {left} records did not arrive in time: others read them again")

    def _leave(self) -> None:
        # It waits for a broker that may be away, for up to a minute.
        # First those that hold nothing: what others release would come to them, and be one delivery more.
        for member in sorted(self._members, key=lambda each: not each.free):
            try:
                member.leave()
            except KafkaException as err:
                log.warning("%s: left without a good-bye: %s", self._topic, err.args[0].str())

    def _read(self, member: ShareMember) -> Iterator[Unit]:
        try:
            messages = member.poll(_POLL_S)
        except KafkaException as err:
            self.health.on_read_error(err.args[0])
            return
        read_ms = self._clock_ms()
        for message in messages:
            error = message.error()
            if error is not None:
                self.health.on_read_error(error)
            elif (unit := self._begin(member, message, read_ms)) is not None:
                yield unit

    def _begin(self, member: ShareMember, message: Message, read_ms: float) -> Unit | None:
        """The unit of a record that is to be computed; None where it was, or is just being."""
        record = clients.input_record(message)
        source = record.source
        if source in self._answered:
            del self._answered[source]
            member.accept(source)
            return None
        if (known := self._in_flight.get(source)) is not None:
            known.holders.append(member)
            return None
        line = PartitionLine(source.partition)
        (unit,) = self._intake(line, [record], read_ms)
        line.begin(unit)
        self._in_flight[source] = _InFlight(unit, [member])
        self._tokens_in_flight += unit.tokens_in_flight
        self._partitions.add(source.partition)
        deliveries = message.delivery_count() or 1
        if deliveries > 1:
            log.warning("%s: comes for the %d. time", source, deliveries)
        if deliveries > self._max_deliveries:
            self._give_up(unit, record, deliveries)
        return unit

    def _give_up(self, unit: Unit, record: InputRecord, deliveries: int) -> None:
        """Each text of a pack that nobody could answer becomes a dead letter."""
        pack = unit.tokens
        if pack is None:  # it could not be read, and is one already
            return
        error = BadRecord(
            Reason.RETURNED_TOO_OFTEN,
            f"its pack {record.source} was taken {deliveries - 1} times and not answered: workers died of it, or with "
            "it, or were slower than share_group.lock_ms",
        )
        unit.tokens = None
        unit.outputs = [
            self._dead_letters.of_text(source_of(pack, text), text, error, unit.records)
            for texts in (pack.texts, pack.closed)
            for text in texts
        ]

    def _accept_arrivals(self) -> None:
        while not self._arrivals.empty():
            source = self._arrivals.get().records[0].source
            arrived = self._in_flight.pop(source)
            self._tokens_in_flight -= arrived.unit.tokens_in_flight
            for member in arrived.holders:
                member.accept(source)
        for member in self._members:
            member.send()

    def _remember(self, source: Source) -> None:
        """A record that is answered comes again: to this worker, maybe."""
        self._answered[source] = None
        if len(self._answered) > _REMEMBERED:
            self._answered.popitem(last=False)

    def _has_room(self) -> bool:
        """Above the bound on tokens nothing is polled until half of it has arrived."""
        bound = self._max_in_flight_tokens // 2 if self._paused else self._max_in_flight_tokens
        paused = self._tokens_in_flight > bound
        self._metrics.in_flight(self._topic, self._tokens_in_flight)
        if paused is not self._paused:
            self._paused = paused
            self._metrics.paused(self._topic, paused)
        return not paused

    def _observe(self) -> None:
        counts = Counter(source.partition for source in self._in_flight)
        for partition in self._partitions:
            # How far the group is behind only the broker knows.
            self._metrics.lag(self._topic, partition, -1, None, counts[partition])
        if self.health.broker_error is not None and self._broker_answers():
            self.health.broker_is_back()

    def _failed(self) -> bool:
        return self.health.failure is not None

    # What comes back from the delivery's thread.

    def arrived(self, unit: Unit) -> None:
        """What was made of the unit is where it belongs."""
        dead = sum(output.topic == self._dead_letters.topic for output in unit.outputs)
        self._metrics.arrived(texts=unit.texts - dead - unit.closed, total_ms=self._clock_ms() - unit.read_ms)
        self._arrivals.put(unit)

    def oversized(self, unit: Unit, output: OutputRecord, why: str) -> list[OutputRecord]:
        """What stands for an output that is too large for its topic; nothing, where nothing can."""
        return self._dead_letters.in_place_of(output, why, unit.records)
