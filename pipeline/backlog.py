"""What lies in a topic that a consumer group has not committed."""

from __future__ import annotations

from collections.abc import Sequence

from confluent_kafka import OFFSET_BEGINNING, OFFSET_INVALID, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import ClusterMetadata  # type: ignore[attr-defined]  # exported, but not in mypy's sense

from pipeline import clients
from pipeline.deadline import Deadline
from pipeline.errors import UserError, WorkerFailure
from pipeline.kafka_settings import KafkaSettings
from pipeline.settings import STAGES, EnsembleSettings

# A broker answers in milliseconds, and one that is just starting in a few seconds.
_BUDGET_S = 20.0


def require_no_packs(settings: EnsembleSettings, metadata: ClusterMetadata) -> None:
    """Raises UserError where packs wait between the stages: a fused worker doesn't read them, and their requests are
    committed."""
    names = settings.topic_names
    for stage, topic in zip(STAGES[1:], (names.tokens, names.encodings), strict=True):
        partitions = [*metadata.topics[topic].partitions] if topic in metadata.topics else []
        if has_backlog(settings.kafka, settings.group_id(stage), topic, partitions):
            raise UserError(
                f"{topic}: holds packs that {stage} has not answered, and --fused would leave them: run the stages "
                "apart (without --fused) until they are, or delete the topic to give them up"
            )


def has_backlog(kafka: KafkaSettings, group: str, topic: str, partitions: Sequence[int]) -> bool:
    """Whether a record lies behind the group's committed offsets. Raises WorkerFailure where the broker doesn't say.

    Records are read, not counted by offsets: transactions leave marks that have offsets too.
    """
    reader = clients.reader(kafka.consumer_settings(), client_id=group, tell_ends=True)
    deadline = Deadline(_BUDGET_S)
    places = [TopicPartition(topic, partition) for partition in partitions]
    try:
        committed = reader.committed(places, timeout=deadline.remaining_s()) if places else []
        for place in committed:
            if place.offset == OFFSET_INVALID:
                place.offset = OFFSET_BEGINNING
        reader.assign(committed)
        ended: set[int | None] = set()
        while len(ended) < len(places):
            message = reader.poll(deadline.remaining_s())
            if message is None:
                raise WorkerFailure(f"{topic}: no answer within {_BUDGET_S:g} s")
            error = message.error()
            if error is None:
                return True
            if error.code() == KafkaError._PARTITION_EOF:
                ended.add(message.partition())
    except KafkaException as err:
        raise WorkerFailure(f"{topic}: {err.args[0].str()}") from err
    finally:
        reader.close()
    return False
