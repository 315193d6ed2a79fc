"""The log's lines of dead letters, bounded: a producer that sends nothing but rubbish must not fill the disk.

Of each reason the first few are told in full, and of the others how many they were. All of them are in the dead
letters' topic, and counted by the metrics.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import msgspec

from pipeline.clock import now_ms
from schemas.errors import BadRecord, Reason
from schemas.records import Source

# A flood of one reason is 11 lines in 10 s: 10 in full, 1 for the rest.
MOST_TOLD = 10
WINDOW_S = 10.0

# Has a function called so many seconds later, from any thread.
Later = Callable[[float, Callable[[], None]], None]


class _Window(msgspec.Struct):
    """Of a reason: when its first dead letter came, how many were told, and how many were not."""

    began_ms: float
    told: int = 0
    held: int = 0


def later(seconds: float, function: Callable[[], None]) -> None:
    """By a thread of its own, which keeps no process alive."""
    timer = threading.Timer(seconds, function)
    timer.daemon = True
    timer.start()


class DeadLetterLog:
    """Tells of dead letters in `log`, all of them where that has debug lines too. Thread-safe."""

    def __init__(
        self, log: logging.Logger, *, clock_ms: Callable[[], float] = now_ms, call_later: Later = later
    ) -> None:
        self._log = log
        self._clock_ms = clock_ms
        self._call_later = call_later
        self._lock = threading.Lock()
        self._windows: dict[Reason, _Window] = {}

    def tell(self, source: Source, error: BadRecord) -> None:
        """A record became a dead letter."""
        if self._log.isEnabledFor(logging.DEBUG) or self._is_told(error.reason):
            self._log.warning("dead letter: %s: %s", source, error)

    def close(self) -> None:
        """Tell how many were not told so far."""
        for reason, window in [*self._windows.items()]:
            self._end(reason, window)

    def _is_told(self, reason: Reason) -> bool:
        now_ms = self._clock_ms()
        with self._lock:
            window = self._windows.get(reason)
            is_over = window is not None and now_ms >= window.began_ms + WINDOW_S * 1e3
            if window is None or (is_over and not window.held):
                window = self._windows[reason] = _Window(now_ms)
            if window.told < MOST_TOLD:
                window.told += 1
                return True
            window.held += 1
            is_first = window.held == 1
        if is_first:
            self._call_later(window.began_ms / 1e3 + WINDOW_S - now_ms / 1e3, lambda: self._end(reason, window))
        return False

    def _end(self, reason: Reason, window: _Window) -> None:
        with self._lock:
            if self._windows.get(reason) is not window:
                return  # told before
            del self._windows[reason]
            held, over_s = window.held, (self._clock_ms() - window.began_ms) / 1e3
        if held:
            self._log.warning(
                "... and %s more of %s in %.0f s: penstock dead-letters list FILE", f"{held:,}", reason, over_s
            )
