"""The dead letters of an ensemble as `penstock dead-letters` sees them: opened, read one by one, chosen among."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message

from pipeline import clients
from pipeline.errors import UserError
from pipeline.reach import existing_partitions
from pipeline.settings import EnsembleSettings
from pipeline.topic_reader import Bounds, TopicReader
from schemas.headers import Cause, attempt_of, original_headers, read_cause
from schemas.records import Headers, InputRecord


class DeadLetter(msgspec.Struct, frozen=True):
    """A record of the dead-letter topic. `cause` is None where somebody else wrote it, `written_ms` where it has no
    time."""

    record: InputRecord
    written_ms: int | None
    cause: Cause | None

    @property
    def place(self) -> str:
        """PARTITION/OFFSET, as a person names it."""
        return f"{self.record.source.partition}/{self.offset}"

    @property
    def offset(self) -> int:
        return self.record.source.offset

    @property
    def original_headers(self) -> Headers:
        return original_headers(self.record.headers)

    @property
    def attempt(self) -> int:
        """Which time the request was sent for when it became this dead letter."""
        return attempt_of(self.original_headers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which dead letters are meant; with nothing given, all. Times are when they were written."""

    stages: Sequence[str] = ()
    reasons: Sequence[str] = ()
    since_ms: int | None = None
    until_ms: int | None = None

    @property
    def all(self) -> bool:
        return self == Wanted()

    def matches(self, letter: DeadLetter) -> bool:
        cause, written_ms = letter.cause, letter.written_ms
        return (
            (not self.stages or (cause is not None and cause.stage in self.stages))
            and (not self.reasons or (cause is not None and cause.reason in self.reasons))
            and (self.since_ms is None or (written_ms is not None and written_ms >= self.since_ms))
            and (self.until_ms is None or (written_ms is not None and written_ms < self.until_ms))
        )


def open_box(settings: EnsembleSettings, *, group: str = "") -> TopicReader:
    """A reader of the dead-letter topic. Raises UserError where no broker answers or has it."""
    topic = settings.topic_names.dead_letters
    partitions = existing_partitions(settings.kafka, topic)
    return TopicReader(
        settings.kafka.consumer_settings(), topic, partitions, client_id="penstock-dead-letters", group=group
    )


def letters(reader: TopicReader, partition: int, start: int, end: int) -> Iterator[list[DeadLetter]]:
    """Blocks of a partition's dead letters from `start` on and below `end`."""
    for block in reader.blocks(partition, start, end):
        yield [_dead_letter(message) for message in block]


def letters_at(reader: TopicReader, places: Sequence[str]) -> list[DeadLetter]:
    """The dead letters at these PARTITION/OFFSET. Raises UserError, a line for each that isn't there."""
    bounds = reader.bounds()
    found: list[DeadLetter] = []
    missing: list[str] = []
    for place in dict.fromkeys(places):
        answer = _letter_at(reader, place, bounds)
        if isinstance(answer, DeadLetter):
            found.append(answer)
        else:
            missing.append(f"{reader.topic}: {answer}")
    if missing:
        raise UserError(*missing)
    return found


def _letter_at(reader: TopicReader, place: str, bounds: dict[int, Bounds]) -> DeadLetter | str:
    """The dead letter, or why there is none."""
    named = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,18})", place)
    if named is None:
        return f"{place!r} is no place; write PARTITION/OFFSET, such as 0/17"
    partition, offset = int(named[1]), int(named[2])
    if partition not in bounds:
        return f"{place}: no such partition; there are 0 to {max(bounds)}"
    low, high = bounds[partition]
    if not low <= offset < high:
        there = f"its offsets are {low} to {high - 1}" if high > low else "the partition is empty"
        return f"{place}: no such offset; {there}"
    for block in letters(reader, partition, offset, offset + 1):
        return block[0]
    return f"{place}: no record is there, but a mark that a transaction left"


def _dead_letter(message: Message) -> DeadLetter:
    record = clients.input_record(message)
    kind, written_ms = message.timestamp()
    return DeadLetter(record, None if kind == TIMESTAMP_NOT_AVAILABLE else written_ms, read_cause(record.headers))
