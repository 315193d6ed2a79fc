"""A member on an embedded broker: what the desk says reaches the topics, and its state outlives a process."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, Producer, TopicPartition

from pipeline.mock_cluster import EmbeddedBroker
from pipeline.settings import EnsembleSettings
from schemas.headers import read_cause
from tests.eventually import WAIT_S, eventually
from tests.speech.member import running
from tests.speech.speech_world import answer, end, event

pytestmark = pytest.mark.broker

PARTITIONS = 2


@pytest.fixture
def settings() -> Iterator[EnsembleSettings]:
    with EmbeddedBroker() as broker:
        # An embedded broker keeps a partition for who has left until its session is over.
        consumer = {"session.timeout.ms": 600, "heartbeat.interval.ms": 100}
        made = EnsembleSettings.model_validate(
            {
                "name": "talk",
                "topics": {"partitions": PARTITIONS},
                "models": [{"name": "m", "source": "unused"}],
                "commit_interval_ms": 50,
                "kafka": {"bootstrap.servers": broker.bootstrap, "consumer": consumer},
            }
        )
        names, speech = made.topic_names, made.speech_topic_names
        for name in (names.requests, names.results, names.dead_letters):
            broker.create_topic(name, PARTITIONS)
        for name in (speech.speech, speech.transcripts, speech.changelog):
            broker.create_topic(name, PARTITIONS)
        yield made


class Kafka:
    """What others write and read."""

    def __init__(self, settings: EnsembleSettings) -> None:
        self._servers = {"bootstrap.servers": settings.kafka.bootstrap_servers}
        self._producer = Producer(self._servers | {"linger.ms": 0})
        self._settings = settings
        self._found: dict[str, list[Message]] = {}
        self._consumer = Consumer(self._servers | {"group.id": "reader", "fetch.wait.max.ms": 10})
        names = settings.topic_names
        self._consumer.assign(
            [
                TopicPartition(topic, partition, OFFSET_BEGINNING)
                for topic in (names.requests, names.dead_letters, settings.speech_topic_names.transcripts)
                for partition in range(PARTITIONS)
            ]
        )

    def say(self, *values: bytes, key: str = "a") -> None:
        for value in values:
            self._producer.produce(self._settings.speech_topic_names.speech, value, key, partition=1)
        assert self._producer.flush(WAIT_S) == 0

    def answer(self, requests: list[Message]) -> None:
        """As the stages do: same partition, key and headers."""
        for request in requests:
            value = json.dumps(answer(json.loads(request.value() or b"")["text"]))
            topic, partition = self._settings.topic_names.results, request.partition() or 0
            self._producer.produce(topic, value, request.key(), partition, headers=request.headers())
        assert self._producer.flush(WAIT_S) == 0

    def read(self, topic: str, count: int) -> list[Message]:
        """The first records of a topic."""
        found = self._found.setdefault(topic, [])

        def all_there() -> bool:
            for message in self._consumer.consume(100, 0.02):
                if message.error() is None:
                    self._found.setdefault(message.topic() or "", []).append(message)
            return len(found) >= count

        eventually(all_there, say=lambda: f"{topic} has {len(found)} records")
        return found[:count]


def test_a_stream_goes_on_in_another_process(settings: EnsembleSettings) -> None:
    kafka = Kafka(settings)
    names = settings.topic_names
    with running(settings):
        kafka.say(event("a", "0", 0, "good mor"), b"rubbish")
        requests = kafka.read(names.requests, 1)
        [letter] = kafka.read(names.dead_letters, 1)
        kafka.answer(requests)
        kafka.read(settings.speech_topic_names.transcripts, 1)
        kafka.say(event("a", "0", 1, "Good morning.", final=True))
        requests = kafka.read(names.requests, 2)[1:]
    cause = read_cause(letter.headers() or [])
    assert (letter.value(), letter.partition(), cause and cause.reason) == (b"rubbish", 1, "not_json")
    # Its result comes, and the end, while nobody reads.
    kafka.answer(requests)
    kafka.say(event("a", "0", 0, "good mor"), end("a"))
    with running(settings) as worker:
        transcripts = kafka.read(settings.speech_topic_names.transcripts, 3)
        assert worker.desk.streams["a"].head.done
    assert {message.partition() for message in transcripts} == {1}
    assert {message.key() for message in transcripts} == {b"a"}
    records = [json.loads(message.value() or b"") for message in transcripts]
    assert [each["type"] for each in records] == ["utterance", "utterance", "transcript"]
    assert [each["text"] for each in records[2]["utterances"]] == ["Good morning."]
