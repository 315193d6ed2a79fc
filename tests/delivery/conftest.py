"""Workers on Apache Kafka: their steps echo what they read, so that only delivery is looked at."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipeline import clients
from pipeline.apache_kafka.broker import ApacheBroker
from pipeline.clients import ClientSettings
from pipeline.dead_letters import DeadLetters
from pipeline.errors import WorkerFailure
from pipeline.intake import RequestIntake
from pipeline.lines import Unit
from pipeline.metrics import WorkerMetrics
from pipeline.settings import EnsembleSettings
from pipeline.up import make_topics
from pipeline.work import deliver, orphan_search
from pipeline.worker import Worker
from schemas.records import OutputRecord
from tests.eventually import WAIT_S

_numbers = itertools.count()

MakeSettings = Callable[..., EnsembleSettings]


def settings_on(broker: ApacheBroker, *, partitions: int = 4, **changes: Any) -> EnsembleSettings:
    """An ensemble of a name of its own, its topics made."""
    data: dict[str, Any] = {
        "name": f"echo-{next(_numbers)}",
        "topics": {"partitions": partitions},
        "models": [{"name": "v", "source": "unused"}],
        "delivery": "exactly_once",
        "commit_interval_ms": 20,
        "drain_timeout_ms": 10_000,
        "transactions": {"producers": 2},
        "kafka": {"bootstrap.servers": broker.bootstrap},
    }
    made = EnsembleSettings.model_validate(data | changes)
    make_topics(made)
    return made


@pytest.fixture
def settings(apache_broker: ApacheBroker) -> MakeSettings:
    return lambda **changes: settings_on(apache_broker, **changes)


class Echo:
    """A worker whose only step answers a request with itself: at once, or when it is told to."""

    def __init__(
        self, settings: EnsembleSettings, *, name: str | None = None, holding: bool = False, unit_size: int = 5
    ) -> None:
        self.settings = settings
        self.name = name
        self.group = settings.group_id("tokenize")
        self.metrics = WorkerMetrics(settings.name)
        self.holding = holding
        self.held: list[Unit] = []
        self.records_seen = 0
        self.error: BaseException | None = None
        self.stopped = False
        self._lock = threading.Lock()
        names = settings.topic_names
        metrics = self.metrics.stage("tokenize")
        kafka: ClientSettings = settings.kafka.consumer_settings()
        client_id = f"{self.group}@{name or id(self)}"
        self.worker = Worker(
            topic=names.requests,
            connect=lambda on_error, on_commit: clients.consumer(
                kafka, group=self.group, client_id=client_id, instance=name, on_error=on_error, on_commit=on_commit
            ),
            deliver=lambda worker: deliver(
                settings, worker, topic=names.requests, group=self.group, client_id=client_id, metrics=metrics
            ),
            intake=RequestIntake(max_pack_size=unit_size),
            dead_letters=DeadLetters(
                kafka, topic=names.dead_letters, stage="tokenize", group=self.group, metrics=metrics
            ),
            metrics=metrics,
            max_in_flight_tokens=100_000,
            commit_interval_ms=settings.commit_every_ms,
            drain_timeout_ms=settings.drain_timeout_ms,
            orphans=orphan_search(settings, group=self.group, topic=names.requests, name=name),
        )
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def submit(self, unit: Unit) -> None:
        self.records_seen += len(unit.records)
        with self._lock:
            self.held.append(unit)
        if not self.holding:
            self.let_go()

    def let_go(self) -> None:
        """Answer what is held."""
        with self._lock:
            units, self.held = self.held, []
        for unit in units:
            unit.outputs = [
                OutputRecord(self.settings.topic_names.results, each.key, each.value, each.headers, [each.source])
                for each in unit.records
            ]
            self.worker.finish(unit)

    def kill(self) -> None:
        """End without delivering or committing anything more, as far as a thread can: what is open stays open."""
        self.worker._delivery.stop = lambda: None  # type: ignore[method-assign]
        self.worker._delivery.close = lambda deadline: None  # type: ignore[method-assign]
        self.worker.fail(RuntimeError("killed"))
        self.thread.join(WAIT_S)

    def end(self) -> None:
        """As SIGTERM does."""
        self.stopped = True
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive(), "the worker ended"

    def counted(self, name: str, **labels: str) -> float:
        found = self.metrics.registry.get_sample_value(
            f"penstock_{name}", {"ensemble": self.settings.name, "stage": "tokenize", **labels}
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
