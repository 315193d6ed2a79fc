"""What tests of delivery send and read, each record a number in JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Producer, TopicPartition

from pipeline.settings import EnsembleSettings
from tests.delivery.conftest import WAIT_S


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
