"""From an ensemble's settings to the share group's encode worker."""

from __future__ import annotations

from confluent_kafka import KafkaException

from pipeline import clients
from pipeline.dead_letters import DeadLetters
from pipeline.emitter import Emitter
from pipeline.intake import Intake
from pipeline.metrics import StageMetrics
from pipeline.settings import EnsembleSettings
from pipeline.share_worker import ShareWorker

# Asking whether a broker that was away is back; the thread that asks is the one that polls.
_BROKER_LOOK_S = 0.2


def share_worker(
    settings: EnsembleSettings, *, intake: Intake, dead_letters: DeadLetters, client_id: str, metrics: StageMetrics
) -> ShareWorker:
    """A worker that shares the encode stage's packs with others, at least once."""
    kafka = settings.kafka
    topic = settings.topic_names.tokens
    admin = clients.admin(kafka.client_settings())

    def broker_answers() -> bool:
        try:
            admin.list_topics(topic, timeout=_BROKER_LOOK_S)
        except KafkaException:
            return False
        return True

    return ShareWorker(
        topic=topic,
        connect=lambda on_error: clients.share_consumer(
            kafka.client_settings(),
            group=settings.group_id("encode"),
            client_id=client_id,
            max_poll_records=settings.share_group.packs_per_poll,
            on_error=on_error,
        ),
        deliver=lambda worker: Emitter(
            clients.producer(kafka.producer_settings(), client_id=client_id, on_error=worker.health.on_error),
            on_arrived=worker.arrived,
            oversized=worker.oversized,
            on_failure=worker.fail,
            metrics=metrics,
        ),
        intake=intake,
        dead_letters=dead_letters,
        metrics=metrics,
        max_in_flight_tokens=settings.batching.max_in_flight_tokens,
        max_deliveries=settings.share_group.max_deliveries,
        drain_timeout_ms=settings.drain_timeout_ms,
        broker_answers=broker_answers,
    )
