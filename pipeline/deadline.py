"""Bounds on waiting: one budget shared by all the waits of a shutdown or a rebalance, and calls that know none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Deadline:
    """A point in time that several waits share, so that together they never take longer than it allows."""

    def __init__(self, budget_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end_s = clock() + budget_s

    def remaining_s(self) -> float:
        """Never negative."""
        return max(0.0, self._end_s - self._clock())

    @property
    def expired(self) -> bool:
        """Whether nothing remains."""
        return self.remaining_s() == 0.0


def returns_within(seconds: float, call: Callable[[], object]) -> bool:
    """Make a call that may wait for longer than that, on a thread of its own; whether it came back in time."""
    thread = threading.Thread(target=call, name="leave", daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()
