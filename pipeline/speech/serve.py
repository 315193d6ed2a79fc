"""`penstock transcripts`, from settings to exit: its topics, its name in the group, its HTTP port, its signals."""

from __future__ import annotations

import logging
import os
import socket
from functools import partial

from confluent_kafka import Consumer
from confluent_kafka.admin import AdminClient

from pipeline import clients
from pipeline.broker import is_embedded
from pipeline.clients import ClientSettings
from pipeline.clock import now_ms
from pipeline.instance import claim_instance
from pipeline.metrics import WorkerMetrics
from pipeline.model_tasks import require_speech
from pipeline.settings import EnsembleSettings
from pipeline.speech.delivery import OrderedDelivery, TransactionalDelivery, TranscriptsDelivery
from pipeline.speech.worker import TranscriptsWorker
from pipeline.supervisor import RESTARTS
from pipeline.topics import MAX_RECORD_BYTES, WantedTopic, broker_metadata, require_topics, speech_topics, wanted_topics
from pipeline.up import make_missing
from pipeline.worker_health import OnError
from pipeline.worker_process import WorkerState, await_broker, open_http, stopped_by_signals

log = logging.getLogger("penstock.transcripts")

# The new protocol has no names that a killed member can take again at once (pipeline.clients).
_OF_THE_NEW_PROTOCOL = frozenset({"group.protocol", "group.remote.assignor"})
_OWNED: dict[str, str | int | float | bool] = {
    # The same partitions of all topics to the same member.
    "partition.assignment.strategy": "range",
    "enable.partition.eof": True,
    # Only then the group tells offsets when no transaction that would move them is open.
    "isolation.level": "read_committed",
}
# What is sent and kept may be as large as its topics allow.
_OWNED_BY_PRODUCER: dict[str, str | int | float | bool] = {"message.max.bytes": MAX_RECORD_BYTES}
# The embedded broker keeps a dead member's partitions until its session has ended, whatever its name is.
_EMBEDDED: dict[str, str | int | float | bool] = {"session.timeout.ms": 3_000, "heartbeat.interval.ms": 500}


def serve_transcripts(
    settings: EnsembleSettings, *, http_port: int | None = None, instance_name: str | None = None
) -> None:
    """Run until SIGTERM or SIGINT, then finish what is begun and leave.

    Raises UserError where a person must act, WorkerFailure where a fresh start may help.
    """
    require_speech(settings)
    metrics = WorkerMetrics(settings.name, restarts=int(os.environ.get(RESTARTS, "0")))
    state = WorkerState()
    instance = claim_instance(settings.transcripts_group, wanted=instance_name)
    with stopped_by_signals(state.stop):
        http = open_http(settings, settings.http_port("transcripts"), http_port, metrics, state)
        name = instance.name or "a new member"
        log.info("transcripts of %s as %s: http on %s:%d", settings.name, name, http.host, http.port)
        try:
            embedded = await_broker(settings, partial(_prepare, settings), state=state)
            if embedded is not None:
                worker = transcripts_worker(settings, metrics, name=instance.name, embedded=embedded)
                state.workers = [worker]
                worker.run(state.stop.is_set)
                refused = {f"dead letter: {reason}": count for reason, count in worker.desk.refused.items()}
                counts = sorted([*worker.desk.counts.items(), *refused.items()])
                log.info("stopped: %s", ", ".join(f"{name} {count}" for name, count in counts if count) or "idle")
        finally:
            http.close()
            instance.release()


def transcripts_worker(
    settings: EnsembleSettings, metrics: WorkerMetrics, *, name: str | None, embedded: bool
) -> TranscriptsWorker:
    """A member of the transcripts' group, of a name in it if it has one. Raises UserError."""
    kafka, group = settings.kafka, settings.transcripts_group
    client_id = f"{group}@{name or f'{socket.gethostname()}:{os.getpid()}'}"
    stage = metrics.stage("transcripts", computes=False)

    def connect(on_error: OnError) -> Consumer:
        return clients.consumer(
            consumer_settings(kafka.consumer_settings(), embedded=embedded),
            group=group,
            client_id=client_id,
            instance=None if embedded else name,
            on_error=on_error,
            on_commit=lambda _error, _places: None,
        )

    producer_settings = kafka.producer_settings() | _OWNED_BY_PRODUCER

    def deliver(worker: TranscriptsWorker) -> TranscriptsDelivery:
        if embedded:
            producer = clients.producer(producer_settings, client_id=client_id, on_error=worker.health.on_passing_error)
            return OrderedDelivery(producer, commit_interval_ms=settings.commit_every_ms, clock_ms=now_ms)
        return TransactionalDelivery(
            partial(
                clients.transactional_producer,
                producer_settings,
                transactional_id=client_id,
                client_id=client_id,
                on_error=worker.health.on_passing_error,
            ),
            topic=settings.speech_topic_names.speech,
            metrics=stage,
            clock_ms=now_ms,
        )

    return TranscriptsWorker(settings, connect=connect, deliver=deliver, metrics=stage)


def consumer_settings(said: ClientSettings, *, embedded: bool) -> ClientSettings:
    """A member's, from those that the file says for the stages' consumers."""
    kept = {name: value for name, value in said.items() if name not in _OF_THE_NEW_PROTOCOL}
    return (_EMBEDDED if embedded else {}) | kept | _OWNED


def _prepare(settings: EnsembleSettings, admin: AdminClient) -> bool:
    """Make the topics that are missing; whether the broker is an embedded one."""
    wanted = [*_ensemble_topics(settings), *speech_topics(settings)]
    for topic in make_missing(settings, admin, wanted):
        log.info("made topic %s", topic)
    require_topics(admin, wanted)
    return is_embedded(broker_metadata(admin).topics)


def _ensemble_topics(settings: EnsembleSettings) -> list[WantedTopic]:
    names = settings.topic_names
    mine = (names.requests, names.results, names.dead_letters)
    return [topic for topic in wanted_topics(settings, fused=True) if topic.name in mine]
