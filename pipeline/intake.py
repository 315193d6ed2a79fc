"""Intake: from records as they were read to units, of requests in groups, of packs one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from pipeline.dead_letters import DeadLetters
from pipeline.lines import PartitionLine, Unit
from schemas.errors import BadRecord, Reason
from schemas.packs import EncodingPack, TokenPack
from schemas.records import InputRecord

# Texts that arrive together travel together up to this size; a larger one travels alone. It bounds an encoding pack:
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


class PackIntake:
    """A unit a pack, of the kind that `decode` reads; one that can't be read is a dead letter as it is."""

    def __init__(
        self,
        decode: Callable[[bytes | None], TokenPack | EncodingPack],
        *,
        requests_topic: str,
        dead_letters: DeadLetters,
    ) -> None:
        self._decode = decode
        self._requests_topic = requests_topic
        self._dead_letters = dead_letters

    def __call__(self, line: PartitionLine, records: Iterable[InputRecord], read_ms: float) -> Iterator[Unit]:
        for record in records:
            unit = Unit(line=line, records=[record], texts=1, tokens_in_flight=1, read_ms=read_ms)
            try:
                if record.flaw is not None:
                    raise BadRecord(Reason.BAD_HEADERS, record.flaw)
                pack = self._decode(record.value)
                _require_partition(pack, record)
                if pack.topic != self._requests_topic:  # originals could not be read there
                    raise BadRecord(Reason.BAD_PACK, f"a pack of {pack.topic}, not of {self._requests_topic}")
            except BadRecord as err:
                unit.outputs.append(self._dead_letters.of_record(record, err))
            else:
                if isinstance(pack, TokenPack):
                    unit.tokens = pack
                else:
                    unit.encodings = pack
                unit.texts = len(pack.texts)
                unit.tokens_in_flight = int(pack.chunk_lengths().sum())
            yield unit


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
