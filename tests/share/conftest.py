"""Workers of a share group on Apache Kafka: their step echoes a pack, so that only delivery is looked at."""

from __future__ import annotations

import itertools
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Producer, TopicPartition

from pipeline import clients
from pipeline.apache_kafka.broker import ApacheBroker
from pipeline.apache_kafka.runtime import Runtime
from pipeline.dead_letters import DeadLetters
from pipeline.errors import WorkerFailure
from pipeline.lines import Unit
from pipeline.metrics import WorkerMetrics
from pipeline.settings import EnsembleSettings
from pipeline.share_group import ONE_PACK_A_BATCH, prepare_share_group
from pipeline.share_work import share_worker
from pipeline.step_makers import intake_of
from pipeline.up import make_topics
from schemas.packs import PackedText, decode_token_pack, encode_pack, token_pack
from schemas.records import OutputRecord
from tests.eventually import WAIT_S

# A member hears what it is assigned with a heartbeat, 5 s by default, and a lock is held for at least 15 s.
_SHORT_WAITS = {
    "group.share.min.heartbeat.interval.ms": "100",
    "group.share.heartbeat.interval.ms": "100",
    "group.share.min.record.lock.duration.ms": "1000",
}

_numbers = itertools.count()

MakeSettings = Callable[..., EnsembleSettings]


@pytest.fixture(scope="session")
def share_broker(apache_runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheBroker]:
    """An Apache Kafka whose share groups don't make a test wait."""
    with ApacheBroker(tmp_path_factory.mktemp("share"), runtime=apache_runtime, settings=_SHORT_WAITS) as broker:
        yield broker


def settings_on(broker: ApacheBroker, *, lock_ms: int = 60_000, **changes: Any) -> EnsembleSettings:
    """An ensemble of one partition and a name of its own, its topics made, its group prepared."""
    data: dict[str, Any] = {
        "name": f"shared-{next(_numbers)}",
        "topics": {"partitions": 1},
        "models": [{"name": "v", "source": "unused"}],
        "encode_order": "none",
        "share_group": {"packs_per_poll": 2, "lock_ms": lock_ms, "max_deliveries": 2},
        "drain_timeout_ms": 10_000,
        "kafka": {"bootstrap.servers": broker.bootstrap},
    }
    made = EnsembleSettings.model_validate(data | changes)
    make_topics(made)
    prepare_share_group(made, clients.admin(made.kafka.client_settings()))
    return made


@pytest.fixture
def settings(share_broker: ApacheBroker) -> MakeSettings:
    return lambda **changes: settings_on(share_broker, **changes)


class Echo:
    """A worker whose only step answers a pack with itself: at once, or when it is told to."""

    def __init__(self, settings: EnsembleSettings, *, holding: bool = False) -> None:
        self.settings = settings
        self.metrics = WorkerMetrics(settings.name)
        self.holding = holding
        self.held: list[Unit] = []
        self.seen: list[int] = []
        self.answered = 0
        self.error: BaseException | None = None
        self.stopped = False
        self._lock = threading.Lock()
        names = settings.topic_names
        metrics = self.metrics.stage("encode")
        dead_letters = DeadLetters(
            settings.kafka.consumer_settings(),
            topic=names.dead_letters,
            stage="encode",
            group=settings.group_id("encode"),
            metrics=metrics,
        )
        self.worker = share_worker(
            settings,
            intake=intake_of(settings, "encode", dead_letters),
            dead_letters=dead_letters,
            client_id=f"echo-{id(self)}",
            metrics=metrics,
        )
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def submit(self, unit: Unit) -> None:
        if unit.tokens is None:
            self.worker.finish(unit)
            return
        self.seen.append(unit.records[0].source.offset)
        with self._lock:
            self.held.append(unit)
        if not self.holding:
            self.let_go()

    def let_go(self) -> None:
        """Answer what is held."""
        with self._lock:
            units, self.held = self.held, []
        for unit in units:
            (record,) = unit.records
            unit.outputs = [OutputRecord(self.settings.topic_names.encodings, None, record.value, [], [record.source])]
            self.answered += 1
            self.worker.finish(unit)

    def hang(self) -> None:
        """Neither answer, nor accept, nor release: as a machine that is cut off."""
        self.worker.shut_down = lambda: None  # type: ignore[method-assign]
        self.stopped = True
        self.thread.join(WAIT_S)

    def fail(self) -> None:
        self.worker.fail(RuntimeError("broken"))
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive(), "the worker ended"

    def end(self) -> None:
        """As SIGTERM does."""
        self.stopped = True
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive(), "the worker ended"

    def counted(self, name: str, **labels: str) -> float:
        found = self.metrics.registry.get_sample_value(
            f"penstock_{name}", {"ensemble": self.settings.name, "stage": "encode", **labels}
        )
        return found or 0.0

    def _run(self) -> None:
        try:
            self.worker.run(self.submit, lambda: self.stopped)
        except WorkerFailure as err:
            self.error = err


@pytest.fixture
def start() -> Iterator[Callable[..., Echo]]:
    """Starts workers, and ends those that are left."""
    started: list[Echo] = []

    def make(settings: EnsembleSettings, **options: Any) -> Echo:
        echo = Echo(settings, **options)
        started.append(echo)
        return echo

    yield make
    for echo in started:
        echo.holding = False
        echo.let_go()
        echo.stopped = True
    for echo in started:
        echo.thread.join(WAIT_S)


def pack(settings: EnsembleSettings, number: int, *, texts: int = 1) -> bytes:
    """Of the requests number, number + 1, ..."""
    return encode_pack(
        token_pack(
            topic=settings.topic_names.requests,
            partition=0,
            texts=[PackedText(f"id-{number + index}", None, [], number + index, 1, 3, False) for index in range(texts)],
            chunks=[np.array([101, number % 1000, 102], np.int32) for _ in range(texts)],
        )
    )


def send(settings: EnsembleSettings, values: Sequence[bytes | None], *, batches: bool = False) -> None:
    """As tokenize does; or many packs a batch."""
    batching = {} if batches else ONE_PACK_A_BATCH
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers, "linger.ms": 5, **batching})
    for value in values:
        producer.produce(settings.topic_names.tokens, value, None, 0)
    assert producer.flush(WAIT_S) == 0


def send_requests(settings: EnsembleSettings, count: int) -> None:
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers, "linger.ms": 5})
    for number in range(count):
        producer.produce(settings.topic_names.requests, json.dumps({"text": str(number)}), b"k", 0)
    assert producer.flush(WAIT_S) == 0


def answers(settings: EnsembleSettings) -> Counter[int]:
    """How often each pack was answered, by its first request."""
    values = (value for value, _ in read(settings, settings.topic_names.encodings))
    return Counter(decode_token_pack(value).texts[0].offset for value in values)


def read(settings: EnsembleSettings, topic: str) -> list[tuple[bytes | None, dict[str, bytes | None]]]:
    """Values and headers of all that is in partition 0 of a topic now."""
    found: list[tuple[bytes | None, dict[str, bytes | None]]] = []
    consumer = Consumer(
        {"bootstrap.servers": settings.kafka.bootstrap_servers, "group.id": "reader", "enable.partition.eof": True}
    )
    consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
    while True:
        message = consumer.poll(WAIT_S)
        assert message is not None
        error = message.error()
        if error is not None:
            assert error.code() == KafkaError._PARTITION_EOF, error
            consumer.close()
            return found
        found.append((message.value(), dict(message.headers() or [])))
