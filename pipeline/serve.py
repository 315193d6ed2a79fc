"""One worker, from settings to exit: its stage, its threads, its HTTP port, its signals.

A worker runs one stage over topics, or, fused, all three from requests to results.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Literal

from pipeline import clients
from pipeline.assembly import open_encode_stage, open_postprocess_stage, open_tokenize_stage
from pipeline.dead_letters import DeadLetters
from pipeline.http import HealthServer
from pipeline.intake import Intake, PackIntake, RequestIntake
from pipeline.lines import Unit
from pipeline.metrics import WorkerMetrics
from pipeline.parent import parent_gone
from pipeline.settings import STAGES, EnsembleSettings, Stage
from pipeline.steps import EncodeStep, Next, PostprocessStep, Step, TokenizeStep
from pipeline.supervisor import RESTARTS
from pipeline.topics import TopicError, require_topics, wanted_topics
from pipeline.worker import Worker
from schemas.packs import EncodingPack, TokenPack, decode_encoding_pack, decode_token_pack, encode_pack, source_of
from schemas.records import OutputRecord
from stages.microbatcher import MicroBatcher

log = logging.getLogger("penstock.serve")

# What a worker does: one stage, or all of them.
Role = Literal["tokenize", "encode", "postprocess", "fused"]

# How soon the supervisor's death is noticed.
_PARENT_LOOK_S = 1.0


def serve(settings: EnsembleSettings, role: Role, *, http_port: int | None = None) -> None:
    """Run a worker until SIGTERM or SIGINT, then drain.

    Raises UserError where a person must act (topics, models, settings), WorkerFailure where a fresh start may help.
    """
    stages: Sequence[Stage] = STAGES if role == "fused" else (role,)
    metrics = WorkerMetrics(settings.name, restarts=int(os.environ.get(RESTARTS, "0")))
    state = WorkerState()
    with _stopped_by_signals(state.stop):
        http = HealthServer(
            settings.http.host,
            settings.http_port(stages[0]) if http_port is None else http_port,
            metrics.registry,
            live=state.live,
            ready=state.not_ready,
        )
        log.info("%s of %s: http on %s:%d", role, settings.name, http.host, http.port)
        try:
            _await_topics(settings, fused=role == "fused", state=state)
            if not state.stop.is_set():
                work(settings, stages, metrics, state)
        finally:
            http.close()


class WorkerState:
    """What a worker is at: the health endpoint tells it, and `stop` ends it."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.waiting_for = "loading"
        self.worker: Worker | None = None

    def live(self) -> bool:
        return self.worker is None or self.worker.live()

    def not_ready(self) -> str | None:
        if self.stop.is_set():
            return "draining"
        return self.waiting_for if self.worker is None else self.worker.not_ready()


def _await_topics(settings: EnsembleSettings, *, fused: bool, state: WorkerState) -> None:
    """Wait for a broker, however long it takes. Raises UserError where its topics are not what the stages need."""
    admin = clients.admin(settings.kafka.client_settings())
    wanted = wanted_topics(settings, fused=fused)
    state.waiting_for = f"no broker answers at {settings.kafka.bootstrap_servers}"
    while not state.stop.is_set():
        try:
            require_topics(admin, wanted)
        except TopicError as err:
            log.warning("%s; trying again", err)
            continue
        state.waiting_for = "loading"
        return


def work(settings: EnsembleSettings, stages: Sequence[Stage], metrics: WorkerMetrics, state: WorkerState) -> None:
    """Load the stages and work until `state.stop` is set. Raises UserError, WorkerFailure."""
    names = settings.topic_names
    group = settings.group_id(stages[0])
    kafka = settings.kafka
    dead_letters = {
        stage: DeadLetters(
            kafka.consumer_settings(),
            topic=names.dead_letters,
            stage=stage,
            group=settings.group_id(stage),
            metrics=metrics.stage(stage),
        )
        for stage in stages
    }
    # Loading takes seconds; the group is joined when there is something to work with.
    makers = {stage: _MAKERS[stage](settings) for stage in stages}
    worker = Worker(
        kafka.consumer_settings(),
        kafka.producer_settings(),
        topic={"tokenize": names.requests, "encode": names.tokens, "postprocess": names.encodings}[stages[0]],
        group=group,
        client_id=f"{group}@{socket.gethostname()}:{os.getpid()}",
        intake=_intake(settings, stages[0], dead_letters[stages[0]]),
        dead_letters=dead_letters[stages[-1]],
        metrics=metrics.stage(stages[0]),
        max_in_flight_tokens=settings.batching.max_in_flight_tokens,
        commit_interval_ms=settings.commit_interval_ms,
        drain_timeout_ms=settings.drain_timeout_ms,
    )
    then = _sealed(stages[-1], settings, worker.finish)
    steps: list[Step] = []
    for stage in reversed(stages):
        step = makers[stage](then, worker.fail, dead_letters[stage], metrics)
        steps.insert(0, step)
        then = step.submit
    state.worker = worker
    try:
        worker.run(steps[0].submit, state.stop)
    finally:
        for step in steps:
            step.close()
        for each in dead_letters.values():
            each.close()


_MakeStep = Callable[[Next, Callable[[BaseException], None], DeadLetters, WorkerMetrics], Step]


def _tokenize_step(settings: EnsembleSettings) -> _MakeStep:
    stage = open_tokenize_stage(settings)
    return lambda then, fail, dead_letters, metrics: TokenizeStep(
        stage, then=then, on_failure=fail, dead_letters=dead_letters, metrics=metrics.stage("tokenize")
    )


def _encode_step(settings: EnsembleSettings) -> _MakeStep:
    stage = open_encode_stage(settings)
    batching = settings.batching
    return lambda then, fail, dead_letters, metrics: EncodeStep(
        stage,
        MicroBatcher(
            max_batch_size=batching.max_batch_size,
            max_batch_tokens=batching.max_batch_tokens,
            max_queue_delay_ms=batching.max_queue_delay_ms,
            knee_tokens=batching.knee_tokens,
        ),
        instances=settings.engine.instance_count,
        then=then,
        on_failure=fail,
        dead_letters=dead_letters,
        metrics=metrics.stage("encode"),
    )


def _postprocess_step(settings: EnsembleSettings) -> _MakeStep:
    stage = open_postprocess_stage(settings)
    return lambda then, fail, dead_letters, metrics: PostprocessStep(
        stage,
        results_topic=settings.topic_names.results,
        then=then,
        on_failure=fail,
        dead_letters=dead_letters,
        metrics=metrics.stage("postprocess"),
    )


_MAKERS: dict[Stage, Callable[[EnsembleSettings], _MakeStep]] = {
    "tokenize": _tokenize_step,
    "encode": _encode_step,
    "postprocess": _postprocess_step,
}


def _intake(settings: EnsembleSettings, stage: Stage, dead_letters: DeadLetters) -> Intake:
    match stage:
        case "tokenize":
            return RequestIntake(max_pack_size=settings.batching.max_pack_size)
        case "encode":
            return PackIntake(decode_token_pack, dead_letters=dead_letters)
        case "postprocess":
            return PackIntake(decode_encoding_pack, dead_letters=dead_letters)


def _sealed(stage: Stage, settings: EnsembleSettings, finish: Next) -> Next:
    """What a worker's last step does with a unit: its pack becomes a record, unless it was results already."""

    def seal(unit: Unit) -> None:
        if stage == "tokenize" and unit.tokens is not None:
            unit.outputs.append(_pack_record(settings.topic_names.tokens, unit.tokens))
        elif stage == "encode" and unit.encodings is not None:
            unit.outputs.append(_pack_record(settings.topic_names.encodings, unit.encodings))
        # Nothing of it is needed any more, and it waits for its delivery.
        unit.tokens = unit.encodings = None
        finish(unit)

    return seal


def _pack_record(topic: str, pack: TokenPack | EncodingPack) -> OutputRecord:
    return OutputRecord(topic, None, encode_pack(pack), [], [source_of(pack, text) for text in pack.texts])


@contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    # The handler runs inside of whatever the main thread does, which may hold the Event's lock: so a thread sets it.
    # SimpleQueue's put is made for that, it may interrupt any call of the queue's.
    signals: SimpleQueue[int] = SimpleQueue()

    def handle(number: int, _frame: FrameType | None) -> None:
        signals.put(number)

    def watch() -> None:
        while not stop.is_set():
            try:
                signals.get(timeout=_PARENT_LOOK_S)
                stop.set()
            except Empty:
                if parent_gone():
                    log.warning("the supervisor is gone: draining")
                    stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    threading.Thread(target=watch, name="signals", daemon=True).start()
    try:
        yield
    finally:
        stop.set()
        for number, handler in before.items():
            signal.signal(number, handler)
