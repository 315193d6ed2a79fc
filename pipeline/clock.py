"""The clock that all durations are taken from, and the one that deadlines are told in."""

from __future__ import annotations

import time


def now_ms() -> float:
    """Milliseconds of the monotonic clock."""
    return time.monotonic() * 1e3


def wall_ms() -> float:
    """Milliseconds since 1970, which other machines count too."""
    return time.time() * 1e3
