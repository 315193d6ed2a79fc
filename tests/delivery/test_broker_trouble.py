"""A broker in trouble: a worker waits, says so and goes on, or stops with a line that says what and where.

In no case is anything committed that was not delivered.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from pipeline.apache_kafka.broker import ApacheBroker
from pipeline.apache_kafka.runtime import Runtime
from pipeline.settings import EnsembleSettings
from pipeline.topics import compare_topics, wanted_topics
from tests.delivery.conftest import Echo, settings_on
from tests.delivery.topics import Reader, committed, in_order, results, send
from tests.delivery.troubled import PASSWORD, TroubledKafka, through, troubled_kafka
from tests.eventually import WAIT_S, eventually

pytestmark = [pytest.mark.apache, pytest.mark.slow]

Start = Callable[..., Echo]

# A group notices in a second who is gone; a missing topic is believed after one, in place of thirty.
QUICK: dict[str, Any] = {
    "topic.metadata.propagation.max.ms": 1_000,
    # Producers keep the default of 5 minutes: they ask when they need to.
    "consumer": {
        "session.timeout.ms": 1_500,
        "heartbeat.interval.ms": 200,
        "topic.metadata.refresh.interval.ms": 300,
    },
}


@pytest.fixture(scope="module")
def kafka(apache_runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TroubledKafka]:
    with troubled_kafka(tmp_path_factory.mktemp("troubled-kafka"), apache_runtime) as kafka:
        yield kafka


@pytest.fixture(params=["at_least_once", "exactly_once"])
def made(request: pytest.FixtureRequest, kafka: TroubledKafka) -> EnsembleSettings:
    """An ensemble of its own, its topics made, reached directly."""
    return settings_on(
        kafka.broker, delivery=request.param, kafka={"bootstrap.servers": kafka.broker.bootstrap, **QUICK}
    )


def require_results(made: EnsembleSettings, count: int) -> None:
    """Each request is answered, in order; at least once, or exactly."""
    if made.delivery == "exactly_once":
        assert results(made, count) == in_order(made, count)
        return
    reader = Reader(made, made.topic_names.results)
    reader.read(lambda: len(numbers(reader)) == count)
    reader.close()
    firsts = {partition: list(dict.fromkeys(values)) for partition, values in reader.values.items()}
    assert firsts == in_order(made, count)


def numbers(reader: Reader) -> set[int]:
    return {number for values in reader.values.values() for number in values}


def require_nothing_undelivered_committed(made: EnsembleSettings) -> None:
    reader = Reader(made, made.topic_names.results)
    reader.read_to_the_end()
    reader.close()
    for partition, offset in committed(made).items():
        assert offset <= len(set(reader.values[partition]))


def stopped_with(echo: Echo) -> str:
    """The line that a worker ended with."""
    echo.thread.join(WAIT_S)
    assert not echo.thread.is_alive(), "the worker stopped"
    assert echo.error is not None
    line = str(echo.error)
    assert "\n" not in line
    return line


def working(echo: Echo, made: EnsembleSettings) -> None:
    """It has answered 40 requests."""
    send(made, range(40))
    eventually(lambda: echo.records_seen == 40)
    require_results(made, 40)


def ended_well(*echoes: Echo) -> None:
    """They were told to stop, and nothing was wrong."""
    for echo in echoes:
        echo.end()
        assert echo.error is None


def refused(echo: Echo) -> str:
    """What it stopped with, for want of a right."""
    line = stopped_with(echo)
    assert "authorization failed" in line.lower()
    return line


# The way to the broker.


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_a_broker_that_is_killed_is_waited_for(
    apache_runtime: Runtime, tmp_path: Path, start: Start, delivery: str
) -> None:
    with ApacheBroker(tmp_path, runtime=apache_runtime) as broker:
        made = settings_on(broker, delivery=delivery)
        echo = start(made, name="a")
        working(echo, made)
        broker.kill()
        eventually(lambda: "the broker is away" in (echo.worker.not_ready() or ""))
        assert echo.worker.live()
        broker.start()
        send(made, range(40, 80))
        require_results(made, 80)
        eventually(lambda: echo.worker.not_ready() is None)
        ended_well(echo)


@pytest.mark.parametrize("how", ["hang", "cut"])
def test_a_network_that_is_cut_for_longer_than_the_session_is_waited_for(
    made: EnsembleSettings, kafka: TroubledKafka, start: Start, how: str
) -> None:
    echo = start(through(made, kafka.by_cable))
    working(echo, made)
    try:
        getattr(kafka.cable, how)()
        send(made, range(40, 80))
        eventually(lambda: kafka.members(echo.group) == 0)
        eventually(lambda: echo.worker.not_ready() is not None)
        assert echo.worker.live()
    finally:
        kafka.cable.mend()
    require_results(made, 80)
    eventually(lambda: echo.worker.not_ready() is None)
    ended_well(echo)


@pytest.mark.parametrize("how", ["hang", "cut"])
def test_what_another_worker_answered_meanwhile_is_not_answered_by_the_one_that_was_cut_off(
    made: EnsembleSettings, kafka: TroubledKafka, start: Start, how: str
) -> None:
    first = start(through(made, kafka.by_cable), holding=True)
    send(made, range(40))
    eventually(lambda: first.records_seen == 40)
    try:
        getattr(kafka.cable, how)()
        first.holding = False
        first.let_go()
        second = start(made)
        require_results(made, 40)
        eventually(lambda: first.worker.not_ready() is not None)
    finally:
        kafka.cable.mend()
    eventually(lambda: first.worker.not_ready() is None)
    send(made, range(40, 80))
    require_results(made, 80)
    ended_well(first, second)


# Topics.


def test_a_results_topic_that_is_deleted_stops_the_worker(
    made: EnsembleSettings, kafka: TroubledKafka, start: Start
) -> None:
    echo = start(made)
    working(echo, made)
    before = committed(made)
    kafka.delete_topic(made.topic_names.results)
    send(made, range(40, 80))
    line = stopped_with(echo)
    assert made.topic_names.results in line
    assert committed(made) == before
    kafka.make_topic(made.topic_names.results, made.topics.partitions)
    again = start(made)
    reader = Reader(made, made.topic_names.results)
    reader.read(lambda: len(numbers(reader)) == 40)
    reader.close()
    assert numbers(reader) == set(range(40, 80))
    ended_well(again)


def test_a_requests_topic_that_is_deleted_stops_the_worker(
    made: EnsembleSettings, kafka: TroubledKafka, start: Start
) -> None:
    echo = start(made)
    working(echo, made)
    kafka.delete_topic(made.topic_names.requests)
    assert stopped_with(echo) == f"{made.topic_names.requests}: is not there any more"


def test_a_results_topic_with_too_few_partitions_stops_the_worker(
    made: EnsembleSettings, kafka: TroubledKafka, start: Start
) -> None:
    echo = start(made)
    working(echo, made)
    before = committed(made)
    kafka.delete_topic(made.topic_names.results)
    kafka.make_topic(made.topic_names.results, 1)
    send(made, range(41, 80, 4))  # partition 1
    line = stopped_with(echo)
    assert made.topic_names.results in line
    assert committed(made) == before
    [difference] = compare_topics(kafka.admin, wanted_topics(made))
    assert str(difference).startswith(f"{made.topic_names.results}: has 1 partitions, wanted are 4")


def test_partitions_that_are_added_are_worked_on(made: EnsembleSettings, kafka: TroubledKafka, start: Start) -> None:
    echoes = [start(made), start(made)]
    send(made, range(40))
    require_results(made, 40)
    for topic in [topic.name for topic in wanted_topics(made)]:
        kafka.add_partitions(topic, 6)
    more = made.model_copy(update={"topics": made.topics.model_copy(update={"partitions": 6})})
    producer = Producer({"bootstrap.servers": kafka.broker.bootstrap})
    for number in range(40, 80):
        producer.produce(made.topic_names.requests, b'{"number": %d}' % number, None, 4 + number % 2)
    assert producer.flush(WAIT_S) == 0
    reader = Reader(more, more.topic_names.results)
    reader.read(lambda: len(numbers(reader)) == 80)
    reader.close()
    assert reader.values[4] == list(range(40, 80, 2))
    assert reader.values[5] == list(range(41, 80, 2))
    ended_well(*echoes)
    assert committed(more)[4] == committed(more)[5] == 20
    # The file is behind then, which the next start says.
    differences = {str(each) for each in compare_topics(kafka.admin, wanted_topics(made))}
    assert f"{made.topic_names.results}: has 6 partitions, wanted are 4 (topics.partitions)" in {
        difference.partition(": all topics")[0] for difference in differences
    }


def test_a_result_too_large_for_its_topic_costs_its_neighbours_nothing(
    made: EnsembleSettings, kafka: TroubledKafka, start: Start
) -> None:
    smaller = ConfigEntry("max.message.bytes", "2000", incremental_operation=AlterConfigOpType.SET)
    topic = ConfigResource(ConfigResource.Type.TOPIC, made.topic_names.results, incremental_configs=[smaller])
    [changed] = kafka.admin.incremental_alter_configs([topic]).values()
    changed.result()
    echo = start(made, unit_size=2)
    send(made, [0, 4])
    send(made, [8], text=random.Random(1).randbytes(10_000).hex())
    send(made, [12, 16])
    reader = Reader(made, made.topic_names.results)
    reader.read(lambda: reader.count == 4)
    reader.close()
    assert reader.values[0] == [0, 4, 12, 16]
    letters = Reader(made, made.topic_names.dead_letters)
    letters.read(lambda: letters.count == 1)
    letters.close()
    assert letters.values[0] == [8]
    ended_well(echo)


# Rights.


@pytest.fixture
def guarded(made: EnsembleSettings, kafka: TroubledKafka) -> EnsembleSettings:
    """As a worker sees it that may do what it needs, and no more."""
    names = made.topic_names
    for topic in (names.requests, names.results, names.dead_letters):
        kafka.allow(ResourceType.TOPIC, topic)
    kafka.allow(ResourceType.GROUP, made.name)
    kafka.allow(ResourceType.TRANSACTIONAL_ID, made.name)
    return through(made, kafka.with_password, **PASSWORD)


def test_a_worker_that_may_write_no_results_any_more_stops(
    made: EnsembleSettings, guarded: EnsembleSettings, kafka: TroubledKafka, start: Start
) -> None:
    echo = start(guarded)
    working(echo, made)
    before = committed(made)
    kafka.forbid(ResourceType.TOPIC, made.topic_names.results)
    send(made, range(40, 80))
    line = refused(echo)
    assert made.topic_names.results in line
    assert committed(made) == before
    require_nothing_undelivered_committed(made)


def test_a_worker_that_may_read_no_requests_any_more_stops(
    made: EnsembleSettings, guarded: EnsembleSettings, kafka: TroubledKafka, start: Start
) -> None:
    echo = start(guarded)
    working(echo, made)
    kafka.forbid(ResourceType.TOPIC, made.topic_names.requests)
    line = refused(echo)
    assert made.topic_names.requests in line


def test_a_worker_that_may_not_use_its_group_any_more_stops(
    made: EnsembleSettings, guarded: EnsembleSettings, kafka: TroubledKafka, start: Start
) -> None:
    echo = start(guarded)
    working(echo, made)
    kafka.forbid(ResourceType.GROUP, made.name)
    send(made, range(40, 80))
    refused(echo)
    require_nothing_undelivered_committed(made)


def test_a_worker_that_may_not_use_transactions_any_more_stops(kafka: TroubledKafka, start: Start) -> None:
    made = settings_on(kafka.broker, kafka={"bootstrap.servers": kafka.broker.bootstrap, **QUICK})
    for kind in (ResourceType.TOPIC, ResourceType.GROUP, ResourceType.TRANSACTIONAL_ID):
        kafka.allow(kind, made.name)
    echo = start(through(made, kafka.with_password, **PASSWORD))
    working(echo, made)
    kafka.forbid(ResourceType.TRANSACTIONAL_ID, made.name)
    send(made, range(40, 80))
    refused(echo)
    require_nothing_undelivered_committed(made)


# Slowness, and clocks.


def test_a_broker_that_throttles_is_waited_for(made: EnsembleSettings, kafka: TroubledKafka, start: Start) -> None:
    kafka.set_producer_quota(20_000)  # 80 KB are sent, and answered
    try:
        echo = start(made)
        send(made, range(40), text=random.Random(1).randbytes(1_000).hex())
        require_results(made, 40)
        ended_well(echo)
    finally:
        kafka.set_producer_quota(None)


def test_the_time_of_a_request_means_nothing(made: EnsembleSettings, kafka: TroubledKafka, start: Start) -> None:
    echo = start(made)
    producer = Producer({"bootstrap.servers": kafka.broker.bootstrap})
    # Kafka itself refuses what is more than an hour in the future.
    soon_ms = int(time.time() * 1e3) + 59 * 60 * 1000
    for number, timestamp_ms in enumerate([1, soon_ms, 1_000_000_000_000, soon_ms, 1]):
        producer.produce(made.topic_names.requests, b'{"number": %d}' % (4 * number), None, 0, timestamp=timestamp_ms)
    assert producer.flush(WAIT_S) == 0
    reader = Reader(made, made.topic_names.results)
    reader.read(lambda: reader.count == 5)
    reader.close()
    assert reader.values[0] == [0, 4, 8, 12, 16]
    ended_well(echo)
