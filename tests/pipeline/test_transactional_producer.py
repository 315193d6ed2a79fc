"""A transactional producer whose calls don't come back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import cast

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from pipeline.clock import now_ms
from pipeline.deadline import Deadline
from pipeline.transactional_producer import TransactionalProducer, usable_after
from schemas.records import OutputRecord


class Stuck:
    """Begins and produces; the call that sends offsets never returns, whatever its time-out."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def init_transactions(self, _timeout: float) -> None: ...

    def begin_transaction(self) -> None: ...

    def produce(self, *_: object, headers: object) -> None: ...

    def send_offsets_to_transaction(self, *_: object) -> None:
        self.released.wait()


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    made = Stuck()
    yield made
    made.released.set()


def test_a_producer_that_does_not_answer_is_given_up(stuck: Stuck, monkeypatch: pytest.MonkeyPatch) -> None:
    """librdkafka's issues 5456 and 5511: the lane, and the poll thread behind it, would stand still for good."""
    monkeypatch.setattr("pipeline.transactional_producer._CALL_GRACE_S", 0.0)
    producers = iter([stuck, Stuck()])
    producer = TransactionalProducer(lambda: cast(Producer, next(producers)), clock_ms=now_ms)
    assert producer.start()
    producer.produce(OutputRecord("results", None, b"1", []), 0, lambda err, message: None)
    with pytest.raises(KafkaException) as caught:
        producer.commit([TopicPartition("requests", 0, 1)], object(), Deadline(0.1))
    error = caught.value.args[0]
    assert error.code() == KafkaError._TIMED_OUT
    producer.abort(usable=usable_after(error))
    assert not producer.connected
    assert producer.start(), "the next one of its name goes on"


class Refused:
    """Its start fails so often, each time after all of its time-out."""

    def __init__(self, *codes: int) -> None:
        self.codes = [*codes]
        self.waited: list[float] = []

    def init_transactions(self, timeout: float) -> None:
        self.waited.append(timeout)
        if self.codes:
            raise KafkaException(KafkaError(self.codes.pop(0), retriable=True))

    def poll(self, _timeout: float) -> None: ...


def test_a_predecessor_s_transaction_is_asked_for_by_a_new_producer_each_time() -> None:
    """One that was refused would ask again half a second later: that is what a killed worker's restart would wait."""
    refused = KafkaError.CONCURRENT_TRANSACTIONS
    made = [Refused(KafkaError._TIMED_OUT, refused), Refused(refused), Refused()]
    producers = iter(made)
    producer = TransactionalProducer(lambda: cast(Producer, next(producers)), clock_ms=now_ms)
    assert [producer.start() for _ in range(4)] == [False, False, False, True]
    assert [each.waited for each in made] == [[0.05, 0.05], [0.1], [0.2]]
    assert producer.connected
