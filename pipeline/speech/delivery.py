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
from pipeline.delivery import TOO_LARGE
from pipeline.errors import WorkerFailure
from pipeline.metrics import StageMetrics
from pipeline.speech.desk import Outgoing
from pipeline.transactional_producer import TransactionalProducer, usable_after

log = logging.getLogger("penstock.transcripts")

# By then the broker has aborted it (transaction.timeout.ms).
_DELIVERY_S = 10.0


class NotDelivered(Exception):
    """Raised when it is not certain that all is there: what was kept must be read anew."""


class Batch(msgspec.Struct, frozen=True, gc=False):
    """What is delivered together. `done` are the offsets that the group goes on with."""

    sent: Sequence[Outgoing]
    kept: Sequence[Outgoing]
    done: Sequence[TopicPartition]


class TranscriptsDelivery(Protocol):
    """Its methods raise WorkerFailure where another attempt is no use."""

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


class InTransactions:
    """All of a batch in one transaction, with the group's check that this member still has its partitions."""

    def __init__(
        self, connect: Callable[[], Producer], *, topic: str, metrics: StageMetrics, clock_ms: Callable[[], float]
    ) -> None:
        self._producer = TransactionalProducer(connect, clock_ms=clock_ms)
        self._attempts = Attempts(topic, clock_ms=clock_ms)
        self._metrics = metrics
        self._clock_ms = clock_ms
        self._refused: tuple[Outgoing, KafkaError] | None = None

    def ready(self) -> bool:
        if self._clock_ms() < self._attempts.next_ms:
            return False
        try:
            return self._producer.start()
        except (KafkaException, SystemError) as err:
            self._give_up(err)
            return False

    def deliver(self, batch: Batch, consumer: Consumer) -> None:
        if not (batch.sent or batch.kept or batch.done):
            return
        deadline = Deadline(_DELIVERY_S, clock=lambda: self._clock_ms() / 1e3)
        started_ms = self._clock_ms()
        self._refused = None
        try:
            for each in (*batch.sent, *batch.kept):
                self._producer.produce(each.record, each.partition, partial(self._reported, each))
            while not self._producer.flush(deadline):
                if deadline.expired:
                    raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "the broker does not acknowledge"))
            if self._refused is not None:
                raise KafkaException(self._refused[1])
            self._producer.commit(batch.done, consumer.consumer_group_metadata(), deadline)
        except (KafkaException, SystemError) as err:
            self._metrics.aborted()
            self._give_up(err)
            raise NotDelivered(_why(err)) from err
        self._attempts.succeeded()
        self._metrics.committed(self._clock_ms() - started_ms)

    def let_go(self, consumer: Consumer) -> None:
        """What was delivered is committed."""

    def close(self) -> None:
        self._producer.close()

    def _reported(self, outgoing: Outgoing, err: KafkaError | None, _message: Message) -> None:
        if err is not None and self._refused is None:
            self._refused = outgoing, err

    def _give_up(self, err: KafkaException | SystemError) -> None:
        error = self._refused[1] if self._refused else err.args[0] if isinstance(err, KafkaException) else None
        refused, self._refused = self._refused, None
        self._producer.abort(usable=error is not None and usable_after(error))
        where = _place(refused[0]) if refused is not None else "transcripts"
        if error is not None and error.code() in TOO_LARGE:
            raise WorkerFailure(f"{where}: not delivered: {error.str()}") from err
        self._attempts.failed(_why(err), error, where=where)
        log.warning("transaction aborted, to be tried again: %s", _why(err))


class InOrder:
    """At least once: sent, then kept, then committed."""

    def __init__(self, producer: Producer, *, commit_interval_ms: float, clock_ms: Callable[[], float]) -> None:
        self._producer = producer
        self._commit_interval_ms = commit_interval_ms
        self._clock_ms = clock_ms
        self._commit_due_ms = 0.0
        self._done: dict[tuple[str, int], TopicPartition] = {}
        self._refused: tuple[Outgoing, KafkaError] | None = None

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
        self._refused = None
        for each in outgoing:
            try:
                clients.produce(self._producer, each.record, each.partition, partial(self._reported, each))
            except KafkaException as err:
                raise WorkerFailure(f"{_place(each)}: not delivered: {err.args[0].str()}") from err
        while self._producer.flush(deadline.remaining_s()):
            if deadline.expired:
                raise NotDelivered("the broker does not acknowledge")
        if self._refused is not None:
            where, error = self._refused
            raise WorkerFailure(f"{_place(where)}: not delivered: {error.str()}")

    def _reported(self, outgoing: Outgoing, err: KafkaError | None, _message: Message) -> None:
        if err is not None and self._refused is None:
            self._refused = outgoing, err


def _place(outgoing: Outgoing) -> str:
    return f"{outgoing.record.topic} [{outgoing.partition}]"


def _why(err: BaseException) -> str:
    return err.args[0].str() if isinstance(err, KafkaException) else str(err)
