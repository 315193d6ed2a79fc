"""The state of the transcripts, as their changelog has it: a compacted topic, of each key the newest record."""

from __future__ import annotations

from collections.abc import Collection

from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, TopicPartition

from pipeline import clients
from pipeline.clients import ClientSettings

# Asking where a partition ends.
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


def _ends(settings: ClientSettings, topic: str, partitions: Collection[int], *, client_id: str) -> dict[int, int]:
    """Of each partition where the next record will be, those of open transactions counted."""
    reader = clients.reader({**settings, "isolation.level": "read_uncommitted"}, client_id=client_id)
    try:
        places = [TopicPartition(topic, partition) for partition in partitions]
        return {each.partition: clients.bounds(reader, each, _ASK_S)[1] for each in places}
    finally:
        reader.close()
