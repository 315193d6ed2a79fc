"""Points in time as a person writes them on the command line."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from pipeline.errors import UserError

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_time(option: str, text: str, *, now: datetime) -> int:
    """Milliseconds since 1970, as Kafka counts, of an ISO 8601 time or of one before `now`, such as -2h.

    A time without a zone is the local one's. Raises UserError.
    """
    try:
        if ago := re.fullmatch(r"-(\d{1,6})([smhd])", text):
            moment = now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        else:
            moment = datetime.fromisoformat(text)
        milliseconds = round(moment.timestamp() * 1e3)
    except (ValueError, OverflowError):
        raise _refused(option, text) from None
    if milliseconds < 0:  # to Kafka, negative ones are names: -1 is the end, -2 the beginning
        raise _refused(option, text)
    return milliseconds


def shown_time(milliseconds: int | None) -> str:
    """A record's time in the local zone, to the second; - where it has none."""
    if milliseconds is None:
        return "-"
    try:
        return datetime.fromtimestamp(milliseconds / 1e3).astimezone().isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):  # producers may write any number
        return "-"


def _refused(option: str, text: str) -> UserError:
    return UserError(
        f"{option}: {text!r} is not allowed; allowed: a time in ISO 8601 such as 2026-11-25T14:00 (the local zone, or "
        "with +01:00 or Z at its end), or how long ago, such as -90s, -15m, -2h, -7d"
    )
