"""What each worker process has: an HTTP port, a broker to wait for, an end by signals or with its supervisor."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Protocol, TypeVar

from confluent_kafka.admin import AdminClient

from pipeline import clients
from pipeline.http import HealthServer, PortTaken
from pipeline.metrics import WorkerMetrics
from pipeline.parent import parent_gone
from pipeline.settings import EnsembleSettings
from pipeline.topics import TopicError, broker_metadata

log = logging.getLogger("penstock.serve")

Prepared = TypeVar("Prepared")

# How late a stop is noticed while a broker is awaited, and how often that is told.
_BROKER_LOOK_S = 0.5
_TELL_EVERY_S = 10.0
# How soon the supervisor's death is noticed.
_PARENT_LOOK_S = 1.0


class Member(Protocol):
    """Of a consumer group: what the health paths tell of."""

    def live(self) -> bool:
        """Whether its polling thread still comes round."""
        ...

    def not_ready(self) -> str | None:
        """Why it takes no work at the moment; None where it does."""
        ...


class WorkerState:
    """What a worker process is at: the health endpoint tells it, and `stop` ends it."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.waiting_for = "loading"
        # One, or one for each lane; none before the stages are loaded.
        self.workers: Sequence[Member] = ()

    def live(self) -> bool:
        return all(worker.live() for worker in self.workers)

    def not_ready(self) -> str | None:
        if self.stop.is_set():
            return "draining"
        if not self.workers:
            return self.waiting_for
        return next((why for worker in self.workers if (why := worker.not_ready()) is not None), None)


def open_http(
    settings: EnsembleSettings, port: int, http_port: int | None, metrics: WorkerMetrics, state: WorkerState
) -> HealthServer:
    """At `http_port`, else at `port`, the file's, else, where another worker has that, at any.

    Raises SettingsError.
    """

    def listen(port: int) -> HealthServer:
        return HealthServer(settings.http.host, port, metrics.registry, live=state.live, ready=state.not_ready)

    if http_port is not None:
        return listen(http_port)
    try:
        return listen(port)
    except PortTaken:
        log.warning("http.port: %d is taken: taking a free one; --http-port chooses", port)
        return listen(0)


def await_broker(
    settings: EnsembleSettings, prepare: Callable[[AdminClient], Prepared], *, state: WorkerState
) -> Prepared | None:
    """What `prepare` makes of a broker that has answered, however long that takes; None where it is stopped first.

    Raises UserError where `prepare` does; where that is a TopicError the broker is asked again.
    """
    admin = clients.admin(settings.kafka.client_settings())
    state.waiting_for = f"no broker answers at {settings.kafka.bootstrap_servers}"
    told_s = -math.inf
    while not state.stop.is_set():
        try:
            broker_metadata(admin, timeout_s=_BROKER_LOOK_S)
            prepared = prepare(admin)
        except TopicError as err:
            if time.monotonic() - told_s >= _TELL_EVERY_S:
                log.warning("%s; trying again", err)
                told_s = time.monotonic()
        else:
            state.waiting_for = "loading"
            return prepared
    return None


@contextmanager
def stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM, SIGINT and the supervisor's death set it."""
    # The handler runs inside of whatever the main thread does, which may hold the Event's lock: so a thread sets it.
    # SimpleQueue's put is made for that, it may interrupt any call of the queue's.
    signals: SimpleQueue[int] = SimpleQueue()

    def handle(number: int, _frame: FrameType | None) -> None:
        signals.put(number)

    def watch() -> None:
        while not stop.is_set():
            try:
                signals.get(timeout=_PARENT_LOOK_S)
                stop.set()
            except Empty:
                if parent_gone():
                    log.warning("the supervisor is gone: draining")
                    stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    threading.Thread(target=watch, name="signals", daemon=True).start()
    try:
        yield
    finally:
        stop.set()
        for number, handler in before.items():
            signal.signal(number, handler)
