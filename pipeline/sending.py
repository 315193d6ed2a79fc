"""Records on their way to a topic, for commands: sent in order, waited for, and counted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Message

from pipeline import clients
from pipeline.deadline import Deadline
from pipeline.delivery import TOO_LARGE
from pipeline.errors import WorkerFailure
from pipeline.kafka_settings import KafkaSettings
from schemas.records import Headers

# A broker that does not take a record for this long is away.
_DELIVERY_TIMEOUT_S = 60.0
# How late Ctrl-C is noticed: nothing interrupts librdkafka while it waits.
_POLL_S = 0.2
# How the client begins what librdkafka says.
_PRODUCE_FAILED = "Unable to produce message: "
# librdkafka's, for a record that its partitioner places by key.
ANY_PARTITION = -1


class Sending:
    """What a command sends. `told_as` is what its records are called where one can't be sent: line, dead letter."""

    def __init__(self, kafka: KafkaSettings, *, client_id: str, told_as: str) -> None:
        defaults = {"linger.ms": 5, "message.timeout.ms": round(_DELIVERY_TIMEOUT_S * 1e3)}
        self._producer = clients.producer(defaults | kafka.producer_settings(), client_id=client_id)
        self._told_as = told_as
        self._topic = ""
        self.failure = ""
        self._away = False
        self.delivered = 0
        self.failed = 0

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        *,
        name: object,
        partition: int = ANY_PARTITION,
        headers: Headers | None = None,
        on_delivered: Callable[[], None] | None = None,
        on_too_large: Callable[[str], None] | None = None,
    ) -> None:
        """Queue a record, waiting for room. Raises WorkerFailure where the broker is gone.

        `name` tells it from the others. One that is too large for its topic has failed, unless `on_too_large` does
        something about it.
        """
        self._topic = topic
        report = partial(self._report, name, on_delivered, on_too_large)
        while True:
            try:
                self._producer.produce(topic, value, key, partition, report, headers=[*(headers or [])])
            except BufferError:
                self._producer.poll(_POLL_S)
                self._raise_if_away()
            except KafkaException as err:
                self._fail(name, on_too_large, err.args[0])
                return
            else:
                return

    def look(self) -> None:
        """Take note of what has arrived."""
        self._producer.poll(0)
        self._raise_if_away()

    def wait(self, budget_s: float = _DELIVERY_TIMEOUT_S + 1.0) -> None:
        """Wait until each record has arrived or failed. Raises WorkerFailure where the broker is gone."""
        deadline = Deadline(budget_s)
        while len(self._producer) and not deadline.expired:
            self._producer.flush(min(_POLL_S, deadline.remaining_s()))
        self._raise_if_away()
        if len(self._producer):
            raise WorkerFailure(f"{self._topic}: {len(self._producer)} not sent: no answer from the broker")

    def finish(self) -> None:
        """Wait for all. Raises WorkerFailure unless every record has arrived."""
        self.wait()
        if self.failed:
            raise WorkerFailure(f"{self._topic}: {self.failed} not sent, the first: {self.failure}")

    def _report(
        self,
        name: object,
        on_delivered: Callable[[], None] | None,
        on_too_large: Callable[[str], None] | None,
        err: KafkaError | None,
        _message: Message,
    ) -> None:
        if err is None:
            self.delivered += 1
            if on_delivered is not None:
                on_delivered()
            return
        self._away |= err.fatal() or err.code() == KafkaError._MSG_TIMED_OUT
        self._fail(name, on_too_large, err)

    def _fail(self, name: object, on_too_large: Callable[[str], None] | None, err: KafkaError) -> None:
        if on_too_large is not None and err.code() in TOO_LARGE:
            on_too_large(err.str())
            return
        self.failed += 1
        self.failure = self.failure or f"{self._told_as} {name}: {err.str().removeprefix(_PRODUCE_FAILED)}"

    def _raise_if_away(self) -> None:
        if self._away:
            raise WorkerFailure(f"{self._topic}: not sent: {self.failure}")
