"""Intake: from records as they were read to units: of requests in groups, of packs too where they are small.

Packs are small where requests come one by one. Where several of them wait, whoever reads them is behind; and a unit
costs 50 us of encode or postprocess whatever is in it, as much as six texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, Protocol

from pipeline.dead_letters import DeadLetters
from pipeline.lines import PartitionLine, Unit
from schemas.errors import BadRecord, Reason
from schemas.packs import EncodingPack, Pack, TokenPack
from schemas.records import InputRecord

# Texts, or packs, that arrive together travel together up to this size; a larger one travels alone. It bounds an
# encoding pack:
# 256 KiB of punctuation, a token a byte, are 1,180 windows of 1.5 KB.
_MAX_UNIT_BYTES = 256 * 1024

# English has 4 to 5 bytes a token; before tokenization nobody knows better.
_BYTES_PER_TOKEN = 4


class Intake(Protocol):
    """Makes units of the records of one partition, in order, all records in exactly one unit."""

    def __call__(self, line: PartitionLine, records: Iterable[InputRecord], read_ms: float, /) -> Iterator[Unit]: ...


class RequestIntake:
    """Groups of at most `max_pack_size` requests: what becomes one pack."""

    def __init__(self, *, max_pack_size: int) -> None:
        self._max_pack_size = max_pack_size

    def __call__(self, line: PartitionLine, records: Iterable[InputRecord], read_ms: float) -> Iterator[Unit]:
        group: list[InputRecord] = []
        group_bytes = 0
        for record in records:
            size_bytes = _size_bytes(record)
            if group and (len(group) >= self._max_pack_size or group_bytes + size_bytes > _MAX_UNIT_BYTES):
                yield _unit(line, group, group_bytes, read_ms)
                group, group_bytes = [], 0
            group.append(record)
            group_bytes += size_bytes
        if group:
            yield _unit(line, group, group_bytes, read_ms)


class PackIntake(Generic[Pack]):
    """A unit for a pack, of the kind that `decode` reads, or for several that together have at most `max_pack_size`
    windows; one that can't be read is a dead letter as it is."""

    def __init__(
        self,
        decode: Callable[[bytes | None], Pack],
        join: Callable[[Sequence[Pack]], Pack],
        *,
        max_pack_size: int,
        requests_topic: str,
        dead_letters: DeadLetters,
    ) -> None:
        self._decode: Callable[[bytes | None], Pack] = decode
        self._join: Callable[[Sequence[Pack]], Pack] = join
        self._max_pack_size = max_pack_size
        self._requests_topic = requests_topic
        self._dead_letters = dead_letters

    def __call__(self, line: PartitionLine, records: Iterable[InputRecord], read_ms: float) -> Iterator[Unit]:
        group = _Group[Pack]()
        for record in records:
            try:
                pack = self._read(record)
            except BadRecord as err:
                if group.packs:
                    yield self._unit(line, group, read_ms)
                    group = _Group()
                letter = self._dead_letters.of_record(record, err)
                yield Unit(line=line, records=[record], texts=1, tokens_in_flight=1, read_ms=read_ms, outputs=[letter])
                continue
            if group.packs and not group.has_room(pack, record, self._max_pack_size):
                yield self._unit(line, group, read_ms)
                group = _Group()
            group.add(pack, record)
        if group.packs:
            yield self._unit(line, group, read_ms)

    def _read(self, record: InputRecord) -> Pack:
        if record.flaw is not None:
            raise BadRecord(Reason.BAD_HEADERS, record.flaw)
        pack = self._decode(record.value)
        _require_partition(pack, record)
        if pack.topic != self._requests_topic:  # originals could not be read there
            raise BadRecord(Reason.BAD_PACK, f"a pack of {pack.topic}, not of {self._requests_topic}")
        return pack

    def _unit(self, line: PartitionLine, group: _Group[Pack], read_ms: float) -> Unit:
        pack = group.packs[0] if len(group.packs) == 1 else self._join(group.packs)
        return Unit(
            line=line,
            records=group.records,
            texts=len(pack.texts) + len(pack.closed),
            # What is closed has no tokens, and is not free.
            tokens_in_flight=int(pack.chunk_lengths().sum()) + len(pack.closed),
            read_ms=read_ms,
            tokens=pack if isinstance(pack, TokenPack) else None,
            encodings=pack if isinstance(pack, EncodingPack) else None,
        )


class _Group(Generic[Pack]):
    """Packs that become one unit."""

    def __init__(self) -> None:
        self.packs: list[Pack] = []
        self.records: list[InputRecord] = []
        self._windows = 0
        self._bytes = 0

    def has_room(self, pack: Pack, record: InputRecord, max_pack_size: int) -> bool:
        return (
            self._windows + _windows(pack) <= max_pack_size
            and self._bytes + len(record.value or b"") <= _MAX_UNIT_BYTES
            and _shape(pack) == _shape(self.packs[0])
        )

    def add(self, pack: Pack, record: InputRecord) -> None:
        self.packs.append(pack)
        self.records.append(record)
        self._windows += _windows(pack)
        self._bytes += len(record.value or b"")


def _windows(pack: TokenPack | EncodingPack) -> int:
    return len(pack.chunk_lengths()) + len(pack.closed)


def _shape(pack: TokenPack | EncodingPack) -> tuple[object, ...]:
    """Packs of another ensemble file, older or newer, can't be joined to these."""
    outputs = () if isinstance(pack, TokenPack) else pack.outputs
    return bool(pack.details), *(output.shape for output in outputs)


def _size_bytes(record: InputRecord) -> int:
    """Key and headers travel along in every pack, so they count too."""
    headers_bytes = sum(len(name) + len(value or b"") for name, value in record.headers)
    return len(record.value or b"") + len(record.key or b"") + headers_bytes


def _require_partition(pack: TokenPack | EncodingPack, record: InputRecord) -> None:
    if pack.partition != record.source.partition:
        raise BadRecord(Reason.BAD_PACK, f"a pack of partition {pack.partition} in {record.source.partition}")


def _unit(line: PartitionLine, records: list[InputRecord], size_bytes: int, read_ms: float) -> Unit:
    tokens = size_bytes // _BYTES_PER_TOKEN + len(records)
    return Unit(line=line, records=records, texts=len(records), tokens_in_flight=tokens, read_ms=read_ms)
