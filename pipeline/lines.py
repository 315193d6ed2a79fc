"""A partition's straight line: what was read leaves in the order it was read, and is committed when it has arrived.

Sans-I/O. Units (consecutive records of one partition) finish in any order; a line releases them in the order they
began, and its watermark, the next offset to commit, moves over a unit only when all that it and its predecessors
produced is acknowledged. What lies below the watermark is done; what lies above is read again after a crash.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from schemas.errors import BadRecord
from schemas.packs import EncodingPack, PackedText, TokenPack
from schemas.records import InputRecord, OutputRecord, Source


@dataclass(slots=True, kw_only=True, eq=False)
class Unit:
    """Consecutive records of one partition, on their way through a worker's steps.

    Each step reads what the step before it left (`records`, `tokens`, `encodings`); the last fills `outputs`. `lost`
    are texts that a step gave up, whose dead letters are still to be made.
    `texts` is how many requests it stands for, `tokens_in_flight` what it counts against the bound, `read_ms` when
    it was read, `queued_ms` when the step that has it got it. `closed` counts those that expired or were superseded.
    """

    line: PartitionLine
    records: list[InputRecord]
    texts: int
    tokens_in_flight: int
    read_ms: float
    queued_ms: float = 0.0
    tokens: TokenPack | None = None
    encodings: EncodingPack | None = None
    lost: list[tuple[Source, PackedText, BadRecord]] = field(default_factory=list)
    outputs: list[OutputRecord] = field(default_factory=list)
    finished: bool = False
    closed: int = 0
    undelivered: int = 0

    @property
    def next_offset(self) -> int:
        """The offset to commit once this unit and all before it have arrived."""
        return self.records[-1].source.offset + 1

    def replace(self, output: OutputRecord, replacements: Sequence[OutputRecord]) -> None:
        """These are written in place of an output."""
        place = next(place for place, each in enumerate(self.outputs) if each is output)
        self.outputs[place : place + 1] = replacements


class PartitionLine:
    """The units of one partition between reading and commit.

    `begin` belongs to the thread that reads, `finish` and `advance` to the one that emits; the rest may be read
    from anywhere (each number has one writer).
    """

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.watermark: int | None = None
        # Set when the partition is revoked: what has not left yet is another worker's.
        self.dropped = False
        self._records_begun = 0
        self._records_arrived = 0
        self._tokens_begun = 0
        self._tokens_arrived = 0
        self._to_emit: deque[Unit] = deque()
        self._to_arrive: deque[Unit] = deque()

    @property
    def in_flight(self) -> int:
        """Records between reading and arrival."""
        return self._records_begun - self._records_arrived

    @property
    def tokens_in_flight(self) -> int:
        """Their tokens."""
        return self._tokens_begun - self._tokens_arrived

    def begin(self, unit: Unit) -> None:
        """A unit was read."""
        self._records_begun += len(unit.records)
        self._tokens_begun += unit.tokens_in_flight
        self._to_emit.append(unit)

    def finish(self, unit: Unit) -> list[Unit]:
        """A unit's outputs are there: the units that may be produced now, in order."""
        assert not unit.finished, "a unit finishes once"
        unit.finished = True
        ready: list[Unit] = []
        while self._to_emit and self._to_emit[0].finished:
            unit = self._to_emit.popleft()
            unit.undelivered = len(unit.outputs)
            self._to_arrive.append(unit)
            ready.append(unit)
        return ready

    def advance(self) -> list[Unit]:
        """Move the watermark over all units that have arrived; those units."""
        arrived: list[Unit] = []
        while self._to_arrive and not self._to_arrive[0].undelivered:
            unit = self._to_arrive.popleft()
            self.watermark = unit.next_offset
            self._records_arrived += len(unit.records)
            self._tokens_arrived += unit.tokens_in_flight
            arrived.append(unit)
        return arrived
