"""What a request's headers say of its time: until when it is wanted, what it revises, which lane it goes in.

| header | value |
|---|---|
| `ce_expirytime` | CloudEvents' expiry time extension: RFC 3339, such as `2026-11-26T10:00:00.250Z` |
| `penstock.utterance` | of what is said and revised while it is: a name, unique among what has the record's key |
| `penstock.revision` | its number, in decimal digits: a larger one comes in place of a smaller one |
| `penstock.final` | `true` where no revision will follow; else `false`, or no header |
| `penstock.lane` | the name of a lane of the ensemble file |
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Literal

import msgspec

from schemas.errors import BadRecord, Reason
from schemas.records import Headers

EXPIRY_TIME = "ce_expirytime"
UTTERANCE = "penstock.utterance"
REVISION = "penstock.revision"
FINAL = "penstock.final"
LANE = "penstock.lane"

_NAMES = frozenset({EXPIRY_TIME, UTTERANCE, REVISION, FINAL, LANE})
_MOST = 2**63 - 1
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.IGNORECASE | re.ASCII)

# Why a request is answered without being computed.
Unanswered = Literal["expired", "superseded"]

_Number = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]


class Revision(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Which state of an utterance a text is."""

    utterance: str
    number: _Number
    final: bool


class Urgency(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """`expires_ms` are milliseconds since 1970; `lane` is None where the headers name none."""

    expires_ms: _Number | None = None
    revision: Revision | None = None
    lane: str | None = None

    def expired(self, now_ms: float) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.expires_ms is not None and now_ms >= self.expires_ms


def urgency_of(headers: Headers, *, written_ms: int | None = None, deadline_ms: int | None = None) -> Urgency | None:
    """What headers say; None where they and the deadline say nothing.

    `deadline_ms` after it was written, by the record's time, a request has expired too, save what is final: a
    transcript is made of that. Raises BadRecord where a header
    is not as documented.
    """
    said: dict[str, str] = {}
    for name, value in headers:
        if name in _NAMES:
            said[name] = _text(name, value)
    revision = _revision(said) if said else None
    expires_ms = None
    if written_ms is not None and deadline_ms is not None and not (revision is not None and revision.final):
        expires_ms = min(_MOST, max(0, written_ms + deadline_ms))  # a producer may claim any time
    if EXPIRY_TIME in said:
        expiry_ms = _milliseconds(said[EXPIRY_TIME])
        expires_ms = expiry_ms if expires_ms is None else min(expires_ms, expiry_ms)
    return Urgency(expires_ms, revision, said.get(LANE)) if said or expires_ms is not None else None


def _revision(said: dict[str, str]) -> Revision | None:
    utterance, number, final = said.get(UTTERANCE), said.get(REVISION), said.get(FINAL, "false")
    if final not in ("true", "false"):
        raise BadRecord(Reason.BAD_HEADERS, f"{FINAL}: {final[:40]!r}; allowed: true, false")
    if utterance is None and number is None:
        return None
    if not utterance or number is None:
        missing = REVISION if utterance else UTTERANCE
        raise BadRecord(Reason.BAD_HEADERS, f"{missing}: missing or empty; {UTTERANCE} and {REVISION} go together")
    if not (number.isascii() and number.isdigit() and len(number) <= 19 and int(number) <= _MOST):
        raise BadRecord(
            Reason.BAD_HEADERS, f"{REVISION}: {number[:40]!r}; allowed: up to 19 decimal digits, at most {_MOST}"
        )
    return Revision(utterance, int(number), final == "true")


def _milliseconds(time: str) -> int:
    try:
        if not _RFC_3339.fullmatch(time):
            raise ValueError("another form")
        return max(0, round(datetime.fromisoformat(time.upper()).timestamp() * 1e3))
    except (ValueError, OverflowError) as err:
        message = f"{EXPIRY_TIME}: {time[:40]!r}; allowed: a time of RFC 3339, such as 2026-11-26T10:00:00Z"
        raise BadRecord(Reason.BAD_HEADERS, message) from err


def _text(name: str, value: bytes | None) -> str:
    try:
        return (value or b"").decode()
    except UnicodeDecodeError as err:
        raise BadRecord(Reason.BAD_HEADERS, f"{name}: not UTF-8") from err
