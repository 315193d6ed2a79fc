"""A consumer group's committed offsets, and what lies behind them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from confluent_kafka import OFFSET_BEGINNING, OFFSET_INVALID, Consumer, KafkaError, KafkaException, TopicPartition

from pipeline import clients
from pipeline.clients import ClientSettings
from pipeline.deadline import Deadline
from pipeline.errors import WorkerFailure

# The coordinator answers when no transaction that would change them is open: one that a killed worker left is ended
# after 10 s (transaction.timeout.ms).
_BUDGET_S = 20.0
# A group's coordinator has just been found, or has moved: the next answer comes from the right one.
_MOVING = frozenset(
    {
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    }
)


def committed_offsets(
    consumer: Consumer, topic: str, partitions: Sequence[int], *, budget_s: float = _BUDGET_S
) -> dict[int, int]:
    """Of the consumer's group, where there are any. Raises KafkaException where one of them can't be told: that is not
    the same as none."""
    places = [TopicPartition(topic, partition) for partition in partitions]

    def ask(left_s: float) -> list[TopicPartition]:
        found = consumer.committed(places, timeout=left_s)
        refused = next((each.error for each in found if each.error is not None), None)
        if refused is not None:
            raise KafkaException(refused)
        return found

    found = clients.while_moving(ask, _MOVING, budget_s) if places else []
    return {each.partition: each.offset for each in found if each.offset != OFFSET_INVALID}


def next_offsets(
    consumer: Consumer, places: Iterable[tuple[str, int]], *, budget_s: float = _BUDGET_S
) -> dict[tuple[str, int], int]:
    """Of each topic's partition the offset that the consumer's group goes on with: the oldest that is left, where it
    has none. Raises KafkaException: among others, while a transaction is open that would move them."""
    offsets: dict[tuple[str, int], int] = {}
    by_topic: dict[str, list[int]] = {}
    for topic, partition in places:
        by_topic.setdefault(topic, []).append(partition)
    for topic, partitions in by_topic.items():
        committed = committed_offsets(consumer, topic, partitions, budget_s=budget_s)
        for partition in partitions:
            offset = committed.get(partition)
            if offset is None:
                offset, _ = clients.bounds(consumer, TopicPartition(topic, partition), budget_s)
            offsets[topic, partition] = offset
    return offsets


def ask_committed_offsets(
    settings: ClientSettings, group: str, topic: str, partitions: Sequence[int]
) -> dict[int, int]:
    """The same by a client of its own, which joins nothing. For threads that have no consumer: one that is polled lets
    no other thread in (confluent-kafka 2.16)."""
    reader = clients.reader(settings, client_id=group)
    try:
        return committed_offsets(reader, topic, partitions)
    finally:
        reader.close()


def has_backlog(settings: ClientSettings, group: str, topic: str, partitions: Sequence[int]) -> bool:
    """Whether a record lies behind the group's committed offsets. Raises WorkerFailure where the broker doesn't say.

    Records are read, not counted by offsets: transactions leave marks that have offsets too.
    """
    reader = clients.reader(settings, client_id=group, tell_ends=True)
    deadline = Deadline(_BUDGET_S)
    try:
        committed = committed_offsets(reader, topic, partitions)
        reader.assign(
            [TopicPartition(topic, partition, committed.get(partition, OFFSET_BEGINNING)) for partition in partitions]
        )
        ended: set[int | None] = set()
        while len(ended) < len(partitions):
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
