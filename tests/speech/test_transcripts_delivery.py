"""Both ways of delivery, with producers and a consumer of the test's own: what is done in what order, and what a
refusal does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from pipeline.errors import WorkerFailure
from pipeline.metrics import WorkerMetrics
from pipeline.speech.delivery import Batch, NotDelivered, OrderedDelivery, TransactionalDelivery
from pipeline.speech.outgoing import Outgoing
from schemas.records import OutputRecord

DONE = [TopicPartition("talk.speech", 2, 7)]


def outgoing(topic: str, partition: int = 2) -> Outgoing:
    return Outgoing(partition, OutputRecord(topic, b"k", b"v", []))


BATCH = Batch([outgoing("requests"), outgoing("transcripts")], [outgoing("changelog")], DONE)


class FakeClients:
    """A producer and a consumer. `refuse` are topics and codes: refused by a report, or, `at_once`, by the call."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.refuse: dict[str, int] = {}
        self.at_once = False
        self.commit_error: KafkaError | None = None
        self.unacknowledged = False
        self.made = 0
        self._reports: list[Callable[[], None]] = []

    def connect(self) -> Producer:
        self.made += 1
        return cast(Producer, self)

    def init_transactions(self, _wait_s: float) -> None:
        self.done.append("init")

    def begin_transaction(self) -> None:
        self.done.append("begin")

    def produce(self, topic: str, _value: bytes, _key: bytes, partition: int, report: Any, **_: object) -> None:
        self.done.append(f"{topic}/{partition}")
        code = self.refuse.get(topic)
        error = KafkaError(code) if code is not None else None
        if error is not None and self.at_once:
            raise KafkaException(error)
        self._reports.append(lambda: report(error, None))

    def flush(self, _wait_s: float) -> int:
        self.done.append("flush")
        if self.unacknowledged:
            return len(self._reports)
        self.poll(0)
        return 0

    def poll(self, _wait_s: float) -> None:
        reports, self._reports = self._reports, []
        for each in reports:
            each()

    def send_offsets_to_transaction(self, places: list[TopicPartition], membership: object, _wait_s: float) -> None:
        self.done.append(f"offsets {[(each.topic, each.partition, each.offset) for each in places]} of {membership}")

    def commit_transaction(self, _wait_s: float) -> None:
        """Waits for what is on its way, and fails with it."""
        self.poll(0)
        if self.commit_error is not None:
            raise KafkaException(self.commit_error)
        if self.refuse:
            raise KafkaException(KafkaError(KafkaError._STATE))
        self.done.append("commit")

    def abort_transaction(self, _wait_s: float) -> None:
        self.done.append("abort")

    def consumer_group_metadata(self) -> str:
        return "the member"

    def commit(self, *, offsets: list[TopicPartition], asynchronous: bool) -> None:
        self.done.append(f"commit {[each.offset for each in offsets]}{'' if asynchronous else ' and wait'}")
        if self.commit_error is not None:
            raise KafkaException(self.commit_error)


class Clock:
    """Goes on by a second with each look."""

    def __init__(self) -> None:
        self.now_ms = 0.0

    def __call__(self) -> float:
        self.now_ms += 1_000
        return self.now_ms


@pytest.fixture
def clients() -> FakeClients:
    return FakeClients()


@pytest.fixture
def transactional(clients: FakeClients) -> TransactionalDelivery:
    metrics = WorkerMetrics("talk").stage("transcripts")
    made = TransactionalDelivery(clients.connect, topic="talk.speech", metrics=metrics, clock_ms=Clock())
    assert made.ready()
    clients.done.clear()
    return made


@pytest.fixture
def ordered(clients: FakeClients) -> OrderedDelivery:
    return OrderedDelivery(clients.connect(), commit_interval_ms=60_000, clock_ms=Clock())


def deliver(delivery: TransactionalDelivery | OrderedDelivery, clients: FakeClients, batch: Batch = BATCH) -> None:
    delivery.deliver(batch, cast(Consumer, clients))


def test_a_batch_is_a_transaction_with_its_offsets(clients: FakeClients, transactional: TransactionalDelivery) -> None:
    deliver(transactional, clients)
    assert clients.done == [
        "begin",
        "requests/2",
        "transcripts/2",
        "changelog/2",
        "offsets [('talk.speech', 2, 7)] of the member",
        "commit",
    ]
    clients.done.clear()
    deliver(transactional, clients, Batch([], [], []))
    assert clients.done == [], "nothing is no transaction"


def test_nothing_is_written_that_the_group_does_not_check(
    clients: FakeClients, transactional: TransactionalDelivery
) -> None:
    with pytest.raises(AssertionError, match="the group checks all that is written"):
        deliver(transactional, clients, Batch([], [outgoing("changelog", 3)], DONE))


@pytest.mark.parametrize("at_once", [True, False])
def test_a_refused_record_ends_its_transaction(
    clients: FakeClients, transactional: TransactionalDelivery, at_once: bool
) -> None:
    clients.refuse, clients.at_once = {"transcripts": KafkaError.NOT_ENOUGH_REPLICAS}, at_once
    with pytest.raises(NotDelivered, match=r"transcripts \[2\]: Broker: Not enough in-sync replicas"):
        deliver(transactional, clients)
    assert "commit" not in clients.done
    # Later, and by another producer where this one can't go on.
    clients.refuse = {}
    assert [transactional.ready() for _ in range(3)][-1]
    deliver(transactional, clients)
    assert clients.done[-1] == "commit"


@pytest.mark.parametrize("at_once", [True, False])
def test_a_record_that_is_too_large_is_told(
    clients: FakeClients, transactional: TransactionalDelivery, at_once: bool
) -> None:
    clients.refuse, clients.at_once = {"transcripts": KafkaError.MSG_SIZE_TOO_LARGE}, at_once
    with pytest.raises(WorkerFailure, match=r"transcripts \[2\]: not delivered: .* too large"):
        deliver(transactional, clients)


def test_a_commit_that_fails_is_not_tried_from_memory(
    clients: FakeClients, transactional: TransactionalDelivery
) -> None:
    clients.commit_error = KafkaError(KafkaError.UNKNOWN_MEMBER_ID)
    with pytest.raises(NotDelivered, match="Unknown member"):
        deliver(transactional, clients)
    assert len([each for each in clients.done if each.startswith("offsets")]) == 1


def test_a_topic_that_is_forbidden_is_no_matter_of_attempts(
    clients: FakeClients, transactional: TransactionalDelivery
) -> None:
    clients.refuse = {"changelog": KafkaError.TOPIC_AUTHORIZATION_FAILED}
    with pytest.raises(WorkerFailure, match=r"changelog \[2\]: no transaction can be committed"):
        deliver(transactional, clients)


def test_without_transactions_it_is_sent_then_kept_then_committed(
    clients: FakeClients, ordered: OrderedDelivery
) -> None:
    deliver(ordered, clients)
    assert clients.done == ["requests/2", "transcripts/2", "flush", "changelog/2", "flush", "commit [7]"]
    clients.done.clear()
    deliver(ordered, clients, Batch([], [], [TopicPartition("talk.speech", 2, 8)]))
    assert "commit [8]" not in clients.done, "not before the interval has passed"
    ordered.let_go(cast(Consumer, clients))
    ordered.let_go(cast(Consumer, clients))
    assert clients.done[-1] == "commit [8] and wait"
    assert clients.done.count("commit [8] and wait") == 1


def test_without_transactions_a_refusal_keeps_nothing(clients: FakeClients, ordered: OrderedDelivery) -> None:
    clients.refuse = {"requests": KafkaError.TOPIC_AUTHORIZATION_FAILED}
    with pytest.raises(WorkerFailure, match=r"requests \[2\]: not delivered"):
        deliver(ordered, clients)
    assert "changelog/2" not in clients.done
    clients.refuse, clients.unacknowledged = {}, True
    with pytest.raises(NotDelivered):
        deliver(ordered, clients)
    assert "commit [7]" not in clients.done


def test_a_last_commit_that_fails_is_no_failure(clients: FakeClients, ordered: OrderedDelivery) -> None:
    deliver(ordered, clients)
    deliver(ordered, clients, Batch([], [], [TopicPartition("talk.speech", 2, 8)]))
    clients.commit_error = KafkaError(KafkaError.UNKNOWN_MEMBER_ID)
    ordered.let_go(cast(Consumer, clients))
