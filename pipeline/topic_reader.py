"""What a topic holds now, read partition by partition: for commands that end, and for topics of any length.

It joins no consumer group; a group's committed offsets are read and written by name, where one is wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType

from confluent_kafka import OFFSET_END, OFFSET_INVALID, KafkaError, KafkaException, Message, TopicPartition

from pipeline import clients
from pipeline.clients import ClientSettings
from pipeline.deadline import Deadline
from pipeline.errors import WorkerFailure

# A broker that has nothing to say for this long, about records that it has, is away.
_BUDGET_S = 60.0
# How late Ctrl-C is noticed: nothing interrupts librdkafka while it waits.
_POLL_S = 0.2
# A block is what came first and what has come with it.
_BLOCK_RECORDS = 500
_COLLECT_S = 0.001

Bounds = tuple[int, int]


class TopicReader:
    """One topic's partitions. All of its methods raise WorkerFailure where no broker answers.

    `group` is whose committed offsets `committed` and `commit` mean; without one it is no group's.
    """

    def __init__(
        self, settings: ClientSettings, topic: str, partitions: Sequence[int], *, client_id: str, group: str = ""
    ) -> None:
        self.topic = topic
        self.partitions = partitions
        self._consumer = clients.reader(settings, client_id=group or client_id, tell_ends=True)

    def __enter__(self) -> TopicReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._consumer.close()

    def bounds(self) -> dict[int, Bounds]:
        """Of each partition the oldest offset that is left, and the one that the next record will have."""
        with clients.failures(self.topic):
            places = [TopicPartition(self.topic, partition) for partition in self.partitions]
            return {place.partition: clients.bounds(self._consumer, place, _BUDGET_S) for place in places}

    def offsets_at(self, milliseconds: int) -> dict[int, int | None]:
        """Of each partition the first record's offset that is no older than this; None where there is none.

        The embedded broker says None of all.
        """
        places = [TopicPartition(self.topic, partition, milliseconds) for partition in self.partitions]
        with clients.failures(self.topic):
            found = self._consumer.offsets_for_times(places, timeout=_BUDGET_S)
            _raise_first_error(found)
        return {each.partition: each.offset if each.offset != OFFSET_END else None for each in found}

    def blocks(self, partition: int, start: int, end: int) -> Iterator[list[Message]]:
        """The partition's records from `start` on and below `end`, in order.

        Ends too where the partition does: the last offsets may be a transaction's marks, which are no records.
        """
        if start >= end:
            return
        with clients.failures(self.topic):
            self._consumer.assign([TopicPartition(self.topic, partition, start)])
            position = start
            while position < end:
                messages, ended = self._next(partition)
                block = [message for message in messages if _offset(message) < end]
                if block:
                    position = _offset(messages[-1]) + 1
                    yield block
                if ended or len(block) < len(messages):
                    return

    def committed(self) -> dict[int, TopicPartition]:
        """The group's committed places, with the metadata that stands beside each."""
        places = [TopicPartition(self.topic, partition) for partition in self.partitions]
        with clients.failures(self.topic):
            found = self._consumer.committed(places, timeout=_BUDGET_S)
            _raise_first_error(found)
        return {each.partition: each for each in found if each.offset != OFFSET_INVALID}

    def commit(self, places: Mapping[int, tuple[int, str]]) -> None:
        """Commit an offset with its metadata for each partition."""
        offsets = [
            TopicPartition(self.topic, partition, offset, metadata) for partition, (offset, metadata) in places.items()
        ]
        with clients.failures(self.topic):
            _raise_first_error(self._consumer.commit(offsets=offsets, asynchronous=False) if offsets else [])

    def _next(self, partition: int) -> tuple[list[Message], bool]:
        """Some records, and whether the partition's end was seen."""
        deadline = Deadline(_BUDGET_S)
        while not (arrived := self._consumer.consume(1, _POLL_S)):
            if deadline.expired:
                raise WorkerFailure(f"{self.topic} [{partition}]: no answer within {_BUDGET_S:g} s")
        arrived += self._consumer.consume(_BLOCK_RECORDS - 1, _COLLECT_S)
        messages: list[Message] = []
        ended = False
        for message in arrived:
            error = message.error()
            if error is None:
                messages.append(message)
            elif error.code() == KafkaError._PARTITION_EOF:
                ended = True
            else:
                raise WorkerFailure(f"{self.topic} [{partition}]: {error.str()}")
        return messages, ended


def _raise_first_error(places: Iterable[TopicPartition]) -> None:
    for each in places:
        if each.error is not None:
            raise KafkaException(each.error)


def _offset(message: Message) -> int:
    offset = message.offset()
    assert offset is not None
    return offset
