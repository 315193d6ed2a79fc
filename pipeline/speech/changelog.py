"""Beginning anew: up to where the group has read some partitions, and what is kept of them in the changelog.

The changelog is a compacted topic: of each key the newest record is the state.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from pipeline import clients
from pipeline.clients import ClientSettings
from pipeline.group_offsets import committed_offsets
from pipeline.speech.partitions import Place

# Asking where a partition begins or ends, or what is committed.
_ASK_S = 1.0
_BLOCK_RECORDS = 1_000


class ChangelogReader:
    """Reads what is kept in some partitions, a while at a time. Its methods raise KafkaException.

    All that is committed is read, up to where the partitions end for those who read uncommitted records too: of a
    transaction whose offsets are committed the marks may still have to be written here.
    """

    def __init__(self, settings: ClientSettings, topic: str, partitions: Collection[int], *, client_id: str) -> None:
        self.kept: dict[bytes, bytes] = {}
        self._ends = _ends(settings, topic, partitions, client_id=client_id)
        self._behind = {partition for partition, end in self._ends.items() if end}
        committed = {**settings, "isolation.level": "read_committed"}
        self._reader = clients.reader(committed, client_id=client_id, tell_ends=True)
        self._reader.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in self._behind])

    def read(self, wait_s: float) -> bool:
        """Go on, for about so long where nothing comes; whether all is read."""
        messages = clients.read(self._reader, _BLOCK_RECORDS, wait_s) if self._behind else []
        for message in messages:
            error = message.error()
            if error is None:
                key, value = message.key(), message.value()
                if key is not None and value is not None:
                    self.kept[key] = value
                elif key is not None:
                    self.kept.pop(key, None)
            elif error.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(error)
            elif (message.offset() or 0) >= self._ends[message.partition() or 0]:
                self._behind.discard(message.partition() or 0)
        return not self._behind

    def close(self) -> None:
        """Read nothing more."""
        self._reader.close()


def group_offsets(consumer: Consumer, places: Iterable[Place]) -> dict[Place, int]:
    """The offset of each partition that the consumer's group goes on with: the first, where it has none. Raises
    KafkaException: among others, while a transaction is open that would move them."""
    offsets: dict[Place, int] = {}
    by_topic: dict[str, list[int]] = {}
    for topic, partition in places:
        by_topic.setdefault(topic, []).append(partition)
    for topic, partitions in by_topic.items():
        committed = committed_offsets(consumer, topic, partitions, budget_s=_ASK_S)
        for partition in partitions:
            offset = committed.get(partition)
            offsets[topic, partition] = beginning(consumer, (topic, partition)) if offset is None else offset
    return offsets


def beginning(consumer: Consumer, place: Place) -> int:
    """The oldest offset that is left. Raises KafkaException."""
    return clients.bounds(consumer, TopicPartition(*place), _ASK_S)[0]


def _ends(settings: ClientSettings, topic: str, partitions: Collection[int], *, client_id: str) -> dict[int, int]:
    """Of each partition where the next record will be, those of open transactions counted."""
    reader = clients.reader({**settings, "isolation.level": "read_uncommitted"}, client_id=client_id)
    try:
        places = [TopicPartition(topic, partition) for partition in partitions]
        return {each.partition: clients.bounds(reader, each, _ASK_S)[1] for each in places}
    finally:
        reader.close()
