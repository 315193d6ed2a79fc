"""A world of workers under a seed: the production worker loop, steps, batcher, lines, emitter and transactions over a
Kafka in memory, one thread, a clock that is told. Between any two steps a process may crash, a member be lost, a call
fail; then the faults end and everything must have been answered.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, cast

import numpy as np
import pytest
from confluent_kafka import Consumer, Producer
from numpy.typing import NDArray

from engines.errors import EngineBusy, EngineError
from engines.rows import PackedRows
from pipeline.dead_letters import DeadLetters
from pipeline.emitter import Emitter
from pipeline.errors import WorkerFailure
from pipeline.exactly_once import ExactlyOnce
from pipeline.metrics import WorkerMetrics
from pipeline.settings import STAGES, EnsembleSettings, Stage
from pipeline.step_makers import intake_of, sealed
from pipeline.steps import EncodeStep, Next, PostprocessStep, Step, TokenizeStep
from pipeline.transactions import TransactionLane
from pipeline.worker import Worker
from schemas.errors import BadRecord, Reason
from schemas.headers import read_cause
from schemas.packs import decode_encoding_pack, decode_token_pack
from schemas.records import InputRecord, Source
from schemas.results import Output
from stages.embeddings import SentenceEmbedding
from stages.encode import EncodeStage
from stages.errors import StageError
from stages.microbatcher import MicroBatcher
from stages.postprocess import PostprocessStage
from stages.text_tokenizer import TextTokenizer, TokenizedText
from stages.tokenize import TokenizeStage
from tests.simulation.broker_in_memory import Broker, Crash, Entry, Faults
from tests.simulation.clients_in_memory import (
    SimulatedConsumer,
    SimulatedProducer,
    SimulatedTransactionalProducer,
)

PARTITIONS = 3
LARGEST_RESULT = 400
# Words that something fails on, by their token id.
IDS = {"poison": 666, "bug": 667, "nan": 668, "unsayable": 6_000}
# Why a request with such a word is a dead letter.
REASONS = {
    "poison": Reason.ENGINE_FAILED,
    "nan": Reason.ENGINE_FAILED,
    "bug": Reason.STAGE_FAILED,
    "unsayable": Reason.STAGE_FAILED,
    "untokenizable": Reason.STAGE_FAILED,
}
# Metrics take longer to make than a whole world.
METRICS = WorkerMetrics("world")


class Words:
    """A tokenizer: a word a token, four tokens a window. It has a bug."""

    def __call__(self, texts: Sequence[str]) -> list[TokenizedText | BadRecord]:
        if any("untokenizable" in text for text in texts):
            raise IndexError("a bug of the tokenizer")
        return [self._windows(text) for text in texts]

    def _windows(self, text: str) -> TokenizedText:
        ids = np.array([IDS.get(word, len(word)) for word in text.split()] or [0], np.int32)
        return TokenizedText([ids[start : start + 4] for start in range(0, len(ids), 4)], truncated=False)


class SumEngine:
    """A text's answer is the sum of its ids. Poison makes the batch fail, in three ways. At times it is busy, or breaks
    for good."""

    widths: Mapping[str, int] = {"v": 1}
    of_tokens: frozenset[str] = frozenset()

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._busy = 0
        self._free = 0
        self._broken = False

    def run(self, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
        self._free += 1
        # Not again at once: what is busy whenever it is asked for one text, and never between, is busy for that text.
        if self._free > 30 and self._faults.strikes():
            self._busy, self._free = self._faults.random.choice([1, 3, 10]), 0
        self._broken = self._broken or self._faults.strikes(0.1)
        if self._broken:
            raise RuntimeError("broken for good")
        if self._busy:
            self._busy -= 1
            raise EngineBusy("for a while")
        if (rows.input_ids == IDS["poison"]).any():
            raise EngineError("poison")
        if (rows.input_ids == IDS["bug"]).any():
            raise ZeroDivisionError("a bug of the engine")
        sums = [
            rows.input_ids[row][rows.segment_ids[row] == slot + 1].sum()
            for row, slot in zip(rows.row, rows.slot, strict=True)
        ]
        answers = np.array(sums, np.float32)[:, np.newaxis]
        answers[[(rows.input_ids[row] == IDS["nan"]).any() for row in rows.row]] = np.nan
        return {"v": answers}

    def close(self) -> None:
        pass


class FragileTask:
    """An embedding of one number, of a user's own: it has a bug."""

    def __init__(self) -> None:
        self._embedding = SentenceEmbedding(width=1, normalize=False)

    def __call__(self, rows: NDArray[np.float64]) -> list[Output]:
        if (rows > IDS["unsayable"] / 9).any():
            raise OverflowError("a bug of the task")
        return self._embedding(rows)


class OriginalsInMemory(DeadLetters):
    """Reads originals where they are."""

    def __init__(self, broker: Broker, **options: Any) -> None:
        super().__init__({}, **options)
        self._broker = broker

    def _fetch(self, source: Source) -> InputRecord | None:
        entry = self._broker.log((source.topic, source.partition))[source.offset]
        return InputRecord(source, entry.key, entry.value, entry.headers)


class OneThreadEmitter(Emitter):
    """Its turns are the world's."""

    def open(self, stopped: Callable[[], bool]) -> None:
        pass


class OneThreadExactlyOnce(ExactlyOnce):
    """Its lanes' turns are the world's."""

    def open(self, stopped: Callable[[], bool]) -> None:
        for lane in self._lanes:
            while not lane.connected and not stopped():
                lane.turn(0.0)
                lane._next_attempt_ms = 0.0


class Process:
    """A worker process: it may crash at any call, and then nothing of it does anything any more."""

    def __init__(self, world: World, role: Sequence[Stage], name: str | None) -> None:
        self.role, self.name = role, name
        self._world, self._broker = world, world.broker
        self.producers: list[SimulatedProducer] = []
        settings, broker = world.settings, world.broker
        names = settings.topic_names
        self.topic = {"tokenize": names.requests, "encode": names.tokens, "postprocess": names.encodings}[role[0]]
        self.group = settings.group_id(role[0])
        letters = {
            stage: OriginalsInMemory(
                broker, topic=names.dead_letters, stage=stage, group=self.group, metrics=METRICS.stage(stage)
            )
            for stage in role
        }
        self.consumer = SimulatedConsumer(broker, self.group, name)
        self.worker = Worker(
            topic=self.topic,
            connect=lambda on_error, on_commit: cast(Consumer, self.consumer),
            deliver=self._deliver,
            intake=intake_of(settings, role[0], letters[role[0]]),
            dead_letters=letters[role[-1]],
            metrics=METRICS.stage(role[0]),
            max_in_flight_tokens=settings.batching.max_in_flight_tokens,
            commit_interval_ms=settings.commit_every_ms,
            drain_timeout_ms=settings.drain_timeout_ms,
            clock_ms=lambda: broker.now_ms,
            sleep=self._sleep,
        )
        then: Next = sealed(role[-1], settings, self.worker.finish)
        self.steps: list[Step] = []
        for stage in reversed(role):
            step = self._step(stage, then, letters[stage])
            self.steps.insert(0, step)
            then = step.submit

    def start(self) -> None:
        self.worker.start(lambda: self.worker.health.failure is not None)

    def turn(self) -> None:
        """Something that one of its threads would do."""
        actors: list[Callable[[], object]] = [*self._own_actors(), *[self._poll] * 2]
        self._broker.faults.random.choice(actors)()

    def all_turns(self) -> None:
        """Something of every thread."""
        self._poll()
        for actor in self._own_actors():
            actor()

    def stop(self) -> None:
        """As SIGTERM does."""
        self.worker.shut_down()

    @property
    def failed(self) -> bool:
        return self.worker.health.failure is not None

    def _poll(self) -> None:
        self.worker.turn(self.steps[0].submit)

    def _own_actors(self) -> list[Callable[[], object]]:
        delivery = self.worker._delivery
        turns = delivery._lanes if isinstance(delivery, ExactlyOnce) else [cast(Emitter, delivery)]
        own: list[Callable[[], object]] = [partial(each.turn, 0.0) for each in turns]
        return [partial(self._guarded, turn) for turn in [*own, *(step.turn for step in self.steps)]]

    def _guarded(self, turn: Callable[[], object]) -> None:
        try:
            turn()
        except (WorkerFailure, EngineError, StageError) as err:
            self.worker.fail(err)

    def _sleep(self, seconds: float) -> None:
        """The poll thread waits: the others go on."""
        self._broker.advance(seconds * 1e3 + self._broker.faults.random.random() * 20)
        self._broker.faults.random.choice(self._own_actors())()

    def _deliver(self, worker: Worker) -> Emitter | ExactlyOnce:
        metrics = METRICS.stage(self.role[0])
        if self._world.settings.delivery == "at_least_once":
            return OneThreadEmitter(
                cast(Producer, self._keep(SimulatedProducer(self._broker, largest=LARGEST_RESULT))),
                on_arrived=worker.arrived,
                oversized=worker.oversized,
                on_failure=worker.fail,
                metrics=metrics,
            )
        own = self.name or f"new-{id(self)}"
        lanes = [
            TransactionLane(
                topic=self.topic,
                connect=partial(self._connect, f"{self.group}@{own}.{number}"),
                membership=worker.membership,
                committed=self._committed,
                on_arrived=worker.arrived,
                oversized=worker.oversized,
                metrics=metrics,
                commit_interval_ms=self._world.settings.commit_every_ms,
                max_records=10,
                clock_ms=lambda: self._broker.now_ms,
            )
            for number in range(2)
        ]
        return OneThreadExactlyOnce(lanes, on_failure=worker.fail)

    def _connect(self, transactional_id: str) -> Producer:
        producer = SimulatedTransactionalProducer(self._broker, transactional_id, largest=LARGEST_RESULT)
        return cast(Producer, self._keep(producer))

    def _keep(self, producer: SimulatedProducer) -> SimulatedProducer:
        self.producers.append(producer)
        return producer

    def _committed(self, partitions: Sequence[int]) -> dict[int, int]:
        found = {each: self._broker.stable_offset(self.group, self.topic, each) for each in partitions}
        return {partition: offset for partition, offset in found.items() if offset is not None}

    def _step(self, stage: Stage, then: Next, letters: DeadLetters) -> Step:
        shared: dict[str, Any] = {
            "then": then,
            "on_failure": self.worker.fail,
            "dead_letters": letters,
            "metrics": METRICS.stage(stage),
            "threads": 0,
        }
        if stage == "tokenize":
            tokenizer = cast(TextTokenizer, Words())
            return TokenizeStep(TokenizeStage(tokenizer, request_format="json", max_text_bytes=10_000), **shared)
        if stage == "encode":
            batcher: Any = MicroBatcher(max_batch_size=4, max_batch_tokens=16, max_queue_delay_ms=0, knee_tokens=0)
            return EncodeStep(
                EncodeStage(
                    [SumEngine(self._broker.faults)],
                    row_length=8,
                    max_length=8,
                    sleep=lambda seconds: self._broker.advance(seconds * 1e3),
                ),
                batcher,
                clock_ms=lambda: self._broker.now_ms,
                **shared,
            )
        return PostprocessStep(
            PostprocessStage({"v": FragileTask()}), results_topic=self._world.settings.topic_names.results, **shared
        )


class World:
    """Workers, requests and what is checked, all from one seed."""

    def __init__(self, seed: int, *, delivery: str, fused: bool, static: bool) -> None:
        self.faults = Faults(seed, rate=0.0)
        self.random = self.faults.random
        self.settings = settings(delivery)
        self.broker = Broker(self.faults, self._check_commit)
        self.static = static
        self.fused = fused
        self.roles: list[Sequence[Stage]] = [STAGES] if fused else [[stage] for stage in STAGES]
        self.processes: list[Process] = []
        self.sent = 0
        names = self.settings.topic_names
        for topic in (names.requests, names.tokens, names.encodings, names.results, names.dead_letters):
            self.broker.create_topic(topic, PARTITIONS)

    def run(self, *, steps: int, requests: int) -> None:
        """Faults for so many steps, then none until all is answered. Raises AssertionError at a broken promise."""
        for role in self.roles:
            self._start(role)
        self.faults.rate, self.faults.may_crash = self.random.choice([0.01, 0.03, 0.1]), True
        for step in range(steps):
            if self.random.random() < requests / steps * 1.2 and self.sent < requests:
                self._send()
            self._step(step)
        self.faults.rate, self.faults.may_crash = 0.0, False
        while self.sent < requests:
            self._send()
        self._settle()
        self._check_the_end()

    def _step(self, _number: int) -> None:
        chance = self.random.random()
        if chance < 0.02:
            self.broker.advance(self.random.choice([1_000.0, 12_000.0]))
        elif chance < 0.2:
            self.broker.advance(self.random.random() * 40)
        elif chance < 0.2 + self.faults.rate * 0.3:
            self._disturb()
        elif self.processes:
            self._turn(self.random.choice(self.processes), Process.turn)
        for role in self.roles:
            if not any(process.role is role for process in self.processes) and self.random.random() < 0.3:
                self._start(role)

    def _disturb(self) -> None:
        what = self.random.choice(["crash", "stop", "more", "session"])
        if what == "more" and len(self.processes) < 2 * len(self.roles):
            self._start(self.random.choice(self.roles))
        elif self.processes:
            process = self.random.choice(self.processes)
            if what == "crash":
                self._end(process)
            elif what == "stop":
                self._turn(process, Process.stop)
                self._end(process)
            elif what == "session":
                self.broker.leave(process.group, process.consumer.memberid())

    def _start(self, role: Sequence[Stage]) -> None:
        taken = {process.name for process in self.processes if process.role is role}
        name = next(f"place-{n}" for n in range(10) if f"place-{n}" not in taken) if self.static else None
        process = Process(self, role, name)
        self.processes.append(process)
        self._turn(process, Process.start)

    def _turn(self, process: Process, turn: Callable[[Process], None]) -> None:
        try:
            turn(process)
            if process.failed:
                process.stop()
        except (Crash, WorkerFailure):
            self._end(process)

    def _end(self, process: Process) -> None:
        if process in self.processes:
            self.processes.remove(process)
            for producer in process.producers:
                producer.ended()

    def _send(self) -> None:
        number = self.sent
        kind = self.random.random()
        text = " ".join("w" * self.random.randint(1, 9) for _ in range(self.random.randint(0, 9)))
        value = json.dumps({"text": text, "id": f"id{number}"}).encode()
        if kind < 0.05:
            value = b"{not json"
        elif kind < 0.15:
            value = json.dumps({"text": f"a {self.random.choice([*REASONS])} b", "id": f"id{number}"}).encode()
        elif kind < 0.18:
            value = json.dumps({"text": text, "id": "x" * LARGEST_RESULT}).encode()
        place = (self.settings.topic_names.requests, self.random.randrange(PARTITIONS))
        self.broker.append(place, b"key", value, [("h", b"v")], "committed")
        self.sent += 1

    def _settle(self) -> None:
        """Members that are no more are noticed; the rest goes on until nothing is left to do."""
        for role in self.roles:
            if not any(process.role is role for process in self.processes):
                self._start(role)
        alive = {process.consumer.memberid() for process in self.processes}
        for group_id, group in self.broker.groups.items():
            for member in set(group.members) - alive:
                self.broker.leave(group_id, member)
        for _ in range(3_000):
            for process in list(self.processes):
                self._turn(process, Process.all_turns)
                if process not in self.processes:  # it had failed before the faults ended
                    self._start(process.role)
            self.broker.advance(5.0)
            if self._unanswered() == 0:
                return
        raise AssertionError(f"{self._unanswered()} requests have no answer")

    # What must hold.

    def _unanswered(self) -> int:
        names = self.settings.topic_names
        answered = self._answered(names.results) | self._answered(names.dead_letters)
        return self.sent - len(answered)

    def _answered(self, topic: str) -> set[tuple[int, int]]:
        """The requests (partition, offset) that a topic's committed records stand for."""
        return {request for each in self._requests_in(topic).values() for request in each}

    def _requests_in(self, topic: str) -> dict[tuple[int, int], list[tuple[int, int]]]:
        return {
            (partition, offset): [(partition, each) for each in requests_of(topic.rpartition(".")[2], entry)]
            for partition, offset, entry in self.broker.committed_records(topic)
        }

    def _check_commit(self, group: str, topic: str, partition: int, offset: int) -> None:
        """What is committed is answered: by the stage itself, whatever becomes of that later."""
        names = self.settings.topic_names
        after = {
            names.requests: names.results if self.fused else names.tokens,
            names.tokens: names.encodings,
            names.encodings: names.results,
        }[topic]
        answered = self._answered(after) | self._answered(names.dead_letters)
        log = self.broker.log((topic, partition))
        for place, entry in enumerate(log[:offset]):
            if entry.state == "committed" and not entry.mark:
                own = [place] if topic == names.requests else requests_of(topic.rpartition(".")[2], entry)
                for request in own:
                    assert (partition, request) in answered, f"{group} committed {offset}, {request} is unanswered"

    def _check_the_end(self) -> None:
        names = self.settings.topic_names
        for partition in range(PARTITIONS):
            found = [
                (json.loads(entry.value or b""), entry)
                for where, _, entry in self.broker.committed_records(names.results)
                if where == partition
            ]
            offsets = [result["source"]["offset"] for result, _ in found]
            first = list(dict.fromkeys(offsets))
            assert first == sorted(first), f"order in partition {partition}: {offsets}"
            for result, entry in found:
                request = self.broker.log((names.requests, partition))[result["source"]["offset"]]
                body = json.loads(request.value or b"")
                assert (result["id"], entry.key, entry.headers) == (body["id"], b"key", [("h", b"v")])
                assert result["outputs"]["v"] == pytest.approx([expected(body["text"])])
        for partition, _, entry in self.broker.committed_records(names.dead_letters):
            cause = read_cause(entry.headers)
            assert cause is not None
            assert cause.offset is not None
            original = self.broker.log((names.requests, partition))[cause.offset]
            assert (entry.key, entry.value) == (original.key, original.value)
            assert cause.reason == guilt(original.value or b""), f"{original.value!r} is blamed: {cause}"
        if self.settings.delivery == "exactly_once":
            intermediate = [] if self.fused else [names.tokens, names.encodings]
            for topics in ([names.results, names.dead_letters], *([topic] for topic in intermediate)):
                seen = [each for topic in topics for own in self._requests_in(topic).values() for each in own]
                assert len(seen) == len(set(seen)), f"twice in {topics}"


def requests_of(kind: str, entry: Entry) -> list[int]:
    """The offsets of the requests that a record of this kind of topic stands for."""
    return _requests_of(kind, entry.value, tuple(entry.headers))


@cache
def _requests_of(kind: str, value: bytes | None, headers: tuple[tuple[str, bytes | None], ...]) -> list[int]:
    if kind == "tokens":
        return [text.offset for text in decode_token_pack(value).texts]
    if kind == "encodings":
        return [text.offset for text in decode_encoding_pack(value).texts]
    if kind == "results":
        return [json.loads(value or b"")["source"]["offset"]]
    cause = read_cause([*headers])
    assert cause is not None
    assert cause.offset is not None
    return [cause.offset]


def guilt(value: bytes) -> Reason | None:
    """Why a request becomes a dead letter; None for one that must be answered."""
    if value == b"{not json":
        return Reason.NOT_JSON
    body = json.loads(value)
    if len(body["id"]) >= LARGEST_RESULT:
        return Reason.RESULT_TOO_LARGE
    return next((reason for word, reason in REASONS.items() if word in body["text"].split()), None)


def expected(text: str) -> float:
    """Windows of four tokens, each summed, joined by the mean weighted with their tokens."""
    ids = [len(word) for word in text.split()] or [0]
    windows = [ids[start : start + 4] for start in range(0, len(ids), 4)]
    return float(np.float32(sum(sum(window) * len(window) for window in windows) / len(ids)))


@cache
def settings(delivery: str) -> EnsembleSettings:
    return EnsembleSettings.model_validate(
        {
            "name": "world",
            "topics": {"partitions": PARTITIONS},
            "models": [{"name": "v", "source": "none"}],
            "batching": {
                "max_pack_size": 3,
                "row_length": 8,
                "max_batch_tokens": 16,
                "max_in_flight_tokens": 100,
            },
            "delivery": delivery,
            "commit_interval_ms": 50,
            "drain_timeout_ms": 500,
        }
    )
