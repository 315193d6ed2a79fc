"""Which dead letters of a partition have been replayed: a place below which all are, and ranges above it.

A consumer group commits one offset a partition, and a replay with a filter leaves gaps. The ranges above the place are
written into the metadata that Kafka keeps beside a committed offset, as text relative to it: `2-5,7` after offset 10
means that 12 to 15 and 17 have been replayed too.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from itertools import pairwise

# Kafka keeps 4,096 bytes (offset.metadata.max.bytes): 128 ranges of up to 15 digits at each end fit in.
MOST_RANGES = 128
_MOST_DIGITS = 15


class ReplayedOffsets:
    """The offsets of one partition that need no replay any more. `forgotten` counts ranges that had no room."""

    def __init__(self, place: int, ranges: list[tuple[int, int]] | None = None) -> None:
        self.place = place
        self.forgotten = 0
        # Half-open, ascending, apart from each other, above the place.
        self._ranges = ranges or []

    @classmethod
    def committed(cls, place: int, metadata: str | None) -> ReplayedOffsets:
        """As it was committed. What was not written by `metadata` says nothing."""
        ranges: list[tuple[int, int]] = []
        for part in (metadata or "").split(","):
            if not (found := re.fullmatch(r"([0-9]{1,15})(?:-([0-9]{1,15}))?", part)):
                return cls(place)
            ranges.append((place + int(found[1]), place + int(found[2] or found[1]) + 1))
        apart = all(one[1] < other[0] for one, other in pairwise([(place, place), *ranges]))
        return cls(place, ranges) if apart and all(start < end for start, end in ranges) else cls(place)

    def metadata(self) -> str:
        """The ranges as text, to be committed beside the place."""
        return ",".join(
            f"{start - self.place}-{end - 1 - self.place}" if end - start > 1 else f"{start - self.place}"
            for start, end in self._ranges
            if end - self.place < 10**_MOST_DIGITS
        )

    def __contains__(self, offset: int) -> bool:
        index = bisect_right(self._ranges, offset, key=lambda each: each[0]) - 1
        return offset < self.place or (index >= 0 and offset < self._ranges[index][1])

    def add(self, start: int, end: int) -> None:
        """Offsets from `start` on and below `end` need no replay any more."""
        if end <= self.place or start >= end:
            return
        touching = [each for each in self._ranges if each[0] <= end and start <= each[1]]
        first = min([start, *(each[0] for each in touching)])
        last = max([end, *(each[1] for each in touching)])
        apart = [each for each in self._ranges if each not in touching]
        if first <= self.place:
            self.place = last
            self._ranges = apart
            return
        self._ranges = sorted([*apart, (first, last)])
        if len(self._ranges) > MOST_RANGES:
            # A new one lies highest, as offsets are read in order; its records would be replayed once more.
            self._ranges.pop()
            self.forgotten += 1
