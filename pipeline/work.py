"""Work: from an ensemble's settings to a worker with its steps and its way of delivery, until it is told to stop.

A worker runs one stage over topics, or, fused, all three from requests to results. Of an ensemble with lanes it is a
reader for each: topics, a group, a bound and a delivery of its own; the steps are shared, and a unit goes back to the
reader that has read it.
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
from pipeline.clock import now_ms
from pipeline.dead_letters import DeadLetters
from pipeline.deadline import Deadline
from pipeline.delivery import Delivery
from pipeline.emitter import Emitter
from pipeline.exactly_once import ExactlyOnce
from pipeline.group_offsets import ask_committed_offsets
from pipeline.instance import Instance
from pipeline.lines import Unit
from pipeline.metrics import StageMetrics, WorkerMetrics
from pipeline.orphans import OrphanSearch
from pipeline.settings import EnsembleSettings, Stage
from pipeline.share_group import ONE_PACK_A_BATCH
from pipeline.share_work import share_worker
from pipeline.share_worker import ShareWorker
from pipeline.step_makers import Makers, intake_of, load_stages, sealed
from pipeline.steps import Next, Step
from pipeline.transactions import TransactionLane
from pipeline.worker import OnCommit, Worker
from pipeline.worker_health import OnError
from pipeline.worker_process import WorkerState

# What a step computes when the worker has drained or given up is of no use; its threads only have to see that.
_END_S = 3.0


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
    name = instance.name if instance is not None else None
    lanes = [*settings.by_lane().values()]
    groups = {lane.topic_names.requests: lane.group_id(stages[0]) for lane in lanes}
    readers = [_Reader(lane, stages, metrics, name, groups) for lane in lanes]
    # Loading takes its time, in which the clients find their brokers; the group is joined when there is something to
    # work with.
    makers = makers or load_stages(settings, stages)
    # Half a million objects of libraries live as long as the process: nothing of them is garbage.
    gc.freeze()

    def fail(err: BaseException) -> None:
        for reader in readers:
            reader.worker.fail(err)

    by_topic = {reader.topic: reader for reader in readers}
    then: Next = readers[0].finish
    if len(readers) > 1:
        then = lambda unit: by_topic[unit.records[0].source.topic].finish(unit)  # noqa: E731
    steps: list[Step] = []
    for stage in reversed(stages):
        step = makers[stage](then, fail, readers[0].dead_letters[stage], metrics)
        steps.insert(0, step)
        then = step.submit
    state.workers = workers = [reader.worker for reader in readers]
    try:
        _run(workers, steps[0].submit, state.stop.is_set)
    finally:
        deadline = Deadline(_END_S)
        for step in steps:
            step.close(deadline)
        for reader in readers:
            reader.close()


class _Reader:
    """What reads one lane's topic, and delivers what was made of it. `settings` are the lane's."""

    def __init__(
        self,
        settings: EnsembleSettings,
        stages: Sequence[Stage],
        metrics: WorkerMetrics,
        name: str | None,
        groups: Mapping[str, str],
    ) -> None:
        names = settings.topic_names
        self.topic = {"tokenize": names.requests, "encode": names.tokens, "postprocess": names.encodings}[stages[0]]
        group = settings.group_id(stages[0])
        client_id = f"{group}@{name or f'{socket.gethostname()}:{os.getpid()}'}"
        self.dead_letters = {
            stage: DeadLetters(
                settings.kafka.consumer_settings(),
                topic=names.dead_letters,
                stage=stage,
                group=group,
                metrics=metrics.stage(stage),
                header_style=settings.dead_letters.header_style,
                groups=groups,
            )
            for stage in stages
        }
        self.worker = self._worker(settings, stages, metrics.stage(stages[0]), group, client_id, name)
        self.finish = sealed(stages[-1], settings, self.worker.finish)

    def close(self) -> None:
        for each in self.dead_letters.values():
            each.close()

    def _worker(
        self,
        settings: EnsembleSettings,
        stages: Sequence[Stage],
        metrics: StageMetrics,
        group: str,
        client_id: str,
        name: str | None,
    ) -> Worker | ShareWorker:
        intake = intake_of(settings, stages[0], self.dead_letters[stages[0]])
        if stages[0] == "encode" and settings.encode_order == "none":
            letters = self.dead_letters["encode"]
            return share_worker(settings, intake=intake, dead_letters=letters, client_id=client_id, metrics=metrics)

        def connect(on_error: OnError, on_commit: OnCommit) -> Consumer:
            return clients.consumer(
                settings.kafka.consumer_settings(),
                group=group,
                client_id=client_id,
                instance=name,
                on_error=on_error,
                on_commit=on_commit,
            )

        return Worker(
            topic=self.topic,
            connect=connect,
            deliver=lambda worker: deliver(
                settings, worker, topic=self.topic, group=group, client_id=client_id, metrics=metrics
            ),
            intake=intake,
            dead_letters=self.dead_letters[stages[-1]],
            metrics=metrics,
            max_in_flight_tokens=settings.batching.max_in_flight_tokens,
            commit_interval_ms=settings.commit_every_ms,
            drain_timeout_ms=settings.drain_timeout_ms,
            read_delay_ms=settings.batching.pack_delay_ms if stages[0] == "tokenize" else 0,
            orphans=orphan_search(settings, group=group, topic=self.topic, name=name),
        )


def _run(workers: Sequence[Worker | ShareWorker], submit: Callable[[Unit], None], stopped: Callable[[], bool]) -> None:
    """All of them, each on a thread of its own, the first on this one; where one fails the others drain and stop.
    Raises the first one's WorkerFailure."""
    failures: list[BaseException] = []

    def run(worker: Worker | ShareWorker) -> None:
        try:
            worker.run(submit, lambda: stopped() or bool(failures))
        except BaseException as err:  # noqa: BLE001 - it is raised again where all have ended
            failures.append(err)

    threads = [threading.Thread(target=run, args=(worker,), name="lane") for worker in workers[1:]]
    for thread in threads:
        thread.start()
    run(workers[0])
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def deliver(
    settings: EnsembleSettings, worker: Worker, *, topic: str, group: str, client_id: str, metrics: StageMetrics
) -> Delivery:
    """What delivers a worker's units, by the ensemble's promise."""
    kafka: clients.ClientSettings = settings.kafka.producer_settings()
    if settings.encode_order == "none" and topic == settings.topic_names.requests:
        kafka = {**kafka, **ONE_PACK_A_BATCH}
    if settings.delivery == "at_least_once":
        return Emitter(
            clients.producer(kafka, client_id=client_id, on_error=worker.health.on_error),
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
                    on_error=worker.health.on_passing_error,
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
