"""Records that tests of commands put into topics and read from them."""

from __future__ import annotations

import time
from collections.abc import Sequence

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, Producer, TopicPartition

from schemas.errors import BadRecord, Reason
from schemas.headers import HeaderStyle, dead_letter_headers
from schemas.records import Headers, Source
from tests.cli.conftest import WAIT_S

PARTITIONS = (0, 1)


class Topics:
    """A producer, and readers that end where a topic does."""

    def __init__(self, bootstrap: str, ensemble: str) -> None:
        self.bootstrap = bootstrap
        self.ensemble = ensemble
        self._producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0})

    def send(
        self,
        value: bytes | None,
        *,
        to: str = "requests",
        partition: int = 0,
        key: bytes | None = None,
        headers: Headers | None = None,
        milliseconds: int = 0,
    ) -> None:
        """Write a record and wait until it is there; `milliseconds` is its time, 0 is now."""
        failed: list[KafkaError] = []
        self._producer.produce(
            f"{self.ensemble}.{to}",
            value,
            key,
            partition,
            lambda err, _: failed.append(err) if err is not None else None,
            timestamp=milliseconds,
            headers=[*(headers or [])],
        )
        assert self._producer.flush(WAIT_S) == 0
        assert not failed

    def bury(
        self,
        value: bytes | None,
        *,
        offset: int = 0,
        partition: int = 0,
        of: str = "requests",
        reason: Reason = Reason.NOT_JSON,
        stage: str = "tokenize",
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes | None]] = (),
        style: HeaderStyle = "kafka",
        milliseconds: int = 0,
    ) -> None:
        """Write a dead letter."""
        why = dead_letter_headers(
            BadRecord(reason, "because"),
            source=Source(f"{self.ensemble}.{of}", partition, offset),
            stage=stage,
            group=f"{self.ensemble}.{stage}",
            style=style,
        )
        self.send(
            value,
            to="dead-letters",
            partition=partition,
            key=key,
            headers=[*headers, *why],
            milliseconds=milliseconds,
        )

    def read(self, topic: str) -> list[Message]:
        """All records that a topic has, partition by partition."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": "reader",
                "enable.partition.eof": True,
                # The embedded broker says that there is nothing more when this is over.
                "fetch.wait.max.ms": 10,
            }
        )
        name = f"{self.ensemble}.{topic}"
        consumer.assign([TopicPartition(name, partition, OFFSET_BEGINNING) for partition in PARTITIONS])
        messages: list[Message] = []
        ended: set[int | None] = set()
        deadline_s = time.monotonic() + WAIT_S
        try:
            while len(ended) < len(PARTITIONS):
                assert time.monotonic() < deadline_s, f"{name} has no end"
                for message in consumer.consume(500, 0.05):
                    if message.error() is None:
                        messages.append(message)
                    else:
                        assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
                        ended.add(message.partition())
        finally:
            consumer.close()
        return sorted(messages, key=lambda message: (message.partition(), message.offset()))

    def values(self, topic: str) -> list[bytes | None]:
        return [message.value() for message in self.read(topic)]
