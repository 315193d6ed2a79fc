"""Several members of the transcripts' group on Apache Kafka: whoever comes, goes or is taken for dead, each stream is
told once."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource

from pipeline import clients
from pipeline.apache_kafka.broker import ApacheBroker
from pipeline.errors import WorkerFailure
from pipeline.metrics import WorkerMetrics
from pipeline.settings import EnsembleSettings
from pipeline.speech.delivery import Batch
from pipeline.speech.serve import transcripts_worker
from pipeline.speech.worker import TranscriptsWorker
from pipeline.up import make_topics
from schemas.feeds.tracks import Feed
from stages.transcripts import Head, Stream
from tests.eventually import WAIT_S, eventually
from tests.speech.speech_world import answer, end, event

pytestmark = [pytest.mark.apache, pytest.mark.slow]

PARTITIONS = 4
STREAMS = 24
UTTERANCES = 3
REVISIONS = 3
_numbers = itertools.count()


@pytest.fixture
def settings(apache_broker: ApacheBroker) -> EnsembleSettings:
    made = EnsembleSettings.model_validate(
        {
            "name": f"shared-{next(_numbers)}",
            "topics": {"partitions": PARTITIONS},
            "models": [{"name": "m", "source": "unused"}],
            "speech": {"silence_ms": 600_000, "resend_after_ms": 600_000},
            "kafka": {
                "bootstrap.servers": apache_broker.bootstrap,
                # How soon the group takes one for dead that doesn't come round.
                "consumer": {"session.timeout.ms": 6_000, "max.poll.interval.ms": 6_000},
            },
        }
    )
    make_topics(made)
    return made


class Crew:
    """Members by name, each on a thread of its own."""

    def __init__(self, settings: EnsembleSettings, threads: ThreadPoolExecutor) -> None:
        self._settings = settings
        self.threads = threads
        self.workers: dict[str, TranscriptsWorker] = {}
        self._stops: dict[str, threading.Event] = {}
        self._ends: dict[str, Future[None]] = {}

    def start(self, name: str) -> TranscriptsWorker:
        worker = transcripts_worker(self._settings, WorkerMetrics("shared"), name=name, embedded=False)
        self.workers[name], self._stops[name] = worker, threading.Event()
        self._ends[name] = self.threads.submit(worker.run, self._stops[name].is_set)
        eventually(lambda: self._ends[name].done() or worker.not_ready() is None)
        return worker

    def stop(self, name: str) -> None:
        self._stops[name].set()
        self._ends.pop(name).result(WAIT_S)

    def stop_all(self) -> None:
        for stop in self._stops.values():
            stop.set()
        for name in [*self._ends]:
            self.stop(name)


@pytest.fixture
def crew(settings: EnsembleSettings) -> Iterator[Crew]:
    with ThreadPoolExecutor(5) as threads:
        made = Crew(settings, threads)
        try:
            yield made
        finally:
            made.stop_all()


class Ensemble:
    """In place of the stages: answers each request, with its text for a label. Meanwhile it reads the transcripts."""

    def __init__(self, settings: EnsembleSettings) -> None:
        self._requests, self._results = settings.topic_names.requests, settings.topic_names.results
        kafka: Mapping[str, Any] = {"bootstrap.servers": settings.kafka.bootstrap_servers}
        self._producer = Producer({**kafka, "linger.ms": 0})
        self._consumer: Consumer = clients.reader(kafka, client_id="ensemble")
        topics = (self._requests, settings.speech_topic_names.transcripts)
        self._consumer.assign(
            [TopicPartition(topic, number, OFFSET_BEGINNING) for topic in topics for number in range(PARTITIONS)]
        )
        self.told: list[dict[str, Any]] = []

    def turn(self) -> None:
        for message in clients.read(self._consumer, 500, 0.02):
            if message.error() is not None:
                continue
            if message.topic() == self._requests:
                self._answer(message)
            else:
                self.told.append(json.loads(message.value() or b""))
        self._producer.poll(0)

    def until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not done():
            assert time.monotonic() < deadline
            self.turn()

    def whole(self) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {}
        for each in self.told:
            if each["type"] == "transcript":
                found.setdefault(each["stream_id"], []).append(each)
        return found

    def _answer(self, request: Message) -> None:
        value = json.dumps(answer(json.loads(request.value() or b"")["text"]))
        self._producer.produce(
            self._results, value, request.key(), request.partition() or 0, headers=request.headers() or []
        )


def say_all(settings: EnsembleSettings, meanwhile: Mapping[int, Callable[[], object]], ensemble: Ensemble) -> None:
    """All streams' events, a round of them at a time; `meanwhile` is what happens before a round."""
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers, "linger.ms": 0})
    rounds = [(utterance, revision) for utterance in range(UTTERANCES) for revision in range(REVISIONS)]
    for number, (utterance, revision) in enumerate([*rounds, (None, 0)]):
        meanwhile.get(number, lambda: None)()
        for stream in (f"s{number}" for number in range(STREAMS)):
            said = (
                event(stream, str(utterance), revision, text_of(stream, utterance, revision), final=revision == 2)
                if utterance is not None
                else end(stream)
            )
            producer.produce(settings.speech_topic_names.speech, said, stream)
        producer.flush(WAIT_S)
        for _ in range(10):
            ensemble.turn()


def text_of(stream: str, utterance: int, revision: int) -> str:
    return f"{stream} {utterance} " + "word " * (revision + 1)


def check(ensemble: Ensemble) -> None:
    """Each stream's whole transcript once, with all that is final; each annotation once, of its own text, in order."""
    whole = ensemble.whole()
    assert {stream: len(told) for stream, told in whole.items()} == {f"s{number}": 1 for number in range(STREAMS)}
    newest: dict[tuple[str, str], int] = {}
    for each in ensemble.told:
        if each["type"] == "utterance":
            place, revision = (each["stream_id"], each["utterance_id"]), each["revision"]
            assert newest.get(place, -1) < revision, "once, and in order"
            newest[place] = revision
            assert each["outputs"]["m"][0]["label"] == text_of(each["stream_id"], int(each["utterance_id"]), revision)
    finals = Counter(
        (stream, utterance["utterance_id"])
        for stream, [told] in whole.items()
        for utterance in told["utterances"]
        if utterance["is_final"]
    )
    assert finals == {(f"s{number}", str(each)): 1 for number in range(STREAMS) for each in range(UTTERANCES)}


def test_members_that_come_and_go_tell_all_once(settings: EnsembleSettings, crew: Crew) -> None:
    ensemble = Ensemble(settings)
    crew.start("a")
    say_all(
        settings,
        {2: lambda: crew.start("b"), 4: lambda: crew.start("c"), 5: lambda: crew.stop("a"), 7: lambda: crew.start("d")},
        ensemble,
    )
    ensemble.until(lambda: len(ensemble.whole()) == STREAMS)
    crew.stop_all()
    ensemble.turn()
    check(ensemble)


class Stalled:
    """A member's delivery that, from `hang` on, waits with the first batch that has something to tell until it may
    `go_on`: longer than its group waits for the member."""

    def __init__(self, worker: TranscriptsWorker) -> None:
        self.has_begun, self.go_on = threading.Event(), threading.Event()
        self._worker, self._deliver = worker, worker._delivery.deliver

    def hang(self) -> None:
        self._worker._delivery.deliver = self._wait  # type: ignore[method-assign]

    def _wait(self, batch: Batch, consumer: Consumer) -> None:
        if batch.sent and not self.go_on.is_set():
            self.has_begun.set()
            self.go_on.wait(WAIT_S)
        self._deliver(batch, consumer)


@pytest.mark.timeout(120)
def test_a_member_that_was_taken_for_dead_tells_nothing_more(settings: EnsembleSettings, crew: Crew) -> None:
    ensemble = Ensemble(settings)
    slow = crew.start("slow")
    stalled = Stalled(slow)
    say_all(settings, {3: stalled.hang}, ensemble)
    assert stalled.has_begun.wait(WAIT_S)
    crew.start("other")
    ensemble.until(lambda: len(ensemble.whole()) == STREAMS)
    stalled.go_on.set()
    eventually(lambda: slow.not_ready() is None and len(slow._partitions.places) > 0)
    crew.stop_all()
    ensemble.turn()
    check(ensemble)
    labels = {"ensemble": "shared", "stage": "transcripts", "outcome": "aborted"}
    assert slow._metrics._worker.registry.get_sample_value("penstock_transactions_total", labels) == 1


@pytest.mark.timeout(120)
def test_nor_does_it_tell_what_time_brings(settings: EnsembleSettings, crew: Crew) -> None:
    """Silence makes a batch without any record that was read."""
    settings = settings.model_copy(
        update={"speech": settings.speech_or_default.model_copy(update={"silence_ms": 1_000})}
    )
    ensemble, crew = Ensemble(settings), Crew(settings, crew.threads)
    slow = crew.start("slow")
    stalled = Stalled(slow)
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers})
    producer.produce(settings.speech_topic_names.speech, event("a", "0", 0, "never final"), "a")
    producer.flush(WAIT_S)
    ensemble.until(lambda: len(ensemble.told) == 1)
    stalled.hang()
    assert stalled.has_begun.wait(WAIT_S)
    crew.start("other")
    ensemble.until(lambda: len(ensemble.whole()) == 1)
    stalled.go_on.set()
    eventually(lambda: slow.not_ready() is None and len(slow._partitions.places) > 0)
    crew.stop_all()
    ensemble.turn()
    assert [each["type"] for each in ensemble.told] == ["utterance", "transcript"]
    labels = {"ensemble": "shared", "stage": "transcripts", "outcome": "aborted"}
    assert slow._metrics._worker.registry.get_sample_value("penstock_transactions_total", labels) == 1


@pytest.mark.timeout(120)
def test_what_another_has_not_decided_yet_is_waited_for(settings: EnsembleSettings, crew: Crew) -> None:
    """A member without a name was killed in the middle of a transaction: its state may still come."""
    names = settings.speech_topic_names
    open_one = clients.transactional_producer(
        settings.kafka.producer_settings(), transactional_id="another", client_id="another", on_error=lambda _: None
    )
    open_one.init_transactions(WAIT_S)
    open_one.begin_transaction()
    kept = Stream(Head(1, Feed("a")), context_characters=0, max_utterances=10)
    open_one.produce(names.changelog, msgspec.msgpack.encode(kept.head), b'["a"]', 1)
    open_one.flush(WAIT_S)
    worker = transcripts_worker(settings, WorkerMetrics("shared"), name="a", embedded=False)
    stop = threading.Event()
    ended = crew.threads.submit(worker.run, stop.is_set)
    eventually(lambda: worker.not_ready() == "reading the state of its streams")
    time.sleep(1)
    assert worker.not_ready() == "reading the state of its streams"
    assert worker.live()
    open_one.commit_transaction(WAIT_S)
    eventually(lambda: worker.not_ready() is None)
    assert [*worker.desk.streams] == ["a"]
    stop.set()
    ended.result(WAIT_S)


def test_a_topic_that_takes_less_than_it_should_is_named(settings: EnsembleSettings, crew: Crew) -> None:
    crew.start("a")
    topic = settings.speech_topic_names.transcripts
    smaller = ConfigEntry("max.message.bytes", "200", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[smaller])
    admin = clients.admin(settings.kafka.client_settings())
    admin.incremental_alter_configs([resource])[resource].result(WAIT_S)
    ensemble = Ensemble(settings)
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers})
    producer.produce(settings.speech_topic_names.speech, event("a", "0", 0, "random words 7281 " * 20), "a")
    producer.flush(WAIT_S)
    ensemble.until(lambda: not crew.workers["a"].live())
    with pytest.raises(WorkerFailure, match=rf"{topic} \[\d\]: not delivered: .*too large"):
        crew.stop("a")


def test_a_member_without_partitions_is_a_spare_and_ready(settings: EnsembleSettings, crew: Crew) -> None:
    spares = [crew.start(name) for name in ("a", "b", "c", "d", "e")]
    eventually(lambda: all(each.not_ready() is None for each in spares))
    assert sorted(len(each._partitions.numbers) for each in spares) == [0, 1, 1, 1, 1]


def test_what_was_read_and_then_deleted_is_not_lost(settings: EnsembleSettings, crew: Crew) -> None:
    """Also partitions that begin behind 0 are read from the group's offsets on, and from nowhere else before. (One
    that did counted records as lost at 2 to 8 of 10 starts.)"""
    feed = settings.speech_topic_names.speech
    ensemble = Ensemble(settings)
    crew.start("a")
    say_all(settings, {}, ensemble)
    ensemble.until(lambda: len(ensemble.whole()) == STREAMS)
    crew.stop("a")
    admin = clients.admin(settings.kafka.client_settings())
    read = [TopicPartition(feed, number, OFFSET_END) for number in range(PARTITIONS)]
    for each in admin.delete_records(read).values():
        each.result(WAIT_S)
    labels = {"ensemble": "shared", "stage": "transcripts"}
    for _ in range(5):
        registry = crew.start("a")._metrics._worker.registry
        crew.stop("a")
        assert registry.get_sample_value("penstock_records_lost_total", labels) == 0
