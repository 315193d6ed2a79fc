"""Apache Kafka, started by Penstock: what it keeps, over its stops and kills, and what it says when it can't start."""

from __future__ import annotations

import base64
import os
import re
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from pipeline.apache_kafka import broker as broker_module
from pipeline.apache_kafka.broker import ApacheBroker
from pipeline.apache_kafka.runtime import Runtime
from pipeline.deadline import Deadline
from pipeline.errors import UserError, WorkerFailure
from pipeline.topics import MAX_RECORD_BYTES

pytestmark = [pytest.mark.apache, pytest.mark.processes, pytest.mark.slow]

# Longer than anything here takes; a test that waits for so long has failed.
WAIT_S = 60.0


@pytest.fixture
def start(apache_runtime: Runtime, tmp_path: Path) -> Iterator[Callable[..., ApacheBroker]]:
    """Starts a broker of the test's own, in a folder `data` unless it names another."""
    brokers: list[ApacheBroker] = []

    def started(data: str = "data", *, port: int = 0, settings: Mapping[str, str] | None = None) -> ApacheBroker:
        broker = ApacheBroker(tmp_path / data, port=port, settings=settings, runtime=apache_runtime)
        brokers.append(broker)
        broker.start()
        return broker

    yield started
    for broker in brokers:
        broker.kill()


def new_topic(broker: ApacheBroker, *, partitions: int = 1, config: Mapping[str, str] | None = None) -> str:
    name = f"topic-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    (future,) = admin.create_topics([NewTopic(name, partitions, 1, config=dict(config or {}))]).values()
    future.result(WAIT_S)
    return name


def produce(broker: ApacheBroker, topic: str, *values: bytes) -> None:
    """All acknowledged."""
    refused: list[KafkaError] = []
    producer = Producer(
        {"bootstrap.servers": broker.bootstrap, "linger.ms": 0, "message.max.bytes": MAX_RECORD_BYTES + 1000}
    )
    for value in values:
        producer.produce(topic, value, partition=0, on_delivery=lambda error, _: error and refused.append(error))
    assert producer.flush(WAIT_S) == 0
    assert not refused


def read(broker: ApacheBroker, topic: str, *, isolation: str = "read_committed") -> list[bytes | None]:
    """All values of partition 0."""
    consumer = Consumer(
        {
            "bootstrap.servers": broker.bootstrap,
            "group.id": "reader",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": isolation,
        }
    )
    consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
    values: list[bytes | None] = []
    deadline = Deadline(WAIT_S)
    try:
        while True:
            assert not deadline.expired, values
            message = consumer.poll(1.0)
            if message is None:
                continue
            error = message.error()
            if error is not None and error.code() == KafkaError._PARTITION_EOF:
                return values
            assert error is None, error
            values.append(message.value())
    finally:
        consumer.close()


def commit(broker: ApacheBroker, group: str, topic: str, offset: int) -> None:
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": group})
    consumer.commit(offsets=[TopicPartition(topic, 0, offset)], asynchronous=False)
    consumer.close()


def committed(broker: ApacheBroker, group: str, topic: str) -> int:
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": group})
    (partition,) = consumer.committed([TopicPartition(topic, 0)], timeout=WAIT_S)
    consumer.close()
    assert partition.offset is not None
    return partition.offset


def test_records_pass_through(apache_broker: ApacheBroker) -> None:
    topic = new_topic(apache_broker, partitions=3)
    produce(apache_broker, topic, b"one", b"two")
    assert read(apache_broker, topic) == [b"one", b"two"]


def test_the_largest_record_of_an_ensemble_passes(apache_broker: ApacheBroker) -> None:
    topic = new_topic(apache_broker, config={"max.message.bytes": str(MAX_RECORD_BYTES)})
    value = os.urandom(MAX_RECORD_BYTES - 1000)
    produce(apache_broker, topic, value)
    assert read(apache_broker, topic) == [value]


def test_what_a_transaction_aborts_is_seen_only_by_who_asks_for_it(apache_broker: ApacheBroker) -> None:
    topic = new_topic(apache_broker)
    producer = Producer({"bootstrap.servers": apache_broker.bootstrap, "transactional.id": topic})
    producer.init_transactions(WAIT_S)
    for value, end in (
        (b"aborted", producer.abort_transaction),
        (b"committed", producer.commit_transaction),
        (b"aborted again", producer.abort_transaction),
    ):
        producer.begin_transaction()
        producer.produce(topic, value)
        assert producer.flush(WAIT_S) == 0
        end(WAIT_S)
    assert read(apache_broker, topic) == [b"committed"]
    assert read(apache_broker, topic, isolation="read_uncommitted") == [b"aborted", b"committed", b"aborted again"]


def test_a_second_producer_with_the_same_transactional_id_fences_the_first(apache_broker: ApacheBroker) -> None:
    topic = new_topic(apache_broker)
    settings = {"bootstrap.servers": apache_broker.bootstrap, "transactional.id": topic}
    first, second = Producer(settings), Producer(settings)
    first.init_transactions(WAIT_S)
    first.begin_transaction()
    first.produce(topic, b"of the first")
    second.init_transactions(WAIT_S)
    with pytest.raises(KafkaException) as raised:
        first.commit_transaction(WAIT_S)
    assert raised.value.args[0].fatal()
    assert read(apache_broker, topic) == []


def test_a_topic_that_nobody_made_does_not_spring_up(apache_broker: ApacheBroker) -> None:
    producer = Producer({"bootstrap.servers": apache_broker.bootstrap, "topic.metadata.propagation.max.ms": 0})
    errors: list[KafkaError] = []
    producer.produce("nobody-made-it", b"x", on_delivery=lambda error, _: error and errors.append(error))
    assert producer.flush(WAIT_S) == 0
    (error,) = errors
    assert error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC)  # the broker's, the client's


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_group_gets_its_partitions(apache_broker: ApacheBroker, protocol: str) -> None:
    topic = new_topic(apache_broker)
    produce(apache_broker, topic, b"one")
    consumer = Consumer(
        {
            "bootstrap.servers": apache_broker.bootstrap,
            "group.id": topic,
            "group.protocol": protocol,
            "auto.offset.reset": "earliest",
        }
        # Below Kafka's own least of 6 s.
        | ({"session.timeout.ms": 500, "heartbeat.interval.ms": 100} if protocol == "classic" else {})
    )
    consumer.subscribe([topic])
    (message,) = consumer.consume(1, timeout=WAIT_S)
    consumer.close()
    assert message.value() == b"one"


@pytest.mark.parametrize("how", [ApacheBroker.stop, ApacheBroker.kill])
def test_a_restart_keeps_address_records_and_committed_offsets(
    start: Callable[..., ApacheBroker], how: Callable[[ApacheBroker], None]
) -> None:
    broker = start()
    bootstrap, pid = broker.bootstrap, broker.pid
    topic = new_topic(broker)
    values = [b"%d" % number for number in range(1000)]
    produce(broker, topic, *values)
    commit(broker, "readers", topic, 417)
    cluster_id = AdminClient({"bootstrap.servers": bootstrap}).list_topics(timeout=WAIT_S).cluster_id
    how(broker)
    assert not broker.alive
    assert not psutil.pid_exists(pid)
    broker.start()
    assert broker.bootstrap == bootstrap
    assert AdminClient({"bootstrap.servers": bootstrap}).list_topics(timeout=WAIT_S).cluster_id == cluster_id
    assert read(broker, topic) == values
    assert committed(broker, "readers", topic) == 417
    produce(broker, topic, b"after")
    assert read(broker, topic)[-1] == b"after"


def test_a_producer_outlives_a_kill_of_the_broker(start: Callable[..., ApacheBroker]) -> None:
    broker = start()
    topic = new_topic(broker)
    producer = Producer({"bootstrap.servers": broker.bootstrap, "enable.idempotence": True, "log_level": 2})
    acknowledged: list[bytes | None] = []

    def note(error: KafkaError | None, message: object) -> None:
        assert error is None
        acknowledged.append(message.value())  # type: ignore[attr-defined]

    producer.produce(topic, b"before", on_delivery=note)
    assert producer.flush(WAIT_S) == 0
    broker.kill()
    producer.produce(topic, b"meanwhile", on_delivery=note)
    broker.start()
    assert producer.flush(WAIT_S) == 0
    assert read(broker, topic) == acknowledged == [b"before", b"meanwhile"]


def test_it_is_reached_on_loopback_only_and_nothing_is_left_behind(start: Callable[..., ApacheBroker]) -> None:
    broker = start()
    java = psutil.Process(broker.pid)
    family = [java, *java.children(recursive=True)]
    listening = [each.laddr.ip for each in java.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    assert len(listening) == 2  # clients', the controller's
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
    broker.stop()
    gone, alive = psutil.wait_procs(family, timeout=WAIT_S)
    assert gone
    assert not alive


def test_a_folder_serves_one_broker_at_a_time(start: Callable[..., ApacheBroker]) -> None:
    broker = start()
    with pytest.raises(UserError, match=rf"data: in use by another broker \(process {os.getpid()}\): stop it, or"):
        start()
    broker.stop()
    start()


def test_a_port_serves_one_broker_at_a_time(start: Callable[..., ApacheBroker]) -> None:
    broker = start()
    port = int(broker.bootstrap.partition(":")[2])
    with pytest.raises(UserError, match=rf"^port {port}: Address already in use: choose another one"):
        start("other", port=port)
    assert broker.alive
    broker.stop()
    assert start("other", port=port).bootstrap == broker.bootstrap


def test_a_port_taken_by_anybody_after_the_first_start_is_said(start: Callable[..., ApacheBroker]) -> None:
    broker = start()
    broker.stop()
    host, _, port = broker.bootstrap.partition(":")
    with socket.create_server((host, int(port))), pytest.raises(UserError, match="Address already in use"):
        broker.start()
    broker.start()
    assert broker.alive


def test_a_free_port_that_somebody_takes_is_left_to_them(
    start: Callable[..., ApacheBroker], apache_broker: ApacheBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = int(apache_broker.bootstrap.partition(":")[2])  # by a Kafka even, which answers a client
    with monkeypatch.context() as patch:
        choices = iter([taken, *(broker_module._free_port() for _ in range(3))])
        patch.setattr(broker_module, "_free_port", lambda but=0: next(choices))
        broker = start()
    assert broker.alive
    assert broker.bootstrap != apache_broker.bootstrap


def test_a_refused_setting_is_said_in_kafka_s_words(start: Callable[..., ApacheBroker]) -> None:
    with pytest.raises(WorkerFailure, match="ConfigException: Invalid value many for configuration"):
        start(settings={"num.partitions": "many"})


def test_a_folder_of_any_name_will_do(start: Callable[..., ApacheBroker], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    assert start("Überlauf \\u0041 = #1: data").alive


def test_its_end_by_somebody_else_is_said(start: Callable[..., ApacheBroker]) -> None:
    broker = start()
    psutil.Process(broker.pid).kill()
    deadline = Deadline(WAIT_S)
    while broker.alive:
        assert not deadline.expired
    assert isinstance(broker.failure(), WorkerFailure)
    assert str(broker.failure()).startswith("Apache Kafka was ended by signal 9: it has not said why in ")
    broker.stop()
    broker.start()


def test_records_cut_off_as_damaged_are_told(
    start: Callable[..., ApacheBroker], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    broker = start()
    topic = new_topic(broker)
    produce(broker, topic, b"x")
    broker.kill()
    (segment,) = (tmp_path / "data/kafka" / f"{topic}-0").glob("*.log")
    with segment.open("ab") as file:
        file.write(b"half a rec")
    broker.start()
    assert [line for line in caplog.messages if "Kafka cut off records that were damaged, see" in line]
    assert read(broker, topic) == [b"x"]


def test_warnings_reach_the_log_file(start: Callable[..., ApacheBroker]) -> None:
    # Kafka warns of each controller's first turn, so an empty log is one that nothing writes.
    assert " WARN " in start().log_file.read_text()


def test_the_cluster_id_is_one(start: Callable[..., ApacheBroker], tmp_path: Path) -> None:
    start().stop()
    text = (tmp_path / "data/kafka/meta.properties").read_text()
    found = re.search(r"^cluster\.id=(.{22})$", text, re.MULTILINE)
    assert found
    assert len(base64.urlsafe_b64decode(found[1] + "==")) == 16
