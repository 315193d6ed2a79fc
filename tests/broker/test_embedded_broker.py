"""Real clients against the embedded broker in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient

from pipeline.deadline import Deadline
from pipeline.errors import UserError
from pipeline.mock_cluster import CONSUMER_SETTINGS, ApiKey, EmbeddedBroker, MockClusterError

pytestmark = pytest.mark.broker

WAIT_S = 20.0  # longer than any of this takes; a test that reaches it has failed


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as broker:
        yield broker


def a_producer(broker: EmbeddedBroker, **settings: object) -> Producer:
    return Producer({"bootstrap.servers": broker.bootstrap, "linger.ms": 0, "log_level": 0} | settings)


def a_consumer(broker: EmbeddedBroker, topic: str, **settings: object) -> Consumer:
    consumer = Consumer(
        {
            "bootstrap.servers": broker.bootstrap,
            "group.id": "readers",
            "auto.offset.reset": "earliest",
            "log_level": 0,
        }
        | CONSUMER_SETTINGS
        | settings
    )
    consumer.subscribe([topic])
    return consumer


def read(consumer: Consumer, count: int) -> list[Message]:
    messages: list[Message] = []
    while len(messages) < count:
        batch = consumer.consume(count - len(messages), timeout=WAIT_S)
        assert batch, f"{len(messages)} of {count} records arrived"
        assert all(message.error() is None for message in batch)
        messages += batch
    return messages


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
def test_key_value_and_headers_come_out_as_they_went_in(broker: EmbeddedBroker, compression: str) -> None:
    broker.create_topic("texts", 1)
    producer = a_producer(broker, **{"compression.type": compression})
    headers = [("ce_id", b"1"), ("twice", b"a"), ("twice", b"b"), ("null", None)]
    producer.produce("texts", value=b"text " * 1_000, key=b"\x00key", headers=headers)
    producer.produce("texts", value=None, key=None)
    assert producer.flush(WAIT_S) == 0

    consumer = a_consumer(broker, "texts")
    full, empty = read(consumer, 2)
    consumer.close()

    assert (full.key(), full.value(), full.headers()) == (b"\x00key", b"text " * 1_000, headers)
    assert (empty.key(), empty.value(), empty.headers()) == (None, None, None)


def test_order_is_kept_per_partition(broker: EmbeddedBroker) -> None:
    broker.create_topic("texts", 3)
    producer = a_producer(broker, **{"linger.ms": 5})
    for number in range(3_000):
        producer.produce("texts", value=str(number), partition=number % 3)
    assert producer.flush(WAIT_S) == 0

    consumer = a_consumer(broker, "texts")
    messages = read(consumer, 3_000)
    consumer.close()

    for partition in range(3):
        numbers = [int(message.value() or b"") for message in messages if message.partition() == partition]
        assert numbers == list(range(partition, 3_000, 3))


def test_a_group_goes_on_where_it_committed(broker: EmbeddedBroker) -> None:
    broker.create_topic("texts", 1)
    producer = a_producer(broker)
    for number in range(10):
        producer.produce("texts", value=str(number))
    assert producer.flush(WAIT_S) == 0

    first = a_consumer(broker, "texts", **{"enable.auto.commit": False})
    first.commit(message=read(first, 4)[-1], asynchronous=False)
    first.close()
    second = a_consumer(broker, "texts", **{"enable.auto.commit": False})
    values = [message.value() for message in read(second, 6)]
    second.close()

    assert values == [b"4", b"5", b"6", b"7", b"8", b"9"]


def test_a_second_member_of_a_group_gets_its_share_and_leaves_it_behind(broker: EmbeddedBroker) -> None:
    broker.create_topic("texts", 2)
    first = a_consumer(broker, "texts")
    second = a_consumer(broker, "texts")
    both = [first, second]
    deadline = Deadline(WAIT_S)
    while [len(member.assignment()) for member in both] != [1, 1]:
        assert not deadline.expired, "two members never shared two partitions"
        for member in both:
            member.poll(0.02)
    second.close()
    while len(first.assignment()) != 2:
        assert not deadline.expired, "the partition of the member that left came to nobody"
        first.poll(0.02)
    first.close()


def test_a_classic_group_joins_too(broker: EmbeddedBroker) -> None:
    broker.create_topic("texts", 1)
    producer = a_producer(broker)
    producer.produce("texts", value=b"x")
    producer.flush(WAIT_S)
    consumer = a_consumer(broker, "texts", **{"group.protocol": "classic"})
    assert [message.value() for message in read(consumer, 1)] == [b"x"]
    consumer.close()


def test_a_topic_has_the_partitions_it_was_given_and_an_unknown_one_four(broker: EmbeddedBroker) -> None:
    broker.create_topic("seven", 7)
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    assert {name: len(topic.partitions) for name, topic in admin.list_topics(timeout=WAIT_S).topics.items()} == {
        "seven": 7
    }
    assert len(admin.list_topics("unknown", timeout=WAIT_S).topics["unknown"].partitions) == 4


def test_what_kafka_would_refuse_is_refused(broker: EmbeddedBroker) -> None:
    for name, partition_count in [("a b", 1), ("", 1), ("..", 1), ("x" * 250, 1), ("ok", 0), ("ok", 1_001)]:
        with pytest.raises(UserError):
            broker.create_topic(name, partition_count)
    broker.create_topic("ok", 1)
    with pytest.raises(MockClusterError, match="already exists"):
        broker.create_topic("ok", 1)


def test_retriable_errors_are_retried_and_the_record_arrives_once(broker: EmbeddedBroker) -> None:
    broker.create_topic("texts", 1)
    broker.push_request_errors(ApiKey.PRODUCE, [KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError._TRANSPORT])
    producer = a_producer(broker, **{"enable.idempotence": True, "retry.backoff.ms": 10})
    outcomes: list[KafkaError | None] = []
    producer.produce("texts", value=b"once", on_delivery=lambda error, _: outcomes.append(error))
    producer.flush(WAIT_S)
    assert outcomes == [None]

    consumer = a_consumer(broker, "texts")
    assert [message.value() for message in read(consumer, 1)] == [b"once"]
    low, high = consumer.get_watermark_offsets(consumer.assignment()[0], timeout=WAIT_S)
    consumer.close()
    assert (low, high) == (0, 1)


def test_a_fatal_error_reaches_the_delivery_callback(broker: EmbeddedBroker) -> None:
    broker.create_topic("texts", 1)
    broker.push_request_errors(ApiKey.PRODUCE, [KafkaError.MSG_SIZE_TOO_LARGE])
    producer = a_producer(broker)
    codes: list[int] = []
    producer.produce("texts", value=b"x", on_delivery=lambda error, _: codes.append(error.code()))
    producer.flush(WAIT_S)
    assert codes == [KafkaError.MSG_SIZE_TOO_LARGE]


def test_cleared_errors_are_not_given(broker: EmbeddedBroker) -> None:
    broker.create_topic("texts", 1)
    broker.push_request_errors(ApiKey.PRODUCE, [KafkaError.MSG_SIZE_TOO_LARGE])
    broker.clear_request_errors(ApiKey.PRODUCE)
    producer = a_producer(broker)
    outcomes: list[KafkaError | None] = []
    producer.produce("texts", value=b"x", on_delivery=lambda error, _: outcomes.append(error))
    producer.flush(WAIT_S)
    assert outcomes == [None]


def test_a_failed_commit_is_seen_by_the_consumer(broker: EmbeddedBroker) -> None:
    broker.create_topic("texts", 1)
    producer = a_producer(broker)
    producer.produce("texts", value=b"x")
    producer.flush(WAIT_S)
    consumer = a_consumer(broker, "texts", **{"enable.auto.commit": False})
    (message,) = read(consumer, 1)
    broker.push_request_errors(ApiKey.OFFSET_COMMIT, [KafkaError.UNKNOWN_MEMBER_ID])
    with pytest.raises(KafkaException) as raised:
        consumer.commit(message=message, asynchronous=False)
    consumer.close()
    assert raised.value.args[0].code() == KafkaError.UNKNOWN_MEMBER_ID


def test_a_broker_that_was_down_takes_the_records_that_waited(broker: EmbeddedBroker) -> None:
    broker.create_topic("texts", 1)
    producer = a_producer(broker, **{"reconnect.backoff.ms": 10, "reconnect.backoff.max.ms": 50})
    producer.produce("texts", value=b"before")
    assert producer.flush(WAIT_S) == 0
    broker.set_down()
    producer.produce("texts", value=b"while down")
    assert producer.flush(0.2) == 1
    broker.set_up()
    assert producer.flush(WAIT_S) == 0


def test_a_partition_whose_leader_moves_stays_usable() -> None:
    with EmbeddedBroker(broker_count=2) as broker:
        broker.create_topic("texts", 1)
        admin = AdminClient({"bootstrap.servers": broker.bootstrap})
        for broker_id in (1, 2):
            broker.move_leader("texts", 0, broker_id=broker_id)
            partition = admin.list_topics("texts", timeout=WAIT_S).topics["texts"].partitions[0]
            assert partition.leader == broker_id
        producer = a_producer(broker)
        producer.produce("texts", value=b"x")
        assert producer.flush(WAIT_S) == 0


def test_topic_errors_and_slow_answers(broker: EmbeddedBroker) -> None:
    broker.create_topic("texts", 1)
    admin = AdminClient({"bootstrap.servers": broker.bootstrap, "log_level": 0})
    broker.set_topic_error("texts", KafkaError.TOPIC_AUTHORIZATION_FAILED)
    error = admin.list_topics("texts", timeout=WAIT_S).topics["texts"].error
    assert error is not None
    assert error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED
    broker.set_topic_error("texts", 0)
    assert admin.list_topics("texts", timeout=WAIT_S).topics["texts"].error is None

    broker.set_rtt_ms(60_000)
    with pytest.raises(KafkaException):
        admin.list_topics("texts", timeout=0.2)
    broker.set_rtt_ms(0)


def test_a_fault_for_an_unknown_broker_is_an_error(broker: EmbeddedBroker) -> None:
    with pytest.raises(MockClusterError):
        broker.set_down(broker_id=7)


def test_two_brokers_know_nothing_of_each_other(broker: EmbeddedBroker) -> None:
    with EmbeddedBroker() as other:
        assert other.bootstrap != broker.bootstrap
        other.create_topic("only-there", 1)
        admin = AdminClient({"bootstrap.servers": broker.bootstrap})
        assert admin.list_topics(timeout=WAIT_S).topics == {}


def test_a_closed_broker_is_gone_and_closing_again_is_nothing() -> None:
    broker = EmbeddedBroker()
    broker.close()
    broker.close()
    with pytest.raises(AssertionError, match="closed"):
        broker.create_topic("texts", 1)
    admin = AdminClient({"bootstrap.servers": broker.bootstrap, "log_level": 0})
    with pytest.raises(KafkaException):
        admin.list_topics(timeout=0.5)
