"""A recognizer's side of the topics: events go out when they are due, annotated transcripts come back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from confluent_kafka import OFFSET_END, Consumer, Producer, TopicPartition

from pipeline import clients
from pipeline.demo.recorded_speech import Said
from pipeline.demo.speech_ledger import SpeechLedger
from pipeline.settings import EnsembleSettings
from schemas.speech import SpeechEvent

# How long a look at what has come may take while nothing is due.
_LOOK_S = 0.005


class SpeechFeed:
    """Sends to the feed's topic, and reads from the transcripts' what comes from now on."""

    def __init__(self, settings: EnsembleSettings) -> None:
        names = settings.speech_topic_names
        kafka = settings.kafka
        self.ledger = SpeechLedger()
        # How late the last event was sent that was late.
        self.late_s = 0.0
        self._topic = names.speech
        self._producer: Producer = clients.producer(kafka.producer_settings(), client_id="penstock-speech")
        # The embedded broker does not wake a waiting fetch.
        reading = {"fetch.wait.max.ms": 1, **kafka.consumer_settings()}
        self._consumer: Consumer = clients.reader(reading, client_id="penstock-speech")
        # As many as there are: a running system's may be more than the file says by now.
        there = self._consumer.list_topics(names.transcripts, timeout=10).topics[names.transcripts].partitions
        partitions = [TopicPartition(names.transcripts, number, OFFSET_END) for number in sorted(there)]
        for each in partitions:
            # The end as it is now: OFFSET_END would be looked up when the first fetch is sent.
            _, each.offset = clients.bounds(self._consumer, each, 10)
        self._consumer.assign(partitions)

    def say(self, said: Said) -> None:
        """Send one event now."""
        self.ledger.streams.add(said.stream_id)
        if isinstance(said.event, SpeechEvent):
            self.ledger.said(said.event, time.monotonic())
        self.repeat(said)

    def repeat(self, said: Said) -> None:
        """Send an event once more: nothing comes of it but that the stream is heard of."""
        self._producer.produce(self._topic, said.value, said.stream_id.encode())
        self._producer.poll(0)

    def hear(self, wait_s: float) -> list[tuple[dict[str, Any], float | None]]:
        """What has come: records of the transcripts' topic, and of annotated utterances the latency in milliseconds."""
        found: list[tuple[dict[str, Any], float | None]] = []
        for message in self._consumer.consume(500, wait_s):
            if message.error() is None:
                record = json.loads(message.value() or b"")
                if record["stream_id"] not in self.ledger.streams:
                    continue  # somebody else's, of a system that has other speakers too
                found.append((record, self.ledger.heard(record, time.monotonic())))
        return found

    def rehearse(self, plan: Sequence[Said], *, speed: float = 1.0) -> Iterator[tuple[dict[str, Any], float | None]]:
        """Say all of it at its pace, `speed` times as fast; what comes meanwhile."""
        started_s = time.monotonic()
        for said in plan:
            while (wait_s := started_s + said.due_ms / speed / 1e3 - time.monotonic()) > 0:
                yield from self.hear(min(wait_s, _LOOK_S))
            self.late_s = -wait_s
            self.say(said)

    def close(self) -> None:
        """Let go of the connections."""
        self._producer.flush(1.0)
        self._consumer.close()
