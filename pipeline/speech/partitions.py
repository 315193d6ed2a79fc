"""The partitions that a member of the transcripts' group has: up to where each was heard, and how far that is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from confluent_kafka import TopicPartition

from schemas.records import Source

Place = tuple[str, int]


class Partitions:
    """Of the feed, the results and the dead letters. `feed` is the feed's topic."""

    def __init__(self, feed: str) -> None:
        self._feed = feed
        # The next record's offset of each, never negative once it is known.
        self._next: dict[Place, int] = {}
        self._to_commit: set[Place] = set()
        # Of the feed's partitions, where the end was reached and nothing came since.
        self._ends: dict[int, int] = {}

    def begin(self, offsets: Mapping[Place, int]) -> None:
        """These are the member's, from these offsets on, and no others."""
        self._next = dict(offsets)
        self._to_commit, self._ends = set(), {}

    @property
    def places(self) -> list[Place]:
        """Sorted."""
        return sorted(self._next)

    @property
    def numbers(self) -> list[int]:
        """Sorted; of each topic the same."""
        return sorted({partition for _, partition in self._next})

    @property
    def positions(self) -> list[TopicPartition]:
        """Where reading goes on."""
        return [TopicPartition(*place, self._next[place]) for place in self.places]

    def hear(self, source: Source) -> bool:
        """Whether a record is this member's to hear now. Where partitions moved between two reads it may be another's,
        or come again."""
        if not self.is_ahead(source):
            return False
        place = source.topic, source.partition
        self._next[place] = source.offset + 1
        self._to_commit.add(place)
        if source.topic == self._feed:
            self._ends.pop(source.partition, None)
        return True

    def is_ahead(self, source: Source) -> bool:
        """Whether a record is this member's and still to be heard."""
        expected = self._next.get((source.topic, source.partition))
        return expected is not None and source.offset >= expected

    def skip_to(self, place: Place, offset: int) -> None:
        """What is before it is not there any more; nor is the end where it was, if the topic was made anew."""
        self._next[place] = offset
        if place[0] == self._feed:
            self._ends.pop(place[1], None)

    def reach_the_end(self, topic: str, partition: int, offset: int) -> None:
        """Nothing is left to be read."""
        if topic == self._feed:
            self._ends[partition] = offset

    def is_quiet(self, partition: int, end: Callable[[TopicPartition], int | None]) -> bool:
        """Whether all that the feed has was heard: silence there is the speakers' own. `end` asks the broker where a
        partition ends now; None where it doesn't say."""
        reached = self._ends.get(partition)
        if reached is None:
            return False
        found = end(TopicPartition(self._feed, partition))
        return found is not None and found <= reached

    def to_commit(self, written: Iterable[int]) -> list[TopicPartition]:
        """The offsets to commit with what is written of these partitions: of all that were heard, and of each that is
        written to, even where it has not moved. By them the group refuses a member that has lost the partition."""
        self._to_commit.update((self._feed, partition) for partition in written)
        return [TopicPartition(*place, self._next[place]) for place in sorted(self._to_commit)]

    def committed(self) -> None:
        """What `to_commit` said is."""
        self._to_commit.clear()
