"""The state as the changelog has it, and where a member begins, on an embedded broker; and what it tells Kafka."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from pipeline import clients
from pipeline.group_offsets import next_offsets
from pipeline.mock_cluster import EmbeddedBroker
from pipeline.speech.changelog import ChangelogReader
from pipeline.speech.serve import consumer_settings
from tests.eventually import WAIT_S, eventually

TOPIC = "talk.transcripts-streams-changelog"


@pytest.fixture
def servers() -> Iterator[dict[str, str | int | float | bool]]:
    with EmbeddedBroker() as broker:
        broker.create_topic(TOPIC, 3)
        yield {"bootstrap.servers": broker.bootstrap}


def write(servers: dict[str, str | int | float | bool], *records: tuple[int, bytes, bytes | None]) -> None:
    producer = Producer(dict(servers))
    for partition, key, value in records:
        producer.produce(TOPIC, value, key, partition)
    assert producer.flush(WAIT_S) == 0


@pytest.mark.broker
def test_the_newest_record_of_each_key_is_the_state(servers: dict[str, str | int | float | bool]) -> None:
    write(servers, (0, b"a", b"1"), (0, b"b", b"1"), (0, b"a", b"2"), (0, b"b", None), (1, b"c", b"1"), (2, b"d", b"1"))
    reader = ChangelogReader(servers, TOPIC, [0, 1], client_id="me")
    try:
        eventually(lambda: reader.read(0.05))
        assert reader.kept == {b"a": b"2", b"c": b"1"}
    finally:
        reader.close()


@pytest.mark.broker
def test_an_empty_changelog_is_read_at_once(servers: dict[str, str | int | float | bool]) -> None:
    reader = ChangelogReader(servers, TOPIC, [0, 1, 2], client_id="me")
    assert reader.read(0)
    assert reader.kept == {}
    reader.close()


@pytest.mark.broker
def test_a_member_begins_where_its_group_is_or_with_the_first_record(
    servers: dict[str, str | int | float | bool],
) -> None:
    write(servers, (0, b"a", b"1"), (1, b"b", b"1"))
    consumer = Consumer({**servers, "group.id": "g", "fetch.wait.max.ms": 10})
    try:
        consumer.commit(offsets=[TopicPartition(TOPIC, 1, 1)], asynchronous=False)
        assert next_offsets(consumer, [(TOPIC, 0), (TOPIC, 1)]) == {(TOPIC, 0): 0, (TOPIC, 1): 1}
    finally:
        consumer.close()


@pytest.mark.parametrize("embedded", [True, False])
def test_a_member_is_of_the_classic_protocol_whatever_the_stages_are(embedded: bool) -> None:
    said: clients.ClientSettings = {
        "group.protocol": "consumer",
        "group.remote.assignor": "uniform",
        "partition.assignment.strategy": "cooperative-sticky",
        "isolation.level": "read_uncommitted",
        "enable.partition.eof": False,
        "max.poll.interval.ms": 1_000,
    }
    made = consumer_settings(said, embedded=embedded)
    assert not made.keys() & {"group.protocol", "group.remote.assignor"}
    assert made["partition.assignment.strategy"] == "range"
    assert made["isolation.level"] == "read_committed"
    assert made["enable.partition.eof"] is True
    assert made["max.poll.interval.ms"] == 1_000
    assert ("session.timeout.ms" in made) is embedded
    assert consumer_settings({"session.timeout.ms": 900}, embedded=embedded)["session.timeout.ms"] == 900
