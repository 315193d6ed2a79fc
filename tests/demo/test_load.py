"""The demo's producer and consumer, against a stand-in for the stages that answers on the same broker."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence

import pytest
from confluent_kafka import Consumer, Message, Producer

from pipeline.demo import load as load_module
from pipeline.demo.load import Load
from pipeline.mock_cluster import CONSUMER_SETTINGS, EmbeddedBroker
from pipeline.settings import EnsembleSettings
from schemas.errors import BadRecord, Reason
from schemas.headers import CLOUDEVENTS_ID, dead_letter_headers
from schemas.records import Headers, Source
from schemas.results import Label, Result, encode_result

pytestmark = pytest.mark.broker

PARTITIONS = 3
WAIT_S = 20.0


def settings_for(bootstrap: str, format: str = "json", batch: int = 4) -> EnsembleSettings:
    return EnsembleSettings.model_validate(
        {
            "name": "small",
            "requests": {"format": format},
            "topics": {"partitions": PARTITIONS},
            "models": [{"name": "label", "source": "nowhere"}],
            "batching": {"max_batch_size": batch},
            "engine": {"instances": 1},
            "kafka": {"bootstrap.servers": bootstrap, "consumer": {"fetch.wait.max.ms": 5}},
        }
    )


class Answers:
    """Reads requests and, when told to, writes results for them."""

    def __init__(self, settings: EnsembleSettings) -> None:
        self.names = settings.topic_names
        self.requests: list[Message] = []
        bootstrap = settings.kafka.bootstrap_servers
        self._producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0})
        self._consumer = Consumer(
            {"bootstrap.servers": bootstrap, "group.id": "answers", "auto.offset.reset": "earliest"} | CONSUMER_SETTINGS
        )
        self._consumer.subscribe([self.names.requests])

    def read(self) -> list[Message]:
        new = [message for message in self._consumer.consume(500, 0.02) if not message.error()]
        self.requests += new
        return new

    def write(self, request: Message, *, id: str | None = None, tokens: int = 5) -> None:
        partition, offset = request.partition(), request.offset()
        assert partition is not None
        assert offset is not None
        result = Result(
            id=id or id_of(request),
            outputs={"label": [Label("GOOD", 0.75)], "vector": [0.5, 1.5]},
            tokens=tokens,
            truncated=False,
            chunks=1,
            source=Source(self.names.requests, partition, offset),
        )
        self._produce(self.names.results, partition, encode_result(result), [])

    def bury(self, request: Message) -> None:
        partition = request.partition()
        assert partition is not None
        source = Source(self.names.requests, partition, request.offset() or 0)
        why = BadRecord(Reason.TEXT_TOO_LONG, "too long")
        headers = [
            *(request.headers() or []),
            *dead_letter_headers(why, source=source, stage="tokenize", group="demo.tokenize"),
        ]
        self._produce(self.names.dead_letters, partition, None, headers)

    def say(self, value: bytes) -> None:
        self._produce(self.names.results, 0, value, [])

    def close(self) -> None:
        self._consumer.close()

    def _produce(self, topic: str, partition: int, value: bytes | None, headers: Headers) -> None:
        self._producer.produce(topic, value, partition=partition, headers=headers)
        self._producer.flush(WAIT_S)


def id_of(request: Message) -> str:
    headers = request.headers()
    assert isinstance(headers, list)
    value = dict(headers)[CLOUDEVENTS_ID]
    assert isinstance(value, bytes)
    return value.decode()


@pytest.fixture
def settings() -> Iterator[EnsembleSettings]:
    with EmbeddedBroker() as broker:
        settings = settings_for(broker.bootstrap)
        for topic in topics_of(settings):
            broker.create_topic(topic, PARTITIONS)
        yield settings


def topics_of(settings: EnsembleSettings) -> list[str]:
    names = settings.topic_names
    return [names.requests, names.results, names.dead_letters]


@pytest.fixture
def answers(settings: EnsembleSettings) -> Iterator[Answers]:
    answers = Answers(settings)
    yield answers
    answers.close()


class Seen:
    def __init__(self) -> None:
        self.results: list[tuple[str, Mapping[str, Sequence[Label | float]]]] = []
        self.dead_letters: list[tuple[str, str, str]] = []


@pytest.fixture
def seen() -> Seen:
    return Seen()


def load_of(
    settings: EnsembleSettings, seen: Seen, count: int, *, rate: float | None = None, texts: Iterator[str] | None = None
) -> Load:
    load = Load(
        settings,
        texts or (f"text {number}" for number in itertools.count()),
        count=count,
        rate=rate,
        run="mine",
        shown=2,
        on_result=lambda text, outputs: seen.results.append((text, outputs)),
        on_dead_letter=lambda *letter: seen.dead_letters.append(letter),
    )
    load.open()
    return load


def turns(load: Load, answers: Answers, until: int) -> None:
    """Let the load go on until so many requests are read."""
    deadline_s = time.monotonic() + WAIT_S
    while len(answers.requests) < until:
        assert time.monotonic() < deadline_s
        load.turn()
        answers.read()


def finish(load: Load) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not load.done:
        assert time.monotonic() < deadline_s
        load.turn()


def test_in_flight_is_bounded_and_all_are_sent(settings: EnsembleSettings, answers: Answers, seen: Seen) -> None:
    load = load_of(settings, seen, 200)
    assert load.max_in_flight == 64
    deadline_s = time.monotonic() + WAIT_S
    while not load.done:
        assert time.monotonic() < deadline_s
        load.turn()
        assert load.ledger.in_flight <= 64
        for request in answers.read():
            answers.write(request)
    load.settle(0.05)
    load.close()
    ledger = load.ledger
    assert (ledger.sent, ledger.results, ledger.in_flight) == (200, 200, 0)
    assert (ledger.repeated, ledger.out_of_order, ledger.dead_letters) == (0, 0, 0)
    assert ledger.tokens == 1_000
    assert {request.partition() for request in answers.requests} == set(range(PARTITIONS))
    assert sorted(id_of(request) for request in answers.requests) == sorted(f"demo-mine-{n}" for n in range(200))
    assert json.loads(answers.requests[0].value() or b"")["text"].startswith("text ")
    assert len(seen.results) == 2
    assert seen.results[0][1] == {"label": [Label("GOOD", 0.75)], "vector": [0.5, 1.5]}


def test_what_is_not_this_run_s_is_passed_over(settings: EnsembleSettings, answers: Answers, seen: Seen) -> None:
    # Before this run begins: what an earlier one left, under the same id.
    early = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers})
    for partition in range(PARTITIONS):
        early.produce(settings.topic_names.results, b'{"id": "demo-mine-0"}', partition=partition)
    early.flush(WAIT_S)
    load = load_of(settings, seen, 2)
    turns(load, answers, until=2)
    answers.write(answers.requests[0], id="demo-other-0")
    answers.write(answers.requests[0], id="somebody's")
    for value in (b"", b"no json", b"[]", b'{"id": "demo-mine-0"}'):
        answers.say(value)
    for request in answers.requests:
        answers.write(request)
    finish(load)
    load.settle(0.1)
    load.close()
    assert (load.ledger.results, load.ledger.repeated) == (2, 0)


def test_dead_letters_and_repeats_are_counted_apart(settings: EnsembleSettings, answers: Answers, seen: Seen) -> None:
    load = load_of(settings, seen, 3)
    turns(load, answers, until=3)
    first, second, third = answers.requests
    answers.write(first)
    answers.write(first)
    answers.bury(second)
    ledger = load.ledger
    deadline_s = time.monotonic() + WAIT_S
    while ledger.in_flight > 1 or not ledger.repeated:
        assert time.monotonic() < deadline_s
        load.turn()
    assert not load.done
    answers.write(third)
    finish(load)
    load.close()
    assert (ledger.results, ledger.dead_letters, ledger.repeated) == (2, 1, 1)
    assert seen.dead_letters == [(id_of(second), "text_too_long", "too long")]


def test_long_texts_are_bounded_by_their_bytes(
    settings: EnsembleSettings, answers: Answers, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_module, "_MAX_IN_FLIGHT_BYTES", 1_000)
    # The first alone is above the bound: it goes when nothing else is on its way.
    load = load_of(settings, seen, 4, texts=iter(["x" * 1_500, "y" * 400, "z" * 400, "w" * 400]))
    turns(load, answers, until=1)
    load.turn()
    assert load.ledger.in_flight == 1
    answers.write(answers.requests[0])
    turns(load, answers, until=3)
    load.turn()
    assert load.ledger.in_flight == 2
    for request in answers.requests[1:]:
        answers.write(request)
    turns(load, answers, until=4)
    answers.write(answers.requests[3])
    finish(load)
    load.close()
    assert load.ledger.results == 4


def test_an_open_loop_sends_when_the_time_has_come(settings: EnsembleSettings, answers: Answers, seen: Seen) -> None:
    load = load_of(settings, seen, 3, rate=1_000_000.0)
    turns(load, answers, until=3)
    slow = load_of(settings, seen, 3, rate=0.001)
    for _ in range(3):
        slow.turn()
    assert slow.ledger.sent == 1
    for each in (load, slow):
        each.close()


def test_plain_text_requests_carry_their_id_in_a_header(
    settings: EnsembleSettings, answers: Answers, seen: Seen
) -> None:
    plain = settings_for(settings.kafka.bootstrap_servers, format="text")
    load = load_of(plain, seen, 1)
    turns(load, answers, until=1)
    load.close()
    assert answers.requests[0].value() == b"text 0"
    assert id_of(answers.requests[0]) == "demo-mine-0"


@pytest.mark.parametrize(("batch", "instances", "bound"), [(64, 2, 384), (1, 1, 64), (64, 1, 192), (512, 8, 1_024)])
def test_the_bound_keeps_every_engine_busy_and_fits_the_broker(
    batch: int, instances: int, bound: int, seen: Seen
) -> None:
    settings = settings_for("127.0.0.1:1", batch=batch)
    engine = settings.engine.model_copy(update={"instances": instances})
    load = Load(
        settings.model_copy(update={"engine": engine}),
        iter(()),
        count=1,
        rate=None,
        run="mine",
        shown=1,
        on_result=lambda *_: None,
        on_dead_letter=lambda *_: None,
    )
    assert load.max_in_flight == bound
