"""Workers in this process, on the embedded broker in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, Producer, TopicPartition

from pipeline.clients import admin
from pipeline.metrics import WorkerMetrics
from pipeline.mock_cluster import EmbeddedBroker
from pipeline.reach import fit_to_broker
from pipeline.settings import STAGES, EnsembleSettings
from pipeline.topics import wanted_topics
from pipeline.work import work
from pipeline.worker_process import WorkerState
from tests.eventually import eventually

# Longer than anything here takes; a test that waits for so long has failed.
WAIT_S = 30.0


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as broker:
        yield broker


@pytest.fixture
def settings(broker: EmbeddedBroker, small_model: Path) -> Callable[..., EnsembleSettings]:
    """The settings of an ensemble on the small model, its topics made."""

    def make(*, partitions: int = 2, **changes: Any) -> EnsembleSettings:
        data: dict[str, Any] = {
            "name": "reviews",
            "topics": {"partitions": partitions},
            "tokenizer": {"stride": 4},
            "models": [
                {"name": "vector", "source": str(small_model), "task": "sentence-embedding"},
                {"name": "verdict", "source": str(small_model), "task": "text-classification", "top_k": None},
            ],
            "batching": {"row_length": 32, "max_batch_tokens": 256},
            "commit_interval_ms": 50,
            "drain_timeout_ms": 10_000,
            "kafka": {"bootstrap.servers": broker.bootstrap, "consumer": {"group.protocol": "consumer"}},
        }
        made = EnsembleSettings.model_validate(data | changes)
        for topic in wanted_topics(made):
            broker.create_topic(topic.name, partitions)
        return made

    return make


class RunningWorker:
    """A worker on a thread of its own."""

    def __init__(self, settings: EnsembleSettings, stages: Sequence[Any]) -> None:
        self.state = WorkerState()
        self.metrics = WorkerMetrics(settings.name)
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(settings, stages), daemon=True)
        self._thread.start()

    def _run(self, settings: EnsembleSettings, stages: Sequence[Any]) -> None:
        try:
            work(settings, stages, self.metrics, self.state)
        except BaseException as err:  # noqa: BLE001 - told by stop()
            self.error = err

    def stop(self) -> None:
        """As SIGTERM does: drain and end."""
        self.state.stop.set()
        self.join()
        if self.error is not None:
            raise self.error

    def join(self) -> None:
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), "the worker ended"


@contextmanager
def running(settings: EnsembleSettings, *, fused: bool = False) -> Iterator[list[RunningWorker]]:
    """The stages of an ensemble at work: three workers, or a fused one. Fit to the broker, as `penstock run` is."""
    settings = fit_to_broker(settings, admin(settings.kafka.client_settings()))
    workers = [RunningWorker(settings, stages) for stages in ([STAGES] if fused else [[stage] for stage in STAGES])]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.stop()


class Topics:
    """A producer and readers of an ensemble's topics."""

    def __init__(self, settings: EnsembleSettings) -> None:
        self._settings = settings
        self._producer = Producer(
            {"bootstrap.servers": settings.kafka.bootstrap_servers, "linger.ms": 0, "message.max.bytes": 20_000_000}
        )
        self.names = settings.topic_names

    def send(
        self,
        *values: bytes | None,
        partition: int = 0,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes | None]] = (),
        topic: str | None = None,
        timestamp: int = 0,
    ) -> None:
        """`timestamp` in milliseconds since 1970; 0 is now."""
        for value in values:
            self._producer.produce(
                topic or self.names.requests,
                value,
                key,
                partition,
                headers=[*headers],
                on_delivery=_delivered,
                timestamp=timestamp,
            )
        assert self._producer.flush(WAIT_S) == 0, "all requests were delivered"

    def read(self, topic: str, count: int) -> list[Message]:
        """The first `count` records of a topic, and no more than that are there."""
        messages = self.read_until(topic, lambda messages: len(messages) >= count)
        assert len(messages) == count, f"{topic} has {len(messages)} records, not {count}"
        return messages

    def read_until(self, topic: str, done: Callable[[list[Message]], bool]) -> list[Message]:
        """A topic's records, from its beginning until they suffice or never will."""
        consumer = Consumer({"bootstrap.servers": self._settings.kafka.bootstrap_servers, "group.id": "reader"})
        partitions = range(self._settings.topics.partitions)
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions])
        messages: list[Message] = []
        deadline_s = time.monotonic() + WAIT_S
        try:
            while not done(messages) and time.monotonic() < deadline_s:
                messages += [message for message in consumer.consume(500, 0.1) if message.error() is None]
        finally:
            consumer.close()
        return messages

    def await_committed(self, group: str, topic: str, offsets: Mapping[int, int]) -> None:
        """A group commits these offsets, sooner or later."""
        eventually(lambda: self.committed(group, topic) == offsets, lambda: self.committed(group, topic))

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """A group's committed offsets."""
        consumer = Consumer({"bootstrap.servers": self._settings.kafka.bootstrap_servers, "group.id": group})
        partitions = range(self._settings.topics.partitions)
        found = consumer.committed([TopicPartition(topic, partition) for partition in partitions], timeout=WAIT_S)
        consumer.close()
        return {each.partition: each.offset for each in found}


def _delivered(err: object, _message: Message) -> None:
    assert err is None, err
