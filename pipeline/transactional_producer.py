"""A transactional producer that is made anew where one of them can't go on: its calls, each bounded, and their retries.

It knows records, offsets and no units: what a failed transaction means for those is `pipeline.transactions`'.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from pipeline import clients
from pipeline.deadline import Deadline
from schemas.records import OutputRecord

log = logging.getLogger("penstock.transactions")

# One call of the client. A broker answers in milliseconds, one that restarts in seconds.
_CALL_S = 5.0
# What a call may take beyond its own time-out until it is given up.
_CALL_GRACE_S = 0.5
# A start is looked after this often; it goes on where it was.
_START_S = 0.05
# While a predecessor's transaction is being ended a producer is refused, and asks again only half a second later; a new
# one asks at once. Each of them waits twice as long as the one before, up to less than that half second.
_LONGEST_START_S = 0.4


class TransactionalProducer:
    """One name's producer, and at most one open transaction. All of its methods belong to one thread.

    They raise KafkaException, and SystemError where librdkafka's callbacks ran while it had a fatal error
    (confluent-kafka 2.16).
    """

    def __init__(self, connect: Callable[[], Producer], *, clock_ms: Callable[[], float]) -> None:
        self._connect = connect
        self._clock_ms = clock_ms
        self._producer: Producer | None = None
        self._starting: Producer | None = None
        self._start_s = _START_S
        self._open = False

    @property
    def connected(self) -> bool:
        """Whether there is a producer, and no transaction of a predecessor is open any more."""
        return self._producer is not None

    def start(self) -> bool:
        """Make one, which ends what a predecessor of its name left open; False where the broker takes its time."""
        if self._producer is not None:
            return True
        starting, self._starting = self._starting or self._connect(), None
        try:
            starting.init_transactions(self._start_s)
        except KafkaException as err:
            if not err.args[0].retriable():
                raise
            starting.poll(0)  # it tells who listens that the broker is away
            if err.args[0].code() == KafkaError.CONCURRENT_TRANSACTIONS:
                self._start_s = min(2 * self._start_s, _LONGEST_START_S)  # and this one is dropped
            else:
                self._starting = starting
            return False
        self._producer, self._open, self._start_s = starting, False, _START_S
        return True

    def produce(self, output: OutputRecord, partition: int, on_report: clients.OnReport) -> None:
        """Put a record into the open transaction, or begin one with it."""
        clients.produce(self._begun(), output, partition, on_report)

    def serve(self) -> None:
        """Take reports of what has been delivered."""
        self._connected().poll(0)

    def flush(self, deadline: Deadline) -> bool:
        """Whether all was acknowledged or refused in one call's time; call again for the rest."""
        return not self._connected().flush(min(_CALL_S, deadline.remaining_s()))

    def commit(self, places: Sequence[TopicPartition], membership: object, deadline: Deadline) -> None:
        """Let the offsets join the transaction, or begin one with them, and commit it."""
        producer = self._begun()
        _until(deadline, partial(_returning, producer.send_offsets_to_transaction), [*places], membership)
        _until(deadline, producer.commit_transaction)
        self._open = False

    def abort(self, *, usable: bool) -> None:
        """End what is open. A producer that can't, or is not `usable`, is given up: the next one's start ends it."""
        producer, self._producer = self._producer, None
        if producer is None or not usable:
            return
        try:
            if self._open:
                _until(Deadline(_CALL_S, clock=lambda: self._clock_ms() / 1e3), producer.abort_transaction)
            producer.poll(0)
        except (KafkaException, SystemError) as err:
            log.debug("abort: %s", err)
            return
        self._producer, self._open = producer, False

    def close(self) -> None:
        """Abort what is open: readers are held back by it until it times out."""
        if self._producer is None or not self._open:
            return
        try:
            self._producer.abort_transaction(_CALL_S)
        except (KafkaException, SystemError) as err:
            why = err.args[0].str() if isinstance(err, KafkaException) else err
            log.warning("a transaction was left open: %s", why)

    def _begun(self) -> Producer:
        producer = self._connected()
        if not self._open:
            producer.begin_transaction()
            self._open = True
        return producer

    def _connected(self) -> Producer:
        assert self._producer is not None, "it was started"
        return self._producer


def usable_after(error: KafkaError) -> bool:
    """Whether a producer goes on after this. One whose calls time out may never come round: after a rebootstrap it
    waits for a group coordinator's connection that is not there any more (librdkafka 2.16)."""
    passing = error.retriable() and error.code() != KafkaError._TIMED_OUT
    return not error.fatal() and (passing or error.txn_requires_abort())


def _returning(call: Callable[..., Any], *arguments: Any) -> None:
    """A call that may never come back: librdkafka 2.16 forgets its time-out where the group's coordinator went away and
    came back (confluentinc/librdkafka 5456, 5511). Its thread is left behind then, and the producer given up; the next
    one of its name fences what they may still do."""
    outcome: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            call(*arguments)
            outcome.put(None)
        except BaseException as err:  # noqa: BLE001 - raised where it is waited for
            outcome.put(err)

    threading.Thread(target=run, name="send-offsets", daemon=True).start()
    try:
        err = outcome.get(timeout=arguments[-1] + _CALL_GRACE_S)
    except queue.Empty:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "the client does not answer")) from None
    if err is not None:
        raise err


def _until(deadline: Deadline, call: Callable[..., Any], *arguments: object) -> None:
    """Call, again while the client says that this may help."""
    while True:
        try:
            call(*arguments, min(_CALL_S, deadline.remaining_s()))
        except KafkaException as err:
            if deadline.expired or not err.args[0].retriable():
                raise
        else:
            return
