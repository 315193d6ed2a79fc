"""The demo's producer and consumer: requests out, results back, one thread.

In flight is bounded, for two reasons: the embedded broker keeps 5 MiB or 100,000 records a partition and drops the
oldest silently; and what waits in a queue only makes latencies longer. Closed loop: the next request is sent when
there is room. With a rate, open loop: one is sent when its time has come, and there is room.

Results of other runs, on a broker that others use too, are passed over: this one's ids begin with its run's name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from pipeline import clients
from pipeline.demo.ledger import Ledger
from pipeline.errors import WorkerFailure
from pipeline.settings import EnsembleSettings
from schemas.headers import CLOUDEVENTS_ID, Cause, read_cause
from schemas.records import Headers, Source
from schemas.results import Label

# Full batches for each engine instance: one that it computes, one that waits, one on the way. More changes nothing
# but the latency: 384 on 2 cores give what 1,024 give, with MiniLM (240 texts/s) and with a tiny model (3,500).
_BATCHES_IN_FLIGHT = 3
_MIN_IN_FLIGHT = 64
# As results of 8 KB these are 2 MiB in each of 4 partitions, should nobody read them. 2,048 are more than 65,536
# tokens: then workers pause, and a tiny model gives half as many texts/s.
_MAX_IN_FLIGHT = 1_024
# Bytes of texts, which may be long: their tokens and encodings take several times as much.
_MAX_IN_FLIGHT_BYTES = 2 << 20

# Keys: as many speakers take turns. 64 spread well over a few partitions.
_SPEAKERS = 64
_CONSUME_RECORDS = 512
# How late an idle consumer notices that it is time to stop.
_WAIT_S = 0.05
_METADATA_TIMEOUT_S = 10.0
_FLUSH_S = 5.0


class _Answer(msgspec.Struct):
    """What is counted of a result; its outputs, the most of it, are not decoded."""

    id: str
    tokens: int
    source: Source


class _ShownResult(msgspec.Struct):
    """A result's outputs, a list of labels or of numbers by model. (msgspec decodes no union of two lists.)"""

    outputs: dict[str, list[Label | float]]


class Load:
    """Sends `count` of `texts` and takes what comes back, into `ledger`.

    `on_result` gets the text and the outputs of `shown` results, spread over the run; `on_dead_letter` gets id,
    reason and message of each dead letter.
    """

    def __init__(
        self,
        settings: EnsembleSettings,
        texts: Iterator[str],
        *,
        count: int,
        rate: float | None,
        run: str,
        shown: int,
        on_result: Callable[[str, Mapping[str, Sequence[Label | float]]], None],
        on_dead_letter: Callable[[str, str, str], None],
    ) -> None:
        self.ledger = Ledger()
        batches = _BATCHES_IN_FLIGHT * settings.engine.batches_at_once
        self.max_in_flight = min(max(_MIN_IN_FLIGHT, batches * settings.batching.max_batch_size), _MAX_IN_FLIGHT)
        self.late_s = 0.0
        """The most by which an open loop was behind its rate, for want of room."""
        self._settings = settings
        self._texts = texts
        self._count = count
        self._rate = rate
        self._prefix = f"demo-{run}-"
        self._show_every = -(-count // shown)
        self._on_result = on_result
        self._on_dead_letter = on_dead_letter
        self._as_json = settings.requests.format == "json"
        self._failure: KafkaError | None = None
        self._started_s = 0.0
        self._next_text: str | None = None
        name = f"penstock-demo-{run}"
        self._producer = clients.producer(settings.kafka.producer_settings(), client_id=name)
        self._reader = clients.reader(settings.kafka.consumer_settings(), client_id=name)

    def open(self) -> None:
        """Begin at the end of what there is. Raises WorkerFailure."""
        names = self._settings.topic_names
        try:
            for_all = [
                TopicPartition(topic, partition)
                for topic in (names.results, names.dead_letters)
                for partition in self._reader.list_topics(topic, timeout=_METADATA_TIMEOUT_S).topics[topic].partitions
            ]
            # As a number: an end that is looked up later may lie behind the first results.
            for each in for_all:
                _, each.offset = clients.bounds(self._reader, each, _METADATA_TIMEOUT_S)
            self._reader.assign(for_all)
        except KafkaException as err:
            raise WorkerFailure(f"{names.results}: {err.args[0].str()}") from err
        self._started_s = time.monotonic()

    @property
    def done(self) -> bool:
        """Whether all is sent and nothing awaited any more."""
        return self.ledger.sent == self._count and not self.ledger.in_flight

    def turn(self) -> None:
        """Send what may be sent, take what has come. Waits 50 ms at most. Raises WorkerFailure."""
        self._send(time.monotonic())
        self._take(self._wait_s(time.monotonic()))

    def settle(self, budget_s: float) -> None:
        """Look for results that should not come any more."""
        until_s = time.monotonic() + budget_s
        while (remaining_s := until_s - time.monotonic()) > 0:
            self._take(min(_WAIT_S, remaining_s))

    def close(self) -> None:
        """Let go of the connections; what is not delivered yet is given up."""
        self._producer.purge()
        self._producer.flush(_FLUSH_S)
        self._reader.close()

    def _send(self, now_s: float) -> None:
        due = self._due(now_s)
        while self.ledger.sent < due and self._failure is None and self._produce():
            pass
        self._producer.poll(0)
        if self._failure is not None:
            raise WorkerFailure(f"{self._settings.topic_names.requests}: not delivered: {self._failure.str()}")

    def _due(self, now_s: float) -> int:
        """How many should have been sent by now."""
        if self._rate is None:
            return self._count
        return min(self._count, int((now_s - self._started_s) * self._rate) + 1)

    def _wait_s(self, now_s: float) -> float:
        if self._rate is None or self.ledger.sent == self._count:
            return _WAIT_S
        next_due_s = self._started_s + self.ledger.sent / self._rate
        # Below a millisecond librdkafka does not wait at all; a request that is held back waits for a result.
        return min(_WAIT_S, max(0.001, next_due_s - now_s))

    def _produce(self) -> bool:
        """Send the next text, unless there is no room for it."""
        if self._next_text is None:
            self._next_text = next(self._texts)
        text = self._next_text
        value = msgspec.json.encode({"text": text}) if self._as_json else text.encode()
        ledger = self.ledger
        full = ledger.in_flight >= self.max_in_flight or ledger.in_flight_bytes + len(value) > _MAX_IN_FLIGHT_BYTES
        if full and ledger.in_flight:
            return False
        number, now_s = ledger.sent, time.monotonic()
        try:
            self._producer.produce(
                self._settings.topic_names.requests,
                value,
                f"speaker-{number % _SPEAKERS}".encode(),
                headers=[(CLOUDEVENTS_ID, f"{self._prefix}{number}".encode())],
                on_delivery=self._delivered,
            )
        except BufferError:
            return False
        except KafkaException as err:
            self._failure = err.args[0]
            return False
        ledger.send(text, len(value), now_s)
        if self._rate is not None:
            self.late_s = max(self.late_s, now_s - self._started_s - number / self._rate)
        self._next_text = None
        return True

    def _delivered(self, err: KafkaError | None, _message: Message) -> None:
        if err is not None and err.code() != KafkaError._PURGE_QUEUE:
            self._failure = err

    def _take(self, wait_s: float) -> None:
        try:
            first = self._reader.poll(wait_s)
            messages = [] if first is None else [first, *self._reader.consume(_CONSUME_RECORDS, 0)]
        except KafkaException as err:
            raise WorkerFailure(f"{self._settings.topic_names.results}: {err.args[0].str()}") from err
        now_s = time.monotonic()
        for message in messages:
            # What passes (a broker away, say) comes as an error, too; what doesn't ends in silence, which is watched.
            if message.error() is not None:
                continue
            if message.topic() == self._settings.topic_names.results:
                self._take_result(message.value() or b"", now_s)
            else:
                self._take_dead_letter(clients.input_record(message).headers, now_s)

    def _take_result(self, value: bytes, now_s: float) -> None:
        try:
            answer = msgspec.json.decode(value, type=_Answer)
        except msgspec.DecodeError:
            return
        if not answer.id.startswith(self._prefix):
            return
        source = answer.source
        text = self.ledger.answer(
            int(answer.id.removeprefix(self._prefix)),
            partition=source.partition,
            offset=source.offset,
            tokens=answer.tokens,
            now_s=now_s,
        )
        if text is not None and self.ledger.results % self._show_every == 1 % self._show_every:
            self._on_result(text, msgspec.json.decode(value, type=_ShownResult).outputs)

    def _take_dead_letter(self, headers: Headers, now_s: float) -> None:
        id = (dict(headers).get(CLOUDEVENTS_ID) or b"").decode(errors="replace")
        if id.startswith(self._prefix):
            self.ledger.dead_letter(int(id.removeprefix(self._prefix)), now_s)
            cause = read_cause(headers) or Cause(style="kafka")
            self._on_dead_letter(id, cause.reason or "", cause.message or "")
