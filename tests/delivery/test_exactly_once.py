"""Exactly once, on Apache Kafka: whoever reads committed records sees each request's result once, in order."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

from pipeline.apache_kafka.broker import ApacheBroker
from pipeline.settings import EnsembleSettings
from tests.delivery.conftest import WAIT_S, Echo, MakeSettings, eventually, settings_on

pytestmark = pytest.mark.apache

Start = Callable[..., Echo]


def send(settings: EnsembleSettings, numbers: Sequence[int], **fields: Any) -> None:
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers, "linger.ms": 5})
    partitions = settings.topics.partitions
    for number in numbers:
        value = json.dumps({"number": number, **fields})
        producer.produce(settings.topic_names.requests, value, str(number), number % partitions)
    assert producer.flush(WAIT_S) == 0


class Reader:
    """All committed records of a topic, as they come."""

    def __init__(self, settings: EnsembleSettings, topic: str, *, isolation: str = "read_committed") -> None:
        self.values: dict[int, list[int]] = {partition: [] for partition in range(settings.topics.partitions)}
        self._consumer = Consumer(
            {
                "bootstrap.servers": settings.kafka.bootstrap_servers,
                "group.id": "reader",
                "isolation.level": isolation,
                "enable.partition.eof": True,
            }
        )
        self._consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in self.values])

    def read(self, until: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while not until():
            assert time.monotonic() < deadline_s, f"only {self.count} were read"
            self._take(0.1)

    def read_to_the_end(self) -> None:
        """What is there now."""
        ended: set[int | None] = set()
        while len(ended) < len(self.values):
            ended |= self._take(1.0)

    @property
    def count(self) -> int:
        return sum(map(len, self.values.values()))

    def _take(self, wait_s: float) -> set[int | None]:
        ended: set[int | None] = set()
        for message in self._consumer.consume(500, wait_s):
            error = message.error()
            if error is None:
                self.values[message.partition() or 0].append(json.loads(message.value() or b"")["number"])
            else:
                assert error.code() == KafkaError._PARTITION_EOF, error
                ended.add(message.partition())
        return ended

    def close(self) -> None:
        self._consumer.close()


def results(settings: EnsembleSettings, count: int) -> Mapping[int, list[int]]:
    """Of each partition, once there are `count`, and nothing else has come by then."""
    first = Reader(settings, settings.topic_names.results)
    first.read(lambda: first.count >= count)
    first.close()
    # The end of a partition is told once: to a reader that comes when all is there.
    second = Reader(settings, settings.topic_names.results)
    second.read_to_the_end()
    second.close()
    assert second.count == count
    return second.values


def in_order(settings: EnsembleSettings, count: int) -> dict[int, list[int]]:
    partitions = settings.topics.partitions
    return {partition: list(range(partition, count, partitions)) for partition in range(partitions)}


def committed(settings: EnsembleSettings) -> dict[int, int]:
    consumer = Consumer(
        {"bootstrap.servers": settings.kafka.bootstrap_servers, "group.id": settings.group_id("tokenize")}
    )
    places = [TopicPartition(settings.topic_names.requests, each) for each in range(settings.topics.partitions)]
    found = consumer.committed(places, timeout=WAIT_S)
    consumer.close()
    return {each.partition: each.offset for each in found}


def test_results_and_offsets_are_committed_together(settings: MakeSettings, start: Start) -> None:
    made = settings()
    echo = start(made)
    send(made, range(400))
    assert results(made, 400) == in_order(made, 400)
    assert committed(made) == dict.fromkeys(range(4), 100)
    echo.end()
    assert echo.error is None
    assert echo.counted("transactions_total", outcome="committed") > 0
    assert echo.counted("transactions_total", outcome="aborted") == 0


def test_a_killed_worker_s_open_transaction_is_never_seen_and_its_requests_are_answered_once(
    settings: MakeSettings, start: Start
) -> None:
    made = settings(partitions=1, commit_interval_ms=60_000)
    send(made, [0])
    first = start(made, name="a")
    results(made, 1)
    send(made, range(1, 100))  # a minute until the second commit
    eventually(lambda: first.records_seen == 100)
    reader = Reader(made, made.topic_names.results, isolation="read_uncommitted")
    reader.read(lambda: reader.count == 100)
    first.kill()
    second = start(made.model_copy(update={"commit_interval_ms": 20}), name="a")
    assert results(made, 100) == in_order(made, 100)
    reader.read(lambda: reader.count == 199)
    reader.close()
    second.end()


def test_of_two_workers_of_one_name_the_elder_stops(settings: MakeSettings, start: Start) -> None:
    made = settings()
    first = start(made, name="a")
    send(made, range(40))
    eventually(lambda: first.records_seen == 40)
    second = start(made, name="a")
    eventually(lambda: second.worker.not_ready() is None)
    for base in range(40, 400, 40):
        send(made, range(base, base + 40))
    eventually(lambda: not first.thread.is_alive())
    assert "fenced" in str(first.error).lower()
    assert results(made, 400) == in_order(made, 400)
    second.end()
    assert second.error is None


def test_a_partition_that_moves_takes_nothing_twice_along(
    settings: MakeSettings, start: Start, apache_broker: ApacheBroker
) -> None:
    # A named member that leaves is waited for until its session ends.
    consumer = {"session.timeout.ms": 2_000, "heartbeat.interval.ms": 100}
    made = settings(kafka={"bootstrap.servers": apache_broker.bootstrap, "consumer": consumer})
    first = start(made, name="a")
    send(made, range(400))
    second = start(made, name="b")
    for base in range(400, 2000, 100):
        send(made, range(base, base + 100))
    eventually(lambda: second.records_seen > 0)
    first.end()
    send(made, range(2000, 2400))
    assert results(made, 2400) == in_order(made, 2400)
    second.end()
    assert (first.error, second.error) == (None, None)


def test_a_transaction_that_timed_out_is_done_again_by_a_new_producer(
    settings: MakeSettings, start: Start, apache_broker: ApacheBroker
) -> None:
    """As when the broker was away for longer than the transaction may last."""
    made = settings(
        partitions=1,
        commit_interval_ms=4_000,
        kafka={
            "bootstrap.servers": apache_broker.bootstrap,
            "producer": {"transaction.timeout.ms": 1_000},
        },
    )
    echo = start(made)
    send(made, [0])
    results(made, 1)
    send(made, range(1, 20))
    eventually(lambda: echo.counted("transactions_total", outcome="aborted") > 0)
    # From now on faster than the time-out.
    for lane in echo.worker._delivery._lanes:  # type: ignore[attr-defined]
        lane._commit_interval_ms = 20
    assert results(made, 20) == in_order(made, 20)
    echo.end()
    assert echo.error is None


def test_a_result_too_large_is_a_dead_letter_and_its_neighbours_are_answered(
    settings: MakeSettings, start: Start
) -> None:
    made = settings(partitions=1)
    admin = AdminClient({"bootstrap.servers": made.kafka.bootstrap_servers})
    smaller = ConfigEntry("max.message.bytes", "2000", incremental_operation=AlterConfigOpType.SET)
    topic = ConfigResource(ConfigResource.Type.TOPIC, made.topic_names.results, incremental_configs=[smaller])
    [changed] = admin.incremental_alter_configs([topic]).values()
    changed.result()
    echo = start(made, unit_size=2)
    send(made, [0, 1])
    send(made, [2], text=random.Random(1).randbytes(10_000).hex())  # zstd makes half of it
    send(made, [3, 4])
    assert results(made, 4) == {0: [0, 1, 3, 4]}
    reader = Reader(made, made.topic_names.dead_letters)
    reader.read(lambda: reader.count == 1)
    reader.close()
    assert reader.values == {0: [2]}
    assert committed(made) == {0: 5}
    echo.end()
    assert echo.counted("dead_letters_total", reason="result_too_large") == 1


def test_a_stop_commits_what_was_read_and_leaves_nothing_open(settings: MakeSettings, start: Start) -> None:
    made = settings(partitions=1, commit_interval_ms=60_000)
    echo = start(made)
    send(made, [0])
    results(made, 1)
    echo.holding = True
    send(made, range(1, 80))
    eventually(lambda: echo.records_seen == 80)
    echo.stopped = True
    echo.holding = False
    echo.let_go()
    echo.end()
    assert results(made, 80) == in_order(made, 80)
    assert committed(made) == {0: 80}


def test_a_broker_that_dies_and_comes_back_makes_nothing_lost_or_twice(
    apache_runtime: Any, tmp_path: Any, start: Start
) -> None:
    with ApacheBroker(tmp_path, runtime=apache_runtime) as broker:
        made = settings_on(broker)
        echo = start(made, name="a")
        send(made, range(200))
        eventually(lambda: echo.records_seen == 200)
        for base in range(200, 800, 200):
            broker.kill()
            eventually(lambda: "the broker is away" in (echo.worker.not_ready() or ""))
            assert echo.worker.live()
            broker.start()
            send(made, range(base, base + 200))
            eventually(lambda: echo.records_seen >= base + 200)  # noqa: B023
        assert results(made, 800) == in_order(made, 800)
        eventually(lambda: echo.worker.not_ready() is None)
        echo.end()
        assert echo.error is None
