"""`penstock dead-letters purge`: Kafka deletes the dead letters that are there now."""

from __future__ import annotations

import sys

from confluent_kafka import KafkaException, TopicPartition

from pipeline.broker import is_embedded
from pipeline.dead_letter_box import open_box
from pipeline.errors import UserError
from pipeline.reach import reach_broker
from pipeline.settings import EnsembleSettings
from pipeline.topics import broker_metadata

_BUDGET_S = 30.0


def purge_dead_letters(settings: EnsembleSettings, *, yes: bool) -> None:
    """Delete all up to the topic's end as it is now. Raises UserError, also where `yes` is not said."""
    admin = reach_broker(settings.kafka)
    if is_embedded(broker_metadata(admin).topics):
        raise UserError("purge: the embedded broker has no admin API and deletes nothing; it forgets all at its end")
    with open_box(settings) as reader:
        bounds = reader.bounds()
        topic = reader.topic
    ends = [TopicPartition(topic, partition, high) for partition, (low, high) in bounds.items() if low < high]
    # Offsets, not records: marks of transactions are among them.
    offsets = sum(high - low for low, high in bounds.values())
    if ends and not yes:
        raise UserError(
            f"{topic}: {offsets} offsets in {len(ends)} partitions would be deleted for good: say so with --yes"
        )
    refused: list[str] = []
    for place, future in admin.delete_records(ends, request_timeout=_BUDGET_S).items() if ends else []:
        try:
            future.result()
        except KafkaException as err:
            refused.append(f"{topic} [{place.partition}]: not deleted: {err.args[0].str()}")
    if refused:
        raise UserError(*refused)
    sys.stderr.write(f"penstock: {topic}: {offsets} offsets deleted\n" if ends else f"penstock: {topic}: is empty\n")
