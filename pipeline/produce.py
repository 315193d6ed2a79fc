"""`penstock produce`: lines become records of the requests topic."""

from __future__ import annotations

import sys
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Message

from pipeline import clients
from pipeline.deadline import Deadline
from pipeline.errors import WorkerFailure
from pipeline.lines_of_text import line_blocks, opened_lines, request_of
from pipeline.reach import existing_partitions
from pipeline.settings import EnsembleSettings

# A broker that does not take a record for this long is away.
_DELIVERY_TIMEOUT_S = 60.0
# How late Ctrl-C is noticed: nothing interrupts librdkafka while it waits.
_POLL_S = 0.2
# Lines that are read before Kafka's answers are looked at.
_BLOCK_LINES = 1000
# How the client begins what librdkafka says.
_PRODUCE_FAILED = "Unable to produce message: "


def produce_lines(settings: EnsembleSettings, source: str, *, key: str | None) -> None:
    """Send every line of a file, or of standard input where `source` is `-`.

    A line that no broker takes for its size is told and left out; the rest is sent. Raises UserError before anything
    is sent, WorkerFailure where not all of it was.
    """
    topic = settings.topic_names.requests
    with opened_lines(source) as descriptor:
        existing_partitions(settings.kafka, topic)
        sending = _Sending(settings, topic, key.encode(errors="surrogateescape") if key is not None else None)
        number = 0
        try:
            for block in line_blocks(descriptor, max_lines=_BLOCK_LINES):
                for line in block:
                    number += 1
                    sending.send(number, request_of(line, settings.requests.format))
                sending.look()
            sending.finish()
        finally:
            # Also after Ctrl-C: what is sent is sent.
            sys.stderr.write(f"penstock: {topic}: {sending.delivered} sent\n")


class _Sending:
    """Requests on their way to one topic."""

    def __init__(self, settings: EnsembleSettings, topic: str, key: bytes | None) -> None:
        defaults = {"linger.ms": 5, "message.timeout.ms": round(_DELIVERY_TIMEOUT_S * 1e3)}
        self._producer = clients.producer(defaults | settings.kafka.producer_settings(), client_id="penstock-produce")
        self._topic = topic
        self._key = key
        self._failed = 0
        self._failure = ""
        self._away = False
        self.delivered = 0

    def send(self, number: int, value: bytes) -> None:
        """Queue line `number`, waiting for room. Raises WorkerFailure where the broker is gone."""
        while True:
            try:
                self._producer.produce(self._topic, value, self._key, on_delivery=partial(self._report, number))
            except BufferError:
                self._producer.poll(_POLL_S)
                self._raise_if_away()
            except KafkaException as err:
                self._fail(number, err.args[0])
                return
            else:
                return

    def look(self) -> None:
        """Take note of what has arrived."""
        self._producer.poll(0)
        self._raise_if_away()

    def finish(self) -> None:
        """Wait for all. Raises WorkerFailure unless every line has arrived."""
        deadline = Deadline(_DELIVERY_TIMEOUT_S + 1.0)
        while len(self._producer) and not deadline.expired:
            self._producer.flush(_POLL_S)
        self._raise_if_away()
        if len(self._producer):
            raise WorkerFailure(f"{self._topic}: {len(self._producer)} not sent: no answer from the broker")
        if self._failed:
            raise WorkerFailure(f"{self._topic}: {self._failed} not sent, the first: {self._failure}")

    def _report(self, number: int, err: KafkaError | None, _message: Message) -> None:
        if err is None:
            self.delivered += 1
        else:
            self._away |= err.fatal() or err.code() == KafkaError._MSG_TIMED_OUT
            self._fail(number, err)

    def _fail(self, number: int, err: KafkaError) -> None:
        self._failed += 1
        self._failure = self._failure or f"line {number}: {err.str().removeprefix(_PRODUCE_FAILED)}"

    def _raise_if_away(self) -> None:
        if self._away:
            raise WorkerFailure(f"{self._topic}: not sent: {self._failure}")
