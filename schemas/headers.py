"""Names of record headers, and what a dead letter says in them.

A dead letter has the original's headers and, after them, those of one of three styles:

- `kafka`: Kafka's own names (KIP-1191: `__dlq.errors.topic`, `.partition`, `.offset`, `.group`, `.message`), plus
  `.stage` and `.reason`, which Kafka has no word for. All text.
- `connect`: Kafka Connect's (apache/kafka, connect/runtime, `DeadLetterQueueReporter`): numbers in decimal digits, all
  text. The consumer group stands where Connect has the connector's name, which is what its group is made of.
- `spring`: Spring Kafka's (spring-projects/spring-kafka, `KafkaHeaders` and `DeadLetterPublishingRecoverer`): the
  partition is a big-endian int of 4 bytes, the offset one of 8, the rest text.

Connect and Spring name an exception's class where Penstock has a reason: `penstock.encode.engine_failed`, of which the
middle is the stage. Of what they say beyond that, stack traces and Spring's original timestamp, Penstock has nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import msgspec

from schemas.errors import BadRecord
from schemas.records import Headers, Source

CLOUDEVENTS_ID = "ce_id"

# Which time a request is sent for, the first being 1, in decimal digits. There is no name that all agree on. Spring's
# `retry_topic-attempts` (4 bytes) would be read by Spring itself wherever a request's headers arrive with its result.
ATTEMPT = "penstock.attempt"

HeaderStyle = Literal["kafka", "connect", "spring"]

DLQ_PREFIX = "__dlq.errors."
DLQ_REASON = DLQ_PREFIX + "reason"
DLQ_MESSAGE = DLQ_PREFIX + "message"

_CLASS_PREFIX = "penstock."


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """Why a record became a dead letter, as far as its headers can be read.

    In a dead letter of another program `reason` may be anything, such as the name of an exception's class.
    """

    style: HeaderStyle
    topic: str | None = None
    partition: int | None = None
    offset: int | None = None
    group: str | None = None
    stage: str | None = None
    reason: str | None = None
    message: str | None = None

    @property
    def source(self) -> Source | None:
        """Where the original is. None where the headers don't say."""
        if self.topic is None or self.partition is None or self.offset is None:
            return None
        return Source(self.topic, self.partition, self.offset)


class _Names(msgspec.Struct, frozen=True, kw_only=True):
    """A style's names, in the order they are written in. `class_name` is what holds stage and reason in one."""

    topic: str
    partition: str
    offset: str
    group: str
    stage: str | None = None
    reason: str | None = None
    class_name: str | None = None
    message: str
    binary_numbers: bool = False

    def all(self) -> set[str]:
        return {value for value in msgspec.structs.asdict(self).values() if isinstance(value, str)}


_NAMES: Mapping[HeaderStyle, _Names] = {
    "kafka": _Names(
        topic=DLQ_PREFIX + "topic",
        partition=DLQ_PREFIX + "partition",
        offset=DLQ_PREFIX + "offset",
        group=DLQ_PREFIX + "group",
        stage=DLQ_PREFIX + "stage",
        reason=DLQ_REASON,
        message=DLQ_MESSAGE,
    ),
    "connect": _Names(
        topic="__connect.errors.topic",
        partition="__connect.errors.partition",
        offset="__connect.errors.offset",
        group="__connect.errors.connector.name",
        stage="__connect.errors.stage",
        class_name="__connect.errors.exception.class.name",
        message="__connect.errors.exception.message",
    ),
    "spring": _Names(
        topic="kafka_dlt-original-topic",
        partition="kafka_dlt-original-partition",
        offset="kafka_dlt-original-offset",
        group="kafka_dlt-original-consumer-group",
        class_name="kafka_dlt-exception-fqcn",
        message="kafka_dlt-exception-message",
        binary_numbers=True,
    ),
}
assert _NAMES.keys() == set(get_args(HeaderStyle))
_STYLE_OF_TOPIC: Mapping[str, HeaderStyle] = {names.topic: style for style, names in _NAMES.items()}


def header_names(style: HeaderStyle) -> dict[str, str]:
    """What a style calls what it says, by our words for it; `class_name` holds stage and reason in one."""
    return {field: name for field, name in msgspec.structs.asdict(_NAMES[style]).items() if isinstance(name, str)}


def dead_letter_headers(
    error: BadRecord, *, source: Source, stage: str, group: str, style: HeaderStyle = "kafka"
) -> Headers:
    """What a dead letter's headers say in addition to the original ones."""
    names = _NAMES[style]
    values: tuple[tuple[str | None, bytes], ...] = (
        (names.topic, _text(source.topic)),
        (names.partition, source.partition.to_bytes(4) if names.binary_numbers else _text(str(source.partition))),
        (names.offset, source.offset.to_bytes(8) if names.binary_numbers else _text(str(source.offset))),
        (names.group, _text(group)),
        (names.stage, _text(stage)),
        (names.reason, _text(error.reason)),
        (names.class_name, _text(f"{_CLASS_PREFIX}{stage}.{error.reason}")),
        (names.message, _text(error.message)),
    )
    return [(name, value) for name, value in values if name is not None]


def read_cause(headers: Headers) -> Cause | None:
    """What a dead letter's headers say, in whichever style; None where they are no dead letter's.

    The last header of a name counts: those before it are the original's, which may have been a dead letter's too.
    """
    style = _style(headers)
    if style is None:
        return None
    names = _NAMES[style]
    values = dict(headers)
    number = _binary_number if names.binary_numbers else _decimal_number
    stage, reason = _stage_and_reason(values, names)
    return Cause(
        style=style,
        topic=_string(values.get(names.topic)),
        partition=number(values.get(names.partition), 4),
        offset=number(values.get(names.offset), 8),
        group=_string(values.get(names.group)),
        stage=stage,
        reason=reason,
        message=_string(values.get(names.message)),
    )


def original_headers(headers: Headers) -> Headers:
    """A dead letter's headers without what makes it one: those that the original had, in their order."""
    style = _style(headers)
    if style is None:
        return headers
    ours = _NAMES[style].all()
    kept: Headers = []
    for name, value in reversed(headers):
        if name in ours:
            ours.remove(name)
        else:
            kept.append((name, value))
    return kept[::-1]


def with_more_said(headers: Headers, more: str) -> Headers:
    """A dead letter's headers with `more` at the end of its message."""
    style = _style(headers)
    assert style is not None, "made by dead_letter_headers"
    place = max(place for place, (name, _) in enumerate(headers) if name == _NAMES[style].message)
    name, value = headers[place]
    return [*headers[:place], (name, (value or b"") + _text(more)), *headers[place + 1 :]]


def attempt_of(headers: Headers) -> int:
    """Which time a request is sent for. 1 where nothing that can be read says otherwise."""
    said = _decimal_number(dict(headers).get(ATTEMPT), 8)
    return max(1, said or 1)


def with_attempt(headers: Headers, attempt: int) -> Headers:
    """The headers with this attempt, in place of an earlier one."""
    return [*(header for header in headers if header[0] != ATTEMPT), (ATTEMPT, _text(str(attempt)))]


def _style(headers: Headers) -> HeaderStyle | None:
    """The style of the last that was added."""
    return next((_STYLE_OF_TOPIC[name] for name, _ in reversed(headers) if name in _STYLE_OF_TOPIC), None)


def _stage_and_reason(values: Mapping[str, bytes | None], names: _Names) -> tuple[str | None, str | None]:
    stage = _string(values.get(names.stage)) if names.stage else None
    if names.class_name is None:
        return stage, _string(values.get(names.reason)) if names.reason else None
    class_name = _string(values.get(names.class_name))
    match class_name.removeprefix(_CLASS_PREFIX).split(".") if class_name else []:
        case [class_stage, reason]:
            return stage or class_stage, reason
    return stage, class_name


def _text(text: str) -> bytes:
    return text.encode(errors="replace")


def _string(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="backslashreplace")


def _decimal_number(value: bytes | None, size_bytes: int) -> int | None:
    """A number that is no larger than what `size_bytes` hold."""
    if value is None or not value.isdigit() or len(value) > 19:
        return None
    number = int(value)
    return number if number < 1 << (8 * size_bytes - 1) else None


def _binary_number(value: bytes | None, size_bytes: int) -> int | None:
    number = int.from_bytes(value, signed=True) if value is not None and len(value) == size_bytes else -1
    return number if number >= 0 else None
