"""Work: from an ensemble's settings to a worker with its steps and its way of delivery, until it is told to stop.

A worker runs one stage over topics, or, fused, all three from requests to results.
"""

from __future__ import annotations

import gc
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from confluent_kafka import Consumer

from pipeline import clients
from pipeline.assembly import open_encode_stage, open_postprocess_stage, open_tokenize_stage
from pipeline.clock import now_ms
from pipeline.dead_letters import DeadLetters
from pipeline.deadline import Deadline
from pipeline.delivery import Delivery
from pipeline.emitter import Emitter
from pipeline.engine_settings import BatchingSettings
from pipeline.exactly_once import ExactlyOnce
from pipeline.group_offsets import ask_committed_offsets
from pipeline.instance import Instance
from pipeline.intake import Intake, PackIntake, RequestIntake
from pipeline.lines import Unit
from pipeline.metrics import StageMetrics, WorkerMetrics
from pipeline.orphans import OrphanSearch
from pipeline.settings import EnsembleSettings, Stage
from pipeline.share_group import ONE_PACK_A_BATCH
from pipeline.share_work import share_worker
from pipeline.share_worker import ShareWorker
from pipeline.steps import EncodeStep, Next, PostprocessStep, Step, TokenizeStep
from pipeline.transactions import TransactionLane
from pipeline.worker import OnCommit, OnError, Worker
from schemas.packs import (
    EncodingPack,
    TokenPack,
    decode_encoding_pack,
    decode_token_pack,
    encode_pack,
    sources_of,
)
from schemas.records import OutputRecord
from schemas.regrouping import joined_encodings, joined_tokens, parted
from stages.encode import EncodeStage
from stages.microbatcher import MicroBatcher
from stages.postprocess import PostprocessStage
from stages.window_queue import Window

# What a step computes when the worker has drained or given up is of no use; its threads only have to see that.
_END_S = 3.0

# Of a pack's numbers of tokens: half of what a record may have, so that a text of that size still has room.
_MOST_NUMBERS_BYTES = 8 << 20

_MakeStep = Callable[[Next, Callable[[BaseException], None], DeadLetters, WorkerMetrics], Step]
Makers = Mapping[Stage, _MakeStep]


class WorkerState:
    """What a worker is at: the health endpoint tells it, and `stop` ends it."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.waiting_for = "loading"
        self.worker: Worker | ShareWorker | None = None

    def live(self) -> bool:
        return self.worker is None or self.worker.live()

    def not_ready(self) -> str | None:
        if self.stop.is_set():
            return "draining"
        return self.waiting_for if self.worker is None else self.worker.not_ready()


def work(
    settings: EnsembleSettings,
    stages: Sequence[Stage],
    metrics: WorkerMetrics,
    state: WorkerState,
    *,
    instance: Instance | None = None,
    makers: Makers | None = None,
) -> None:
    """Load the stages, unless that is done, and work until `state.stop` is set. Without an `instance` the worker is new
    to its group.

    Raises UserError, WorkerFailure.
    """
    names = settings.topic_names
    topic = {"tokenize": names.requests, "encode": names.tokens, "postprocess": names.encodings}[stages[0]]
    group = settings.group_id(stages[0])
    name = instance.name if instance is not None else None
    client_id = f"{group}@{name or f'{socket.gethostname()}:{os.getpid()}'}"
    own_metrics = metrics.stage(stages[0])
    dead_letters = {
        stage: DeadLetters(
            settings.kafka.consumer_settings(),
            topic=names.dead_letters,
            stage=stage,
            group=group,
            metrics=metrics.stage(stage),
            header_style=settings.dead_letters.header_style,
        )
        for stage in stages
    }

    def connect(on_error: OnError, on_commit: OnCommit) -> Consumer:
        return clients.consumer(
            settings.kafka.consumer_settings(),
            group=group,
            client_id=client_id,
            instance=name,
            on_error=on_error,
            on_commit=on_commit,
        )

    intake = intake_of(settings, stages[0], dead_letters[stages[0]])
    worker: Worker | ShareWorker
    if stages[0] == "encode" and settings.encode_order == "none":
        worker = share_worker(
            settings, intake=intake, dead_letters=dead_letters["encode"], client_id=client_id, metrics=own_metrics
        )
    else:
        worker = Worker(
            topic=topic,
            connect=connect,
            deliver=lambda worker: deliver(
                settings, worker, topic=topic, group=group, client_id=client_id, metrics=own_metrics
            ),
            intake=intake,
            dead_letters=dead_letters[stages[-1]],
            metrics=own_metrics,
            max_in_flight_tokens=settings.batching.max_in_flight_tokens,
            commit_interval_ms=settings.commit_every_ms,
            drain_timeout_ms=settings.drain_timeout_ms,
            read_delay_ms=settings.batching.pack_delay_ms if stages[0] == "tokenize" else 0,
            orphans=orphan_search(settings, group=group, topic=topic, name=name),
        )
    # Loading takes its time, in which the clients find their brokers; the group is joined when there is something to
    # work with.
    makers = makers or load_stages(settings, stages)
    # Half a million objects of libraries live as long as the process: nothing of them is garbage.
    gc.freeze()
    then = sealed(stages[-1], settings, worker.finish)
    steps: list[Step] = []
    for stage in reversed(stages):
        step = makers[stage](then, worker.fail, dead_letters[stage], metrics)
        steps.insert(0, step)
        then = step.submit
    state.worker = worker
    try:
        worker.run(steps[0].submit, state.stop.is_set)
    finally:
        deadline = Deadline(_END_S)
        for step in steps:
            step.close(deadline)
        for each in dead_letters.values():
            each.close()


def load_stages(settings: EnsembleSettings, stages: Sequence[Stage]) -> Makers:
    """What takes seconds: tokenizer, model, engine. Raises UserError, WorkerFailure."""
    return {stage: _MAKERS[stage](settings) for stage in stages}


def deliver(
    settings: EnsembleSettings, worker: Worker, *, topic: str, group: str, client_id: str, metrics: StageMetrics
) -> Delivery:
    """What delivers a worker's units, by the ensemble's promise."""
    kafka: clients.ClientSettings = settings.kafka.producer_settings()
    if settings.encode_order == "none" and topic == settings.topic_names.requests:
        kafka = {**kafka, **ONE_PACK_A_BATCH}
    if settings.delivery == "at_least_once":
        return Emitter(
            clients.producer(kafka, client_id=client_id, on_error=worker.on_error),
            on_arrived=worker.arrived,
            oversized=worker.oversized,
            on_failure=worker.fail,
            metrics=metrics,
        )
    transactions = settings.transactions
    return ExactlyOnce(
        [
            TransactionLane(
                topic=topic,
                connect=partial(
                    clients.transactional_producer,
                    kafka,
                    transactional_id=f"{client_id}.{number}",
                    client_id=client_id,
                    on_error=worker.on_passing_error,
                ),
                membership=worker.membership,
                committed=partial(ask_committed_offsets, settings.kafka.consumer_settings(), group, topic),
                on_arrived=worker.arrived,
                oversized=worker.oversized,
                metrics=metrics,
                commit_interval_ms=settings.commit_every_ms,
                max_records=transactions.max_records,
                clock_ms=now_ms,
            )
            for number in range(min(transactions.producers, settings.topics.partitions))
        ],
        on_failure=worker.fail,
    )


def orphan_search(settings: EnsembleSettings, *, group: str, topic: str, name: str | None) -> OrphanSearch | None:
    """What looks for partitions that are nobody's: for a member of a `name` in a classic group."""
    if name is None or not clients.is_classic(settings.kafka.consumer_settings()):
        return None
    return OrphanSearch(
        partial(clients.admin, settings.kafka.client_settings()),
        group=group,
        topic=topic,
        name=name,
        hand_over_ms=settings.drain_timeout_ms,
    )


def _tokenize_step(settings: EnsembleSettings) -> _MakeStep:
    stage = open_tokenize_stage(settings)
    return lambda then, fail, dead_letters, metrics: TokenizeStep(
        stage, then=then, on_failure=fail, dead_letters=dead_letters, metrics=metrics.stage("tokenize")
    )


def _encode_step(settings: EnsembleSettings) -> _MakeStep:
    return encode_step(open_encode_stage(settings), settings)


def encode_step(stage: EncodeStage, settings: EnsembleSettings) -> _MakeStep:
    """What makes the step of a stage that is open."""
    return lambda then, fail, dead_letters, metrics: EncodeStep(
        stage,
        micro_batcher(settings.batching),
        then=then,
        on_failure=fail,
        dead_letters=dead_letters,
        metrics=metrics.stage("encode"),
        threads=settings.engine.batches_at_once,
        lanes=[*settings.batching.lanes],
    )


def micro_batcher(batching: BatchingSettings) -> MicroBatcher[Window[Unit]]:
    """A queue for an encode step."""
    return MicroBatcher(
        max_batch_size=batching.max_batch_size,
        max_batch_tokens=batching.max_batch_tokens,
        max_queue_delay_ms=batching.max_queue_delay_ms,
        knee_tokens=batching.knee_tokens,
        weights=[*batching.lanes.values()],
    )


def _postprocess_step(settings: EnsembleSettings) -> _MakeStep:
    return postprocess_step(open_postprocess_stage(settings), settings)


def postprocess_step(stage: PostprocessStage, settings: EnsembleSettings) -> _MakeStep:
    """What makes the step of a stage that is open."""
    return lambda then, fail, dead_letters, metrics: PostprocessStep(
        stage,
        results_topic=settings.topic_names.results,
        then=then,
        on_failure=fail,
        dead_letters=dead_letters,
        metrics=metrics.stage("postprocess"),
        answer_superseded=settings.requests.answer_superseded,
    )


_MAKERS: dict[Stage, Callable[[EnsembleSettings], _MakeStep]] = {
    "tokenize": _tokenize_step,
    "encode": _encode_step,
    "postprocess": _postprocess_step,
}


def intake_of(settings: EnsembleSettings, stage: Stage, dead_letters: DeadLetters) -> Intake:
    match stage:
        case "tokenize":
            return RequestIntake(max_pack_size=settings.batching.max_pack_size)
        case "encode":
            return PackIntake(
                decode_token_pack,
                joined_tokens,
                max_pack_size=settings.batching.max_pack_size,
                requests_topic=settings.topic_names.requests,
                dead_letters=dead_letters,
            )
        case "postprocess":
            return PackIntake(
                decode_encoding_pack,
                joined_encodings,
                max_pack_size=settings.batching.max_pack_size,
                requests_topic=settings.topic_names.requests,
                dead_letters=dead_letters,
            )


def sealed(stage: Stage, settings: EnsembleSettings, finish: Next) -> Next:
    """What a worker's last step does with a unit: its pack becomes a record, unless it was results already."""

    def seal(unit: Unit) -> None:
        if stage == "tokenize" and unit.tokens is not None:
            unit.outputs.append(_pack_record(settings.topic_names.tokens, unit.tokens))
        elif stage == "encode" and unit.encodings is not None:
            for part in parted(unit.encodings, most_bytes=_MOST_NUMBERS_BYTES):
                unit.outputs.append(_pack_record(settings.topic_names.encodings, part))
        # Nothing of it is needed any more, and it waits for its delivery.
        unit.tokens = unit.encodings = None
        finish(unit)

    return seal


def _pack_record(topic: str, pack: TokenPack | EncodingPack) -> OutputRecord:
    return OutputRecord(topic, None, encode_pack(pack), [], sources_of(pack))
