"""The clock that all durations are taken from."""

from __future__ import annotations

import time


def now_ms() -> float:
    """Milliseconds of the monotonic clock."""
    return time.monotonic() * 1e3
