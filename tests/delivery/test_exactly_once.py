"""Exactly once, on Apache Kafka: whoever reads committed records sees each request's result once, in order."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

from pipeline.apache_kafka.broker import ApacheBroker
from tests.delivery.conftest import Echo, MakeSettings, settings_on
from tests.delivery.topics import Reader, committed, in_order, results, send
from tests.eventually import eventually

pytestmark = pytest.mark.apache

Start = Callable[..., Echo]


def test_results_and_offsets_are_committed_together(settings: MakeSettings, start: Start) -> None:
    made = settings()
    echo = start(made)
    send(made, range(400))
    assert results(made, 400) == in_order(made, 400)
    assert committed(made) == dict.fromkeys(range(4), 100)
    echo.end()
    assert echo.error is None
    assert echo.counted("transactions_total", outcome="committed") > 0
    assert echo.counted("transactions_total", outcome="aborted") == 0


@pytest.mark.slow
def test_a_killed_worker_s_open_transaction_is_never_seen_and_its_requests_are_answered_once(
    settings: MakeSettings, start: Start
) -> None:
    made = settings(partitions=1, commit_interval_ms=60_000)
    send(made, [0])
    first = start(made, name="a")
    results(made, 1)
    send(made, range(1, 100))  # a minute until the second commit
    eventually(lambda: first.records_seen == 100)
    reader = Reader(made, made.topic_names.results, isolation="read_uncommitted")
    reader.read(lambda: reader.count == 100)
    first.kill()
    second = start(made.model_copy(update={"commit_interval_ms": 20}), name="a")
    assert results(made, 100) == in_order(made, 100)
    reader.read(lambda: reader.count == 199)
    reader.close()
    second.end()


@pytest.mark.slow
def test_of_two_workers_of_one_name_the_elder_stops(settings: MakeSettings, start: Start) -> None:
    made = settings()
    first = start(made, name="a")
    send(made, range(40))
    eventually(lambda: first.records_seen == 40)
    second = start(made, name="a")
    eventually(lambda: second.worker.not_ready() is None)
    for base in range(40, 400, 40):
        send(made, range(base, base + 40))
    eventually(lambda: not first.thread.is_alive())
    assert "fenced" in str(first.error).lower()
    assert results(made, 400) == in_order(made, 400)
    second.end()
    assert second.error is None


@pytest.mark.slow
def test_a_partition_that_moves_takes_nothing_twice_along(
    settings: MakeSettings, start: Start, apache_broker: ApacheBroker
) -> None:
    # A named member that leaves is waited for until its session ends.
    consumer = {"session.timeout.ms": 2_000, "heartbeat.interval.ms": 100}
    made = settings(kafka={"bootstrap.servers": apache_broker.bootstrap, "consumer": consumer})
    first = start(made, name="a")
    sent = 400
    send(made, range(sent))
    second = start(made, name="b")
    while not second.records_seen:  # which may be long after it has started
        assert sent < 100_000
        send(made, range(sent, sent + 100))
        sent += 100
    first.end()
    send(made, range(sent, sent + 400))
    sent += 400
    assert results(made, sent) == in_order(made, sent)
    second.end()
    assert (first.error, second.error) == (None, None)


@pytest.mark.slow
def test_a_transaction_that_timed_out_is_done_again_by_a_new_producer(
    settings: MakeSettings, start: Start, apache_broker: ApacheBroker
) -> None:
    """As when the broker was away for longer than the transaction may last."""
    made = settings(
        partitions=1,
        commit_interval_ms=4_000,
        kafka={
            "bootstrap.servers": apache_broker.bootstrap,
            "producer": {"transaction.timeout.ms": 1_000},
        },
    )
    echo = start(made)
    send(made, [0])
    results(made, 1)
    sent = 1

    def aborted() -> bool:
        # Again and again: what is sent late in a lane's interval is committed before its time is out.
        nonlocal sent
        send(made, [sent])
        sent += 1
        return echo.counted("transactions_total", outcome="aborted") > 0

    eventually(aborted)
    # From now on faster than the time-out.
    for lane in echo.worker._delivery._lanes:  # type: ignore[attr-defined]
        lane._commit_interval_ms = 20
    assert results(made, sent) == in_order(made, sent)
    echo.end()
    assert echo.error is None


def test_a_result_too_large_is_a_dead_letter_and_its_neighbours_are_answered(
    settings: MakeSettings, start: Start
) -> None:
    made = settings(partitions=1)
    admin = AdminClient({"bootstrap.servers": made.kafka.bootstrap_servers})
    smaller = ConfigEntry("max.message.bytes", "2000", incremental_operation=AlterConfigOpType.SET)
    topic = ConfigResource(ConfigResource.Type.TOPIC, made.topic_names.results, incremental_configs=[smaller])
    [changed] = admin.incremental_alter_configs([topic]).values()
    changed.result()
    echo = start(made, unit_size=2)
    send(made, [0, 1])
    send(made, [2], text=random.Random(1).randbytes(10_000).hex())  # zstd makes half of it
    send(made, [3, 4])
    assert results(made, 4) == {0: [0, 1, 3, 4]}
    reader = Reader(made, made.topic_names.dead_letters)
    reader.read(lambda: reader.count == 1)
    reader.close()
    assert reader.values == {0: [2]}
    assert committed(made) == {0: 5}
    echo.end()
    assert echo.counted("dead_letters_total", reason="result_too_large") == 1
    answered = {"model": "tokenize", "version": "1"}
    assert echo.metrics.registry.get_sample_value("nv_inference_request_success", answered) == 4


@pytest.mark.slow
def test_a_stop_commits_what_was_read_and_leaves_nothing_open(settings: MakeSettings, start: Start) -> None:
    made = settings(partitions=1, commit_interval_ms=60_000)
    echo = start(made)
    send(made, [0])
    results(made, 1)
    echo.holding = True
    send(made, range(1, 80))
    eventually(lambda: echo.records_seen == 80)
    echo.stopped = True
    echo.holding = False
    echo.let_go()
    echo.end()
    assert results(made, 80) == in_order(made, 80)
    assert committed(made) == {0: 80}


@pytest.mark.slow
def test_a_broker_that_dies_and_comes_back_makes_nothing_lost_or_twice(
    apache_runtime: Any, tmp_path: Any, start: Start
) -> None:
    with ApacheBroker(tmp_path, runtime=apache_runtime) as broker:
        made = settings_on(broker)
        echo = start(made, name="a")
        send(made, range(200))
        eventually(lambda: echo.records_seen == 200)
        for base in range(200, 800, 200):
            broker.kill()
            eventually(lambda: "the broker is away" in (echo.worker.not_ready() or ""))
            assert echo.worker.live()
            broker.start()
            send(made, range(base, base + 200))
            eventually(lambda: echo.records_seen >= base + 200)  # noqa: B023
        assert results(made, 800) == in_order(made, 800)
        eventually(lambda: echo.worker.not_ready() is None)
        echo.end()
        assert echo.error is None
