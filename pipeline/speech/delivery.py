"""What follows from a batch of records, on its way: what is sent, what is kept, and which records are done with.

Two ways. On a Kafka with transactions all of it is one: it is there, or nothing of it. The embedded broker has none:
there what is sent is acknowledged first, then what is kept, and then the records are let go of. A crash between any two
of these repeats records and loses none, and a repeat changes nothing (stages.transcripts).

Where a delivery fails it is not tried again: whoever asked for it begins anew with what was kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from pipeline import clients
from pipeline.attempts import Attempts
from pipeline.deadline import Deadline
from pipeline.delivery import PURGED, TOO_LARGE
from pipeline.errors import WorkerFailure
from pipeline.metrics import StageMetrics
from pipeline.speech.outgoing import Outgoing
from pipeline.transactional_producer import TransactionalProducer, usable_after

log = logging.getLogger("penstock.transcripts")

# As long as the broker leaves a transaction open by default (transaction.timeout.ms).
_DELIVERY_S = 10.0


class NotDelivered(Exception):
    """Raised when it is not certain that all is there: what was kept must be read anew."""


class Batch(msgspec.Struct, frozen=True, gc=False):
    """What is delivered together. `done` are the offsets that the group goes on with, among them one of each partition
    that is written to: they are what the group's check of a member rests on."""

    sent: Sequence[Outgoing]
    kept: Sequence[Outgoing]
    done: Sequence[TopicPartition]


class TranscriptsDelivery(Protocol):
    """Its methods raise WorkerFailure where another attempt is no use. `rest_s` is how long records should gather
    between two deliveries."""

    rest_s: float

    def ready(self) -> bool:
        """Whether something can be delivered, and nothing of a predecessor is open; ask again where it can't."""
        ...

    def deliver(self, batch: Batch, consumer: Consumer) -> None:
        """Returns when all is there. Raises NotDelivered."""
        ...

    def let_go(self, consumer: Consumer) -> None:
        """Partitions are another member's now, or this one ends: commit what was delivered, or let it be."""
        ...

    def close(self) -> None:
        """Deliver nothing more."""
        ...


class _Refusals:
    """What the broker refused of the records on their way: the first of them."""

    def __init__(self) -> None:
        self.first: tuple[Outgoing, KafkaError] | None = None

    def note(self, outgoing: Outgoing, err: KafkaError | None, _message: Message | None = None) -> None:
        """A delivery's report. What an abort does to records is no refusal."""
        if err is not None and err.code() not in PURGED and self.first is None:
            self.first = outgoing, err


class TransactionalDelivery:
    """All of a batch in one transaction, with the group's check that this member still has its partitions. `topic` is
    the feed's."""

    # The broker still writes the marks of the last transaction: what comes sooner waits for them in vain, and costs the
    # broker more than it brings. Of 2 to 24 ms this is where 100 speakers are annotated soonest.
    rest_s = 0.008

    def __init__(
        self, connect: Callable[[], Producer], *, topic: str, metrics: StageMetrics, clock_ms: Callable[[], float]
    ) -> None:
        self._producer = TransactionalProducer(connect, clock_ms=clock_ms)
        self._attempts = Attempts(topic, clock_ms=clock_ms)
        self._topic = topic
        self._metrics = metrics
        self._clock_ms = clock_ms

    def ready(self) -> bool:
        if self._clock_ms() < self._attempts.next_ms:
            return False
        try:
            return self._producer.start()
        except (KafkaException, SystemError) as err:
            self._give_up(_error(err), where=self._topic)
            return False

    def deliver(self, batch: Batch, consumer: Consumer) -> None:
        written = {each.partition for each in (*batch.sent, *batch.kept)}
        assert written <= {each.partition for each in batch.done}, "the group checks all that is written"
        if not batch.done:
            return
        deadline = Deadline(_DELIVERY_S, clock=lambda: self._clock_ms() / 1e3)
        started_ms = self._clock_ms()
        refusals = _Refusals()
        try:
            for each in (*batch.sent, *batch.kept):
                self._produce(each, refusals)
            # It waits for what is on its way, and fails with it.
            self._producer.commit(batch.done, consumer.consumer_group_metadata(), deadline)
        except (KafkaException, SystemError) as err:
            self._metrics.aborted()
            where, error = self._topic, _error(err)
            if refusals.first is not None:
                where, error = _place(refusals.first[0]), refusals.first[1]
            self._give_up(error, where=where)
            raise NotDelivered(f"{where}: {_told(error)}") from err
        self._attempts.succeeded()
        self._metrics.committed(self._clock_ms() - started_ms)

    def let_go(self, consumer: Consumer) -> None:
        """What was delivered is committed."""

    def close(self) -> None:
        self._producer.close()

    def _produce(self, outgoing: Outgoing, refusals: _Refusals) -> None:
        try:
            self._producer.produce(outgoing.record, outgoing.partition, partial(refusals.note, outgoing))
        except KafkaException as err:
            refusals.note(outgoing, err.args[0])
            raise

    def _give_up(self, error: KafkaError | None, *, where: str) -> None:
        self._producer.abort(usable=error is not None and usable_after(error))
        if error is not None and error.code() in TOO_LARGE:
            raise WorkerFailure(f"{where}: not delivered: {error.str()}")
        self._attempts.failed(_told(error), error, where=where)


class OrderedDelivery:
    """At least once: sent, then kept, then committed."""

    rest_s = 0.0

    def __init__(self, producer: Producer, *, commit_interval_ms: float, clock_ms: Callable[[], float]) -> None:
        self._producer = producer
        self._commit_interval_ms = commit_interval_ms
        self._clock_ms = clock_ms
        self._commit_due_ms = 0.0
        self._done: dict[tuple[str, int], TopicPartition] = {}

    def ready(self) -> bool:
        return True

    def deliver(self, batch: Batch, consumer: Consumer) -> None:
        for outgoing in (batch.sent, batch.kept):
            self._send(outgoing)
        self._done.update(((each.topic, each.partition), each) for each in batch.done)
        if self._clock_ms() >= self._commit_due_ms and self._done:
            self._commit_due_ms = self._clock_ms() + self._commit_interval_ms
            places, self._done = [*self._done.values()], {}
            # One that fails is made good by the next one, or repeated.
            consumer.commit(offsets=places, asynchronous=True)

    def let_go(self, consumer: Consumer) -> None:
        places, self._done = [*self._done.values()], {}
        try:
            if places:
                consumer.commit(offsets=places, asynchronous=False)
        except KafkaException as err:
            log.warning("commit failed, its records are read twice: %s", err.args[0].str())

    def close(self) -> None:
        """Nothing is on its way."""

    def _send(self, outgoing: Sequence[Outgoing]) -> None:
        deadline = Deadline(_DELIVERY_S, clock=lambda: self._clock_ms() / 1e3)
        refusals = _Refusals()
        for each in outgoing:
            try:
                clients.produce(self._producer, each.record, each.partition, partial(refusals.note, each))
            except KafkaException as err:
                refusals.note(each, err.args[0])
                break
        while self._producer.flush(deadline.remaining_s()):
            if deadline.expired:
                raise NotDelivered("the broker does not acknowledge")
        if refusals.first is not None:
            refused, error = refusals.first
            raise WorkerFailure(f"{_place(refused)}: not delivered: {error.str()}")


def _place(outgoing: Outgoing) -> str:
    return f"{outgoing.record.topic} [{outgoing.partition}]"


def _error(err: KafkaException | SystemError) -> KafkaError | None:
    """None of a SystemError, which says that callbacks ran while the client had failed (confluent-kafka 2.16)."""
    return err.args[0] if isinstance(err, KafkaException) else None


def _told(error: KafkaError | None) -> str:
    return error.str() if error is not None else "the producer has failed, as one that was fenced does"
