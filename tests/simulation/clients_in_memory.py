"""confluent-kafka's Consumer and Producer over the broker in memory: the calls that the product makes, their faults.

A call may fail before or after it did its work, or end the process (`Crash`) at either place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_INVALID,
    TIMESTAMP_NOT_AVAILABLE,
    KafkaError,
    KafkaException,
    TopicPartition,
)

from tests.simulation.broker_in_memory import Broker, Entry, Headers, Place, Transaction

OnDelivery = Callable[[KafkaError | None, Any], None]


class Message:
    """A record as it is read."""

    def __init__(self, place: Place, offset: int, entry: Entry) -> None:
        self._place, self._offset, self._entry = place, offset, entry

    def error(self) -> None:
        return None

    def topic(self) -> str:
        return self._place[0]

    def partition(self) -> int:
        return self._place[1]

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes | None:
        return self._entry.key

    def value(self) -> bytes | None:
        return self._entry.value

    def headers(self) -> Headers:
        return self._entry.headers

    def timestamp(self) -> tuple[int, int]:
        return TIMESTAMP_NOT_AVAILABLE, -1


class SimulatedConsumer:
    """A member of a group. A rebalance takes place in `poll`, as with the real one."""

    def __init__(self, broker: Broker, group: str, instance: str | None) -> None:
        self._broker, self._group, self._instance = broker, group, instance
        self._faults = broker.faults
        self._member = ""
        self._positions: dict[int, int] = {}
        self._paused: set[int] = set()

    def subscribe(self, topics: list[str], *, on_assign: Any, on_revoke: Any, on_lost: Any) -> None:
        [self._topic] = topics
        self._on_assign, self._on_revoke, self._on_lost = on_assign, on_revoke, on_lost
        self._member = self._broker.join(self._group, self._topic, self._instance)

    def memberid(self) -> str:
        return self._member

    def consumer_group_metadata(self) -> tuple[str, str, int]:
        member = self._broker.groups[self._group].members.get(self._member)
        return (self._group, self._member, member.generation if member else -1)

    def poll(self, _timeout: float) -> Message | None:
        self._faults.crash()
        self._rebalance()
        return next(iter(self._fetch(1)), None)

    def consume(self, count: int, _timeout: float) -> list[Message]:
        return self._fetch(self._faults.random.randint(0, min(count, 12)))

    def committed(self, places: Sequence[TopicPartition], timeout: float) -> list[TopicPartition]:
        self._faults.crash()
        if self._faults.strikes():
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no answer"))
        found = [self._broker.stable_offset(self._group, each.topic, each.partition) for each in places]
        return [
            TopicPartition(each.topic, each.partition, OFFSET_INVALID if offset is None else offset)
            for each, offset in zip(places, found, strict=True)
        ]

    def commit(self, *, offsets: list[TopicPartition], asynchronous: bool) -> list[TopicPartition]:
        self._faults.crash()
        if self._faults.strikes():
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no answer"))
        group, member, generation = self.consumer_group_metadata()
        self._broker.check_member(group, member, generation)
        for each in offsets:
            self._broker.commit(group, each.topic, each.partition, each.offset)
        self._faults.crash()
        return offsets

    def incremental_assign(self, places: Sequence[TopicPartition]) -> None:
        for each in places:
            self._positions[each.partition] = 0 if each.offset == OFFSET_BEGINNING else each.offset

    def incremental_unassign(self, places: Sequence[TopicPartition]) -> None:
        for each in places:
            self._positions.pop(each.partition, None)
            self._paused.discard(each.partition)

    def pause(self, places: Sequence[TopicPartition]) -> None:
        self._paused |= {each.partition for each in places}

    def resume(self, places: Sequence[TopicPartition]) -> None:
        self._paused -= {each.partition for each in places}

    def get_watermark_offsets(self, place: TopicPartition, cached: bool) -> tuple[int, int]:
        return 0, self._broker.last_stable((place.topic, place.partition))

    def close(self) -> None:
        if self._member:
            self._give_back(set(self._positions))
            if self._instance is None:  # a named member stays until its session ends
                self._broker.leave(self._group, self._member)
            self._member = ""

    def _rebalance(self) -> None:
        group = self._broker.groups[self._group]
        member = group.members.get(self._member)
        if member is None:
            lost = self._places(set(self._positions))
            if lost:
                self._on_lost(self, lost)
            if self._member in group.fenced:
                raise KafkaException(KafkaError(KafkaError._FATAL, "fenced by another of its name"))
            self._member = self._broker.join(self._group, self._topic, self._instance)
            return
        wanted = self._broker.wanted(self._group, self._member)
        # The new generation is joined first; what is not wanted any more is given back in it.
        member.generation = group.generation
        self._give_back(set(self._positions) - wanted)
        others = set().union(*(each.owns for each in group.members.values() if each is not member))
        fresh = wanted - set(self._positions) - others
        if fresh:
            member.owns |= fresh
            self._on_assign(self, self._places(fresh))

    def _give_back(self, partitions: set[int]) -> None:
        if partitions:
            self._on_revoke(self, self._places(partitions))
            member = self._broker.groups[self._group].members.get(self._member)
            if member is not None:
                member.owns -= partitions

    def _places(self, partitions: set[int]) -> list[TopicPartition]:
        return [TopicPartition(self._topic, partition) for partition in sorted(partitions)]

    def _fetch(self, count: int) -> list[Message]:
        messages: list[Message] = []
        partitions = sorted(set(self._positions) - self._paused)
        self._faults.random.shuffle(partitions)
        for partition in partitions:
            place = (self._topic, partition)
            end = self._broker.last_stable(place)
            while len(messages) < count and self._positions[partition] < end:
                offset = self._positions[partition]
                entry = self._broker.log(place)[offset]
                self._positions[partition] += 1
                if entry.state == "committed" and not entry.mark:
                    messages.append(Message(place, offset, entry))
        return messages


class SimulatedProducer:
    """Idempotent: what is taken is delivered in order, when it is polled, unless its process ends before."""

    def __init__(self, broker: Broker, *, largest: int) -> None:
        self._broker, self._faults, self._largest = broker, broker.faults, largest
        self._timed_out: set[Place] = set()
        self._queue: list[tuple[Place, bytes | None, bytes | None, Headers, OnDelivery]] = []

    def produce(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        partition: int,
        on_delivery: OnDelivery,
        headers: Headers,
    ) -> None:
        self._faults.crash()
        if self._faults.strikes():
            raise BufferError
        self._queue.append(((topic, partition), key, value, headers, on_delivery))

    def poll(self, _timeout: float) -> None:
        self._deliver(self._faults.random.randint(0, len(self._queue)))

    def flush(self, _timeout: float) -> int:
        self._faults.crash()
        self._deliver(len(self._queue))
        return 0

    def ended(self) -> None:
        """Its process is gone: some of what it had taken is with the broker already."""
        for place, key, value, headers, _ in self._queue[: self._faults.random.randint(0, len(self._queue))]:
            if not self._too_large(place, value):
                self._append(place, key, value, headers)

    def _deliver(self, count: int) -> None:
        batch, self._queue = self._queue[:count], self._queue[count:]
        for place, key, value, headers, on_delivery in batch:
            refusal = self._refusal(place, value)
            if refusal is None:
                self._append(place, key, value, headers)
            on_delivery(refusal, None)

    def _too_large(self, place: Place, value: bytes | None) -> bool:
        return len(value or b"") > self._largest and place[0].endswith(".results")

    def _refusal(self, place: Place, value: bytes | None) -> KafkaError | None:
        if self._too_large(place, value):
            return KafkaError(KafkaError.MSG_SIZE_TOO_LARGE, "too large")
        # What was taken later has not been delivered in time either.
        if place in self._timed_out or self._faults.strikes(0.1):
            self._timed_out.add(place)
            return KafkaError(KafkaError._MSG_TIMED_OUT, "not delivered")
        return None

    def _append(self, place: Place, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        self._broker.append(place, key, value, headers, "committed")


class SimulatedTransactionalProducer(SimulatedProducer):
    """The same with transactions. Its calls fail as librdkafka's do: to be repeated, to be aborted, for good."""

    def __init__(self, broker: Broker, transactional_id: str, *, largest: int) -> None:
        super().__init__(broker, largest=largest)
        self._id = transactional_id
        self._epoch = -1
        self._begun = False
        self._broken = False
        self._done: str | None = None

    @property
    def _transaction(self) -> Transaction:
        return self._broker.transactions[self._id]

    def init_transactions(self, _timeout: float) -> None:
        self._faults.crash()
        if self._faults.strikes():
            raise _error(KafkaError._TIMED_OUT, retriable=True)
        self._epoch = self._broker.begin_anew(self._id)

    def begin_transaction(self) -> None:
        self._check_epoch()
        self._begun, self._broken, self._done = True, False, None
        self._timed_out.clear()

    def send_offsets_to_transaction(
        self, offsets: Sequence[TopicPartition], metadata: tuple[str, str, int], _timeout: float
    ) -> None:
        self._faults.crash()
        self._check_epoch()
        self._strike()
        group, member, generation = metadata
        self._broker.check_member(group, member, generation)
        self._open()
        for each in offsets:
            self._transaction.offsets[group, (each.topic, each.partition)] = each.offset
        if self._faults.strikes():
            raise _error(KafkaError._TIMED_OUT, retriable=True)

    def commit_transaction(self, _timeout: float) -> None:
        self._end("committed")

    def abort_transaction(self, _timeout: float) -> None:
        self._queue.clear()
        self._end("aborted")

    def _end(self, state: str) -> None:
        self._faults.crash()
        if self._done == state:  # the answer to the first call was lost
            self._begun = False
            return
        self._check_epoch()
        if state == "committed":
            self._strike()
            if self._broken:
                raise _error(KafkaError._INCONSISTENT, txn_requires_abort=True)
        if self._transaction.open:
            self._broker.end(self._transaction, state)
        self._done = state
        self._faults.crash()
        if self._faults.strikes():
            raise _error(KafkaError._TIMED_OUT, retriable=True)
        if self._faults.strikes(0.5):  # done, and its answer lost for good
            raise _error(KafkaError._FENCED, fatal=True)
        self._begun = False

    def _strike(self) -> None:
        if self._faults.strikes():
            raise _error(KafkaError._TIMED_OUT, retriable=True)
        if self._faults.strikes():
            raise _error(KafkaError.CONCURRENT_TRANSACTIONS, txn_requires_abort=True)

    def _check_epoch(self) -> None:
        if self._epoch != self._transaction.epoch:
            raise _error(KafkaError._FENCED, fatal=True)

    def _open(self) -> None:
        if not self._transaction.open:
            self._transaction.open, self._transaction.started_ms = True, self._broker.now_ms

    def _refusal(self, place: Place, value: bytes | None) -> KafkaError | None:
        if self._epoch != self._transaction.epoch:
            return KafkaError(KafkaError._FENCED, "fenced")
        refusal = super()._refusal(place, value)
        self._broken = self._broken or refusal is not None
        return refusal

    def _append(self, place: Place, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        self._open()
        self._transaction.entries.append((place, self._broker.append(place, key, value, headers, "open")))


def _error(
    code: int, *, retriable: bool = False, txn_requires_abort: bool = False, fatal: bool = False
) -> KafkaException:
    return KafkaException(
        KafkaError(code, "simulated", fatal=fatal, retriable=retriable, txn_requires_abort=txn_requires_abort)
    )
