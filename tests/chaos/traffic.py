"""Requests with numbers for ids, at a steady rate, and the verdict over what became of them.

What request a number is, its key, its partition and its text, follows from the number, so that nothing is kept of it
but one byte.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import msgspec
import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from pipeline.settings import EnsembleSettings
from tests.chaos.tiny_ensemble import PARTITIONS, Answer, Answers, decode_answer

KEYS = 1_000
# Numbers of a text that was computed beside other texts differ by up to 1e-7.
NOISE = 1e-6
# Examples kept of what is wrong.
_EXAMPLES = 10
_WAIT_S = 0.2

assert KEYS % PARTITIONS == 0, "a key has one partition"


def key_of(number: int) -> bytes:
    return b"key-%d" % (number % KEYS)


def partition_of(number: int) -> int:
    return number % PARTITIONS


class Traffic:
    """Sends `count` requests over `seconds`, on a thread of its own, whether the broker is there or not."""

    def __init__(self, settings: EnsembleSettings, texts: list[str], *, count: int, seconds: float) -> None:
        self.sent = 0
        self.refused: list[str] = []
        self._topic = settings.topic_names.requests
        self._texts = texts
        self._count = count
        self._interval_s = seconds / count
        self._stopped = threading.Event()
        # Idempotent, without which the broker's deaths would double requests; as patient as it takes.
        self._producer = Producer(
            {
                "bootstrap.servers": settings.kafka.bootstrap_servers,
                "enable.idempotence": True,
                "message.timeout.ms": 0,
                "linger.ms": 5,
                "log_level": 2,
            }
        )
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def done(self) -> bool:
        """Whether all are with the broker."""
        return not self._thread.is_alive()

    def _run(self) -> None:
        started_s = time.monotonic()
        for number in range(self._count):
            wait_s = started_s + number * self._interval_s - time.monotonic()
            if wait_s > 0:
                self._producer.poll(0)
                self._stopped.wait(wait_s)
            if self._stopped.is_set():
                return
            self._send(number)
        while self._producer.flush(_WAIT_S) and not self._stopped.is_set():
            pass

    def _send(self, number: int) -> None:
        value = msgspec.json.encode({"text": self._texts[number % len(self._texts)], "id": str(number)})
        while not self._stopped.is_set():
            try:
                self._producer.produce(
                    self._topic, value, key_of(number), partition_of(number), on_delivery=self._delivered
                )
            except BufferError:
                self._producer.poll(_WAIT_S)
            else:
                self.sent += 1
                return

    def _delivered(self, err: KafkaError | None, _message: Message) -> None:
        if err is not None:
            self.refused.append(err.str())


class Verdict:
    """Counts answers as they are read. Nothing grows with their number but a byte a request."""

    def __init__(self, count: int, expected: Answers) -> None:
        self.answered = self.repeated = self.out_of_order = self.misplaced = self.wrong = 0
        self.largest_difference = 0.0
        self.examples: list[str] = []
        self._expected = expected
        self._times = bytearray(count)
        self._newest = dict.fromkeys(range(PARTITIONS), -1)

    def see(self, message: Message) -> None:
        """A record of the results topic."""
        answer = decode_answer(message.value() or b"")
        number, partition = int(answer.id), message.partition() or 0
        place = f"{number} at {partition}/{message.offset()}"
        if self._times[number]:
            self.repeated += 1
            self._example(f"repeated: {place}")
        else:
            self.answered += 1
            if number < self._newest[partition]:
                self.out_of_order += 1
                self._example(f"out of order: {place}, after {self._newest[partition]}")
            self._newest[partition] = max(number, self._newest[partition])
        self._times[number] = min(255, self._times[number] + 1)
        if partition != partition_of(number) or message.key() != key_of(number):
            self.misplaced += 1
            self._example(f"another's key or partition: {place}, {message.key()!r}")
        self._compare(number, answer, place)

    @property
    def lost(self) -> int:
        """Requests without an answer."""
        return self._times.count(0)

    def first_lost(self) -> list[int]:
        """Some of them."""
        return [int(each) for each in np.flatnonzero(np.frombuffer(self._times, np.uint8) == 0)[:_EXAMPLES]]

    def _compare(self, number: int, answer: Answer, place: str) -> None:
        expected, found = self._expected[number % len(self._expected)], answer.numbers()
        differences = [
            float(np.abs(expected[name] - found[name]).max())
            if name in found and found[name].shape == expected[name].shape
            else float("inf")
            for name in expected
        ]
        self.largest_difference = max(self.largest_difference, *differences)
        if max(differences) > NOISE:
            self.wrong += 1
            self._example(f"another answer: {place}, by {max(differences):g}")

    def _example(self, text: str) -> None:
        if len(self.examples) < _EXAMPLES:
            self.examples.append(text)


def committed_reader(settings: EnsembleSettings, topic: str) -> Consumer:
    """Of all committed records of a topic, from the first on. A record that is gone is an error, not passed over."""
    consumer = Consumer(
        {
            "bootstrap.servers": settings.kafka.bootstrap_servers,
            "group.id": "verdict",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "log_level": 2,
        }
    )
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in range(PARTITIONS)])
    return consumer


def read_to_the_end(
    settings: EnsembleSettings, topic: str, see: Callable[[Message], None] = lambda _: None, *, budget_s: float = 120.0
) -> Mapping[int, int]:
    """Each committed record of a topic that nobody writes to any more. What follows the last one, by partition: 0 where
    there is none."""
    consumer = committed_reader(settings, topic)
    ends = dict.fromkeys(range(PARTITIONS), 0)
    ended: set[int | None] = set()
    deadline_s = time.monotonic() + budget_s
    try:
        while len(ended) < PARTITIONS:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{topic}: only {sorted(map(str, ended))} could be read to the end")
            for message in consumer.consume(500, _WAIT_S):
                error = message.error()
                if error is None:
                    see(message)
                    ends[message.partition() or 0] = (message.offset() or 0) + 1
                elif error.code() == KafkaError._PARTITION_EOF:
                    ended.add(message.partition())
                elif not error.retriable():
                    raise KafkaException(error)
    finally:
        consumer.close()
    return ends


class Onlooker:
    """Reads results as they come, on a thread of its own: what has been answered so far, and how long nothing was."""

    def __init__(self, settings: EnsembleSettings, verdict: Verdict) -> None:
        self.verdict = verdict
        self.longest_pause_s = 0.0
        self.newest_s = time.monotonic()
        self.error: BaseException | None = None
        self._settings = settings
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="onlooker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        consumer = committed_reader(self._settings, self._settings.topic_names.results)
        try:
            while not self._stopped.is_set():
                for message in consumer.consume(500, 0.02):
                    self._take(message)
        except BaseException as err:  # noqa: BLE001 - told by who waits for answers
            self.error = err
        finally:
            consumer.close()

    def _take(self, message: Message) -> None:
        error = message.error()
        if error is None:
            now_s = time.monotonic()
            if self.verdict.answered:
                self.longest_pause_s = max(self.longest_pause_s, now_s - self.newest_s)
            self.newest_s = now_s
            self.verdict.see(message)
        elif error.code() == KafkaError._AUTO_OFFSET_RESET:
            raise KafkaException(error)
