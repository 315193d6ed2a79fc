"""Transactions that fail: how often in a row, when the next attempt may be, and when another one is no use."""

from __future__ import annotations

from collections.abc import Callable

from confluent_kafka import KafkaError

from pipeline.errors import WorkerFailure

# Between attempts, doubling; a rebalance or a broker's restart takes up to seconds.
_FIRST_BACKOFF_MS = 10.0
_LONGEST_BACKOFF_MS = 1_000.0
# 100 attempts are a minute and a half without one commit.
_MOST_ATTEMPTS = 100
# A producer is fenced by a transaction that timed out while the broker was away, or by another worker of its name. Two
# of the same name fence each other; the group decides between them within a heartbeat.
_MOST_FENCED = 10

_FENCED = frozenset({KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH, KafkaError.PRODUCER_FENCED})
# What no further attempt mends.
_REFUSED = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        KafkaError.UNSUPPORTED_VERSION,
        KafkaError._UNSUPPORTED_FEATURE,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
    }
)


class Attempts:
    """Of one producer. `topic` is what the transactions' records were read from."""

    def __init__(self, topic: str, *, clock_ms: Callable[[], float]) -> None:
        # No attempt before this, by the clock.
        self.next_ms = 0.0
        self._topic = topic
        self._clock_ms = clock_ms
        self._failures = 0
        self._fenced = 0

    def succeeded(self) -> None:
        """A transaction was committed."""
        self._failures = self._fenced = 0

    def failed(self, why: str, error: KafkaError | None, *, where: str, at_once: bool = False) -> None:
        """A transaction was not. `at_once`: what was wrong will not be there again. Raises WorkerFailure where another
        attempt is no use, `where` being the topics that were refused."""
        if error is not None and error.code() in _REFUSED:
            raise WorkerFailure(f"{where}: no transaction can be committed: {why}")
        self._fenced += error is not None and error.code() in _FENCED
        self._failures += not at_once
        if self._failures >= _MOST_ATTEMPTS or self._fenced >= _MOST_FENCED:
            raise WorkerFailure(f"{self._topic}: no transaction was committed in {self._failures} attempts: {why}")
        if not at_once:
            backoff_ms = min(_LONGEST_BACKOFF_MS, _FIRST_BACKOFF_MS * 2 ** min(self._failures, 10))
            self.next_ms = self._clock_ms() + backoff_ms
