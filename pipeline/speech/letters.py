"""The dead letter of a bad event, small enough for its topic.

A record of the feed may be as large as the dead letters' topic allows, and has no headers that say what is wrong with
it yet. Where it is, and why it is bad, are worth more than the rest: what has no room is left out, and that is said.
"""

from __future__ import annotations

from pipeline.settings import EnsembleSettings
from pipeline.topics import MAX_RECORD_BYTES
from schemas.errors import BadRecord
from schemas.headers import dead_letter_headers, with_more_said
from schemas.records import InputRecord, OutputRecord

# Kafka counts more than what is counted here: lengths, and the batch's own head.
MAX_LETTER_BYTES = MAX_RECORD_BYTES - (64 << 10)
# A message may quote what was read.
_MAX_SAID_CHARACTERS = 4_000


def letter_of(record: InputRecord, error: BadRecord, settings: EnsembleSettings) -> OutputRecord:
    """The record with headers that say why. Of one that is too large the value is left out, then, where that is not
    enough, its headers, then its key."""
    topic = settings.topic_names.dead_letters
    headers = dead_letter_headers(
        error if len(error.message) <= _MAX_SAID_CHARACTERS else _shortened(error),
        source=record.source,
        stage="transcripts",
        group=settings.transcripts_group,
        style=settings.dead_letters.header_style,
    )
    letter = OutputRecord(topic, record.key, record.value, [*record.headers, *headers], [record.source])
    if _size_bytes(letter) > MAX_LETTER_BYTES:
        letter = without_value(letter)
    if _size_bytes(letter) > MAX_LETTER_BYTES:
        headers = with_more_said(letter.headers[len(record.headers) :], " (its headers are left out: too large)")
        letter = OutputRecord(topic, record.key, None, headers, letter.answers)
    if _size_bytes(letter) > MAX_LETTER_BYTES:
        headers = with_more_said(letter.headers, f" (its key of {len(record.key or b'')} bytes is left out: too large)")
        letter = OutputRecord(topic, None, None, headers, letter.answers)
    return letter


def without_value(letter: OutputRecord) -> OutputRecord:
    """A dead letter that its topic has no room for."""
    said = f" (its value of {len(letter.value or b'')} bytes is left out: too large for {letter.topic})"
    return OutputRecord(letter.topic, letter.key, None, with_more_said(letter.headers, said), letter.answers)


def _size_bytes(letter: OutputRecord) -> int:
    headers = sum(len(name.encode()) + len(value or b"") for name, value in letter.headers)
    return len(letter.key or b"") + len(letter.value or b"") + headers


def _shortened(error: BadRecord) -> BadRecord:
    return BadRecord(error.reason, f"{error.message[:_MAX_SAID_CHARACTERS]}...")
