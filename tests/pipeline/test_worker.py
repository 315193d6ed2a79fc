"""A worker in trouble, told as stories: what it must not lose, what it must not commit, when it must stop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException

from pipeline import clients
from pipeline.dead_letters import DeadLetters
from pipeline.errors import WorkerFailure
from pipeline.group_offsets import committed_offsets
from pipeline.intake import Intake, RequestIntake
from pipeline.lines import Unit
from pipeline.metrics import WorkerMetrics
from pipeline.mock_cluster import ApiKey, EmbeddedBroker
from pipeline.settings import EnsembleSettings
from pipeline.work import deliver
from pipeline.worker import Worker
from schemas.records import OutputRecord
from tests.eventually import eventually
from tests.pipeline.conftest import WAIT_S, Topics

pytestmark = pytest.mark.broker

MakeSettings = Callable[..., EnsembleSettings]


class HeldStep:
    """A step that answers each record with its own value, but only when the test lets it."""

    def __init__(self, worker: Worker, topic: str) -> None:
        self._worker = worker
        self._topic = topic
        self.held: list[Unit] = []
        self.records_seen = 0
        self.holding = True

    def submit(self, unit: Unit) -> None:
        self.records_seen += len(unit.records)
        self.held.append(unit)
        if not self.holding:
            self.release()

    def release(self, unit: Unit | None = None) -> None:
        released = [unit] if unit is not None else self.held[:]
        for each in released:
            self.held.remove(each)
            each.outputs = [
                OutputRecord(self._topic, record.key, record.value, record.headers, [record.source])
                for record in each.records
            ]
            self._worker.finish(each)


class Bench:
    """A worker over the requests topic, on a thread, with a held step."""

    def __init__(
        self, settings: EnsembleSettings, *, max_in_flight_tokens: int = 10_000, intake: Intake | None = None
    ) -> None:
        names = settings.topic_names
        self.metrics = WorkerMetrics(settings.name)
        self.worker = Worker(
            topic=names.requests,
            connect=lambda on_error, on_commit: clients.consumer(
                settings.kafka.consumer_settings(),
                group="bench",
                client_id="bench",
                instance=None,
                on_error=on_error,
                on_commit=on_commit,
            ),
            deliver=lambda worker: deliver(
                settings,
                worker,
                topic=names.requests,
                group="bench",
                client_id="bench",
                metrics=self.metrics.stage("tokenize"),
            ),
            intake=intake or RequestIntake(max_pack_size=4),
            dead_letters=DeadLetters(
                settings.kafka.consumer_settings(),
                topic=names.dead_letters,
                stage="bench",
                group="bench",
                metrics=self.metrics.stage("tokenize"),
            ),
            metrics=self.metrics.stage("tokenize"),
            max_in_flight_tokens=max_in_flight_tokens,
            commit_interval_ms=20,
            drain_timeout_ms=settings.drain_timeout_ms,
        )
        self.step = HeldStep(self.worker, names.results)
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.worker.run(self.step.submit, self.stop.is_set)
        except WorkerFailure as err:
            self.error = err

    def gauge(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, {"ensemble": "reviews", "stage": "tokenize"})

    def end(self) -> None:
        self.stop.set()
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()


@contextmanager
def bench(settings: EnsembleSettings, **options: Any) -> Iterator[Bench]:
    made = Bench(settings, **options)
    try:
        yield made
    finally:
        made.step.holding = False
        made.step.release()
        made.end()


def test_what_has_not_arrived_is_never_committed(settings: MakeSettings) -> None:
    made = settings(partitions=1)
    topics = Topics(made)
    topics.send(*(b"%d" % number for number in range(12)))
    with bench(made) as running:
        eventually(lambda: running.step.records_seen == 12)
        first, *others = list(running.step.held)
        for unit in reversed(others):
            running.step.release(unit)
        # All but the first unit are finished: nothing may leave, nothing may be committed.
        threading.Event().wait(0.2)
        assert topics.committed("bench", made.topic_names.requests)[0] < 0
        topics.read(made.topic_names.results, 0)
        running.step.release(first)
        eventually(lambda: topics.committed("bench", made.topic_names.requests)[0] == 12)
    results = topics.read(made.topic_names.results, 12)
    assert [int(message.value() or b"") for message in results] == list(range(12))


def test_a_slow_step_pauses_reading_and_is_never_waited_for(settings: MakeSettings) -> None:
    made = settings(partitions=2)
    topics = Topics(made)
    with bench(made, max_in_flight_tokens=100) as running:
        topics.send(*(b"x" * 400 for _ in range(100)), partition=0)
        topics.send(*(b"x" * 400 for _ in range(100)), partition=1)
        eventually(lambda: running.gauge("penstock_paused") == 1)
        seen = running.step.records_seen
        assert running.worker.live()
        threading.Event().wait(0.3)
        assert running.step.records_seen - seen <= 512, "nothing is read while the partitions are paused"
        running.step.holding = False
        running.step.release()
        eventually(lambda: running.step.records_seen == 200)
        eventually(lambda: running.gauge("penstock_paused") == 0)
    topics.read(made.topic_names.results, 200)


def test_a_stop_answers_what_was_read_and_commits_it(settings: MakeSettings) -> None:
    made = settings(partitions=1)
    topics = Topics(made)
    topics.send(*(b"%d" % number for number in range(8)))
    with bench(made) as running:
        eventually(lambda: running.step.records_seen == 8)
        running.stop.set()
        threading.Event().wait(0.1)
        assert running.thread.is_alive(), "it waits for what is in flight"
        running.step.release()
        running.end()
        assert running.error is None
    topics.read(made.topic_names.results, 8)
    assert topics.committed("bench", made.topic_names.requests) == {0: 8}


def test_a_drain_that_takes_too_long_ends_without_committing_it(settings: MakeSettings) -> None:
    made = settings(partitions=1, drain_timeout_ms=100)
    topics = Topics(made)
    topics.send(b"1", b"2")
    running = Bench(made)
    eventually(lambda: running.step.records_seen == 2)
    running.end()
    assert topics.committed("bench", made.topic_names.requests)[0] < 0
    with bench(made) as again:
        again.step.holding = False
        topics.read(made.topic_names.results, 2)


def test_a_failed_thread_stops_the_worker_without_a_commit(settings: MakeSettings) -> None:
    made = settings(partitions=1)
    topics = Topics(made)
    topics.send(b"1")
    running = Bench(made)
    eventually(lambda: running.step.records_seen == 1)
    running.worker.fail(RuntimeError("the engine is gone"))
    running.thread.join(WAIT_S)
    assert str(running.error) == "RuntimeError: the engine is gone"
    assert not running.worker.live()
    assert topics.committed("bench", made.topic_names.requests)[0] < 0


def test_two_workers_share_the_partitions_and_answer_each_request_once(settings: MakeSettings) -> None:
    made = settings(partitions=4)
    topics = Topics(made)
    with bench(made) as first:
        first.step.holding = False
        for partition in range(4):
            topics.send(*(b"%d" % number for number in range(10)), partition=partition)
        eventually(lambda: first.step.records_seen == 40)
        with bench(made) as second:
            second.step.holding = False
            eventually(lambda: bool(second.worker._assignment.partitions))
            for partition in range(4):
                topics.send(*(b"%d" % number for number in range(10, 20)), partition=partition)
            eventually(lambda: first.step.records_seen + second.step.records_seen == 80)
            assert second.step.records_seen > 0
    results = topics.read(made.topic_names.results, 80)
    for partition in range(4):
        values = [int(each.value() or b"") for each in results if each.partition() == partition]
        assert values == list(range(20))


def test_a_result_too_large_for_its_topic_is_a_dead_letter(settings: MakeSettings, broker: EmbeddedBroker) -> None:
    made = settings(partitions=1)
    topics = Topics(made)
    with bench(made) as running:
        topics.send(b"large", key=b"k", headers=[("h", b"v")])
        eventually(lambda: running.step.records_seen == 1)
        # In company, and alone: a broker refuses a batch as a whole.
        broker.push_request_errors(ApiKey.PRODUCE, [KafkaError.MSG_SIZE_TOO_LARGE] * 2)
        running.step.holding = False
        running.step.release()
        [dead] = topics.read(made.topic_names.dead_letters, 1)
        topics.send(b"neighbour")
        topics.read(made.topic_names.results, 1)
        eventually(lambda: topics.committed("bench", made.topic_names.requests) == {0: 2})
    told = {name: (value or b"").decode() for name, value in dead.headers() or []}
    assert (dead.key(), dead.value(), told["h"]) == (b"k", b"large", "v")
    assert told["__dlq.errors.reason"] == "result_too_large"


def test_a_dead_letter_too_large_for_its_topic_goes_without_its_value(
    settings: MakeSettings, broker: EmbeddedBroker
) -> None:
    made = settings(partitions=1)
    topics = Topics(made)
    with bench(made) as running:
        topics.send(b"large", key=b"k", headers=[("h", b"v")])
        eventually(lambda: running.step.records_seen == 1)
        # The result and its dead letter, each in company and alone.
        broker.push_request_errors(ApiKey.PRODUCE, [KafkaError.MSG_SIZE_TOO_LARGE] * 4)
        running.step.holding = False
        running.step.release()
        [dead] = topics.read(made.topic_names.dead_letters, 1)
        topics.send(b"neighbour")
        topics.read(made.topic_names.results, 1)
    told = {name: (value or b"").decode() for name, value in dead.headers() or []}
    assert (dead.key(), dead.value(), told["h"]) == (b"k", None, "v")
    assert "its value of 5 bytes is left out" in told["__dlq.errors.message"]


def test_an_offset_that_the_broker_could_not_tell_is_not_taken_for_none() -> None:
    """It would read the partition from its beginning."""

    class Unsure:
        def committed(self, _places: object, timeout: float) -> list[SimpleNamespace]:
            error = KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
            return [SimpleNamespace(partition=0, offset=-1001, error=error)]

    with pytest.raises(KafkaException):
        committed_offsets(cast(Consumer, Unsure()), "requests", [0])


def test_a_coordinator_that_has_moved_is_asked_again() -> None:
    answers: list[list[SimpleNamespace] | KafkaError] = [
        KafkaError(KafkaError.NOT_COORDINATOR),
        [SimpleNamespace(partition=0, offset=-1001, error=KafkaError(KafkaError.COORDINATOR_LOAD_IN_PROGRESS))],
        [SimpleNamespace(partition=0, offset=7, error=None)],
    ]

    class Moving:
        def committed(self, _places: object, timeout: float) -> list[SimpleNamespace]:
            answer = answers.pop(0)
            if isinstance(answer, KafkaError):
                raise KafkaException(answer)
            return answer

    assert committed_offsets(cast(Consumer, Moving()), "requests", [0]) == {0: 7}


def test_an_exception_in_the_poll_loop_stops_the_worker_without_a_commit(settings: MakeSettings) -> None:
    made = settings(partitions=1)
    topics = Topics(made)
    running = Bench(made, intake=no_intake)
    topics.send(b"1")
    running.thread.join(WAIT_S)
    assert not running.thread.is_alive()
    assert str(running.error) == "RuntimeError: a bug"
    assert topics.committed("bench", made.topic_names.requests)[0] < 0


def no_intake(*_: object) -> Iterator[Unit]:
    raise RuntimeError("a bug")


def test_errors_of_the_broker_that_pass_are_waited_out(settings: MakeSettings, broker: EmbeddedBroker) -> None:
    made = settings(partitions=1)
    topics = Topics(made)
    with bench(made) as running:
        topics.send(*(b"%d" % number for number in range(20)))
        eventually(lambda: running.step.records_seen == 20)
        broker.push_request_errors(
            ApiKey.PRODUCE, [KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.REQUEST_TIMED_OUT, KafkaError._TRANSPORT]
        )
        running.step.holding = False
        running.step.release()
        results = topics.read(made.topic_names.results, 20)
        eventually(lambda: topics.committed("bench", made.topic_names.requests) == {0: 20})
    assert [int(each.value() or b"") for each in results] == list(range(20))


def test_a_broker_that_goes_away_is_told_and_waited_for(settings: MakeSettings, broker: EmbeddedBroker) -> None:
    made = settings(partitions=1)
    topics = Topics(made)
    with bench(made) as running:
        running.step.holding = False
        topics.send(b"before")
        topics.read(made.topic_names.results, 1)
        broker.set_down()
        eventually(lambda: "the broker is away" in (running.worker.not_ready() or ""))
        assert running.worker.live()
        broker.set_up()
        eventually(lambda: running.worker.not_ready() is None)
        topics.send(b"after")
        topics.read(made.topic_names.results, 2)


def test_a_delivery_that_is_refused_for_good_stops_the_worker(settings: MakeSettings, broker: EmbeddedBroker) -> None:
    made = settings(partitions=1)
    topics = Topics(made)
    topics.send(b"1")
    running = Bench(made)
    eventually(lambda: running.step.records_seen == 1)
    broker.push_request_errors(ApiKey.PRODUCE, [KafkaError.TOPIC_AUTHORIZATION_FAILED])
    running.step.release()
    running.thread.join(WAIT_S)
    assert "reviews.results [0]: not delivered" in str(running.error)
    assert topics.committed("bench", made.topic_names.requests)[0] < 0


def test_records_lost_by_retention_are_counted_and_the_rest_is_answered(
    settings: MakeSettings, broker: EmbeddedBroker
) -> None:
    made = settings(partitions=1)
    topics = Topics(made)
    with bench(made, max_in_flight_tokens=100) as running:
        topics.send(b"x" * 1000)
        eventually(lambda: running.gauge("penstock_paused") == 1)
        # The embedded broker keeps 5 MiB a partition: what the paused worker has not read is dropped.
        for number in range(12):
            topics.send(b"%d" % number + b"y" * 1_000_000)
        running.step.holding = False
        running.step.release()
        eventually(lambda: (running.gauge("penstock_records_lost_total") or 0) >= 1)
        eventually(lambda: running.step.records_seen > 2)
        topics.send(b"last")
        eventually(lambda: topics.committed("bench", made.topic_names.requests)[0] == 14)


def test_a_stop_while_the_broker_is_away_keeps_to_its_budget(settings: MakeSettings, broker: EmbeddedBroker) -> None:
    made = settings(partitions=1, drain_timeout_ms=200)
    topics = Topics(made)
    running = Bench(made)
    topics.send(b"1")
    eventually(lambda: running.step.records_seen == 1)
    broker.set_down()
    running.end()  # waits WAIT_S, half of what the client alone would take to give up
    broker.set_up()
