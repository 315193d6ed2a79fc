"""How a worker is: whether its polling thread comes round, whether its broker is there, and what it failed of."""

from __future__ import annotations

import logging
from collections.abc import Callable

from confluent_kafka import Consumer, KafkaError, KafkaException

from engines.errors import EngineError, EngineLost
from pipeline.errors import WorkerFailure
from stages.errors import StageError

OnError = Callable[[KafkaError], None]

log = logging.getLogger("penstock.worker")

# A poll loop that has not come round for this long is stuck.
_STUCK_MS = 30_000.0
_AWAY = frozenset({KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE})
_GONE = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC})
# What no further attempt mends. A consumer's fatal errors say so by their code alone.
_HOPELESS = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.UNSUPPORTED_VERSION,
        KafkaError._UNSUPPORTED_FEATURE,
        KafkaError._FATAL,
    }
)


class WorkerHealth:
    """Told by the worker's threads and its clients' callbacks, asked by its HTTP port. `topic` is what it reads."""

    def __init__(self, topic: str, *, clock_ms: Callable[[], float]) -> None:
        self.failure: BaseException | None = None
        # Why the broker is away; None while it is there.
        self.broker_error: str | None = None
        self._topic = topic
        self._clock_ms = clock_ms
        self._polled_ms = clock_ms()

    def polled(self) -> None:
        """The polling thread has come round, or waits for what is no standstill."""
        self._polled_ms = self._clock_ms()

    def fail(self, err: BaseException) -> None:
        """It can't go on. The first failure is the one that is told."""
        if self.failure is None:
            self.failure = err

    def live(self) -> bool:
        """Whether the polling thread still comes round."""
        return self.failure is None and self._clock_ms() - self._polled_ms < _STUCK_MS

    def not_ready(self) -> str | None:
        """Why it takes no work, by what is known here; None where nothing is wrong."""
        if self.failure is not None:
            return f"failed: {told(self.failure)}"
        return None if self.broker_error is None else f"the broker is away: {self.broker_error}"

    def on_error(self, error: KafkaError) -> None:
        """What a client reports of itself."""
        if error.fatal() or error.code() == KafkaError._FATAL:
            self.fail(WorkerFailure(f"{self._topic}: {error.str()}"))
        else:
            self.on_passing_error(error)

    def on_passing_error(self, error: KafkaError) -> None:
        """What a client reports that can be replaced."""
        if error.code() in _AWAY and self.broker_error is None:
            self.broker_error = error.str()
            log.warning("%s: the broker is away: %s", self._topic, error.str())

    def on_read_error(self, error: KafkaError, *, topic: str | None = None) -> None:
        """What came in place of a record, of a topic where it is known."""
        topic = topic or self._topic
        if error.code() in _GONE:
            self.fail(WorkerFailure(f"{topic}: is not there any more"))
        elif error.fatal() or error.code() in _HOPELESS:
            self.fail(WorkerFailure(f"{topic}: {error.str()}"))
        else:
            log.warning("%s: %s", topic, error.str())

    def look(self, consumer: Consumer, wait_s: float) -> None:
        """Ask a broker that was away whether it is back."""
        if self.broker_error is None:
            return
        try:
            consumer.list_topics(self._topic, timeout=wait_s)
        except KafkaException:
            return
        self.broker_is_back()

    def broker_is_back(self) -> None:
        """It has answered."""
        self.broker_error = None
        log.info("%s: the broker is back", self._topic)


def told(failure: BaseException) -> str:
    """One line; what nobody foresaw by its type too, since a MemoryError, say, has nothing else to say."""
    foreseen = isinstance(failure, (WorkerFailure, EngineError, EngineLost, StageError))
    return str(failure) if foreseen else f"{type(failure).__name__}: {failure}".removesuffix(": ")
