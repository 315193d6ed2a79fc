"""The state of the transcripts, as their changelog has it: a compacted topic, of each key the newest record."""

from __future__ import annotations

from collections.abc import Collection

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from pipeline import clients
from pipeline.clients import ClientSettings
from pipeline.deadline import Deadline
from pipeline.errors import WorkerFailure

# A broker that has nothing to say for this long is away; a transaction that nobody ends is ended in half of it.
_BUDGET_S = 40.0
_LOOK_S = 0.1
_BLOCK_RECORDS = 1_000


def read_changelog(
    settings: ClientSettings, topic: str, partitions: Collection[int], *, client_id: str
) -> dict[bytes, bytes]:
    """What is kept in these partitions. Raises WorkerFailure where the broker doesn't say.

    All that is committed is read, up to where the partition ends for those who read uncommitted records too: a
    transaction whose offsets are committed may still have its marks written here.
    """
    ends = _ends(settings, topic, partitions, client_id)
    kept: dict[bytes, bytes] = {}
    behind = {partition for partition, end in ends.items() if end}
    if not behind:
        return kept
    with clients.failures(topic):
        reader = clients.reader({**settings, "isolation.level": "read_committed"}, client_id=client_id, tell_ends=True)
        try:
            reader.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in behind])
            _read(reader, topic, ends, behind, kept)
        finally:
            reader.close()
    return kept


def _read(reader: Consumer, topic: str, ends: dict[int, int], behind: set[int], kept: dict[bytes, bytes]) -> None:
    deadline = Deadline(_BUDGET_S)
    while behind:
        messages = clients.read(reader, _BLOCK_RECORDS, _LOOK_S)
        if messages:
            deadline = Deadline(_BUDGET_S)
        elif deadline.expired:
            raise WorkerFailure(f"{topic} {sorted(behind)}: no answer within {_BUDGET_S:g} s")
        for message in messages:
            partition, error = message.partition(), message.error()
            assert partition is not None
            if error is None:
                key, value = message.key(), message.value()
                if key is not None and value is not None:
                    kept[key] = value
                elif key is not None:
                    kept.pop(key, None)
            elif error.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(error)
            elif (message.offset() or 0) >= ends[partition]:
                behind.discard(partition)


def _ends(settings: ClientSettings, topic: str, partitions: Collection[int], client_id: str) -> dict[int, int]:
    """Of each partition where the next record will be; 0 where nothing was ever written."""
    with clients.failures(topic):
        reader = clients.reader({**settings, "isolation.level": "read_uncommitted"}, client_id=client_id)
        try:
            places = [TopicPartition(topic, partition) for partition in partitions]
            return {each.partition: clients.bounds(reader, each, _BUDGET_S)[1] for each in places}
        finally:
            reader.close()
