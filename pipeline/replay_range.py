"""From where to where `penstock replay` reads: times, or the offsets at which another run stopped, as offsets."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from pipeline.broker import is_embedded
from pipeline.errors import UserError
from pipeline.reach import reach_broker
from pipeline.settings import EnsembleSettings
from pipeline.times import parse_time
from pipeline.topic_reader import Bounds, TopicReader
from pipeline.topics import broker_metadata

BEGINNING = "beginning"


@dataclass(frozen=True, slots=True)
class Range:
    """Offsets of one partition, `end` not included."""

    start: int
    end: int

    @property
    def size(self) -> int:
        return max(0, self.end - self.start)


def range_to_replay(
    settings: EnsembleSettings, reader: TopicReader, start: str | None, end: str | None, from_offsets: str | None
) -> dict[int, Range]:
    """By partition, from `start` or `from_offsets` to `end` or what is the topic's end now. Raises UserError."""
    if (start is None) == (from_offsets is None):
        raise UserError("replay: give either --from or --from-offsets")
    now = datetime.now().astimezone()
    from_ms = None if start in (None, BEGINNING) else parse_time("--from", str(start), now=now)
    to_ms = parse_time("--to", end, now=now) if end is not None else None
    if (from_ms, to_ms) != (None, None) and is_embedded(broker_metadata(reach_broker(settings.kafka)).topics):
        raise UserError("replay: the embedded broker can't find records by time; use --from beginning, without --to")
    bounds = reader.bounds()
    starts = {partition: low for partition, (low, _) in bounds.items()}
    if from_offsets is not None:
        starts = _named_offsets(from_offsets, bounds)
    elif from_ms is not None:
        starts = _at(reader, from_ms, bounds)
    ends = {partition: high for partition, (_, high) in bounds.items()}
    if to_ms is not None:
        ends = _at(reader, to_ms, bounds)
    for partition, (low, _) in bounds.items():
        if starts[partition] < low:
            gone = f"offsets {starts[partition]} to {low - 1} are no longer there"
            sys.stderr.write(f"penstock: {reader.topic} [{partition}]: {gone}\n")
    return {partition: Range(max(starts[partition], low), ends[partition]) for partition, (low, _) in bounds.items()}


def _at(reader: TopicReader, milliseconds: int, bounds: Mapping[int, Bounds]) -> dict[int, int]:
    """Where each partition is at that time: at its end, if it has nothing as young."""
    found = reader.offsets_at(milliseconds)
    return {partition: high if (at := found[partition]) is None else at for partition, (_, high) in bounds.items()}


def _named_offsets(text: str, bounds: Mapping[int, Bounds]) -> dict[int, int]:
    """`0:1200,1:900`, an offset for each partition."""
    named: dict[int, int] = {}
    for part in text.split(","):
        if not (found := re.fullmatch(r"\s*([0-9]{1,9}):([0-9]{1,18})\s*", part)):
            raise UserError(f"--from-offsets: {part!r} is not allowed; allowed: PARTITION:OFFSET, such as 0:1200,1:900")
        named[int(found[1])] = int(found[2])
    if named.keys() != bounds.keys():
        raise UserError(f"--from-offsets: names partitions {_list(named)}; allowed: each of {_list(bounds)}, once")
    for partition, offset in named.items():
        if offset > bounds[partition][1]:
            raise UserError(
                f"--from-offsets: {partition}:{offset} is behind the end, {partition}:{bounds[partition][1]}"
            )
    return named


def _list(partitions: Mapping[int, object]) -> str:
    return ", ".join(map(str, sorted(partitions)))
