"""A Kafka record as the stages see it: no client library, no broker."""

from __future__ import annotations

import msgspec

# Kafka's own shape: a list of pairs, names may repeat, a value may be null.
Headers = list[tuple[str, bytes | None]]


class Source(msgspec.Struct, frozen=True, gc=False):
    """Where a record was read: the JSON object `source` of a result."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


class InputRecord(msgspec.Struct, frozen=True, gc=False):
    """A record as it was read from a topic. `flaw` says what of it could not be read, if anything; `written_ms` when it
    was written, in milliseconds since 1970, where that is known."""

    source: Source
    key: bytes | None
    value: bytes | None
    headers: Headers
    flaw: str | None = None
    written_ms: int | None = None


class OutputRecord(msgspec.Struct, frozen=True, gc=False):
    """A record to be written. It goes to the partition that its source was read from.

    `answers` names the requests that it stands for: who must be told if it can't be written.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    answers: list[Source] = []
