"""What became of each request: a ledger of the demo's producer and consumer, free of I/O.

Requests are numbered from 0 as they are sent. Only those in flight are remembered, so that memory stays the same
whatever the count: one that was sent and is not in flight has been answered. 4 bytes a text are kept for the
latencies.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class _Waiting:
    text: str
    size_bytes: int
    sent_s: float


class Ledger:
    """Counts what is sent and what comes back. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self.sent = 0
        self.results = 0
        self.dead_letters = 0
        self.repeated = 0
        self.out_of_order = 0
        self.tokens = 0
        self.in_flight_bytes = 0
        self.first_sent_s: float | None = None
        self.last_answer_s: float | None = None
        self._waiting: dict[int, _Waiting] = {}
        self._waiting_since_s = 0.0
        self._highest_offset: dict[int, int] = {}
        self._latency_ms = array("f")

    @property
    def in_flight(self) -> int:
        """Sent, and neither answered nor a dead letter. At the end: lost."""
        return len(self._waiting)

    @property
    def seconds(self) -> float:
        """From the first request to the last answer."""
        if self.first_sent_s is None or self.last_answer_s is None:
            return 0.0
        return self.last_answer_s - self.first_sent_s

    def latencies_ms(self) -> NDArray[np.float32]:
        """From each request's sending to its result, (results,), in the order of the results."""
        return np.array(self._latency_ms, np.float32)

    def silent_s(self, now_s: float) -> float:
        """How long something has been awaited without anything coming; 0 while nothing is in flight."""
        return now_s - self._waiting_since_s if self._waiting else 0.0

    def send(self, text: str, size_bytes: int, now_s: float) -> int:
        """A request is about to be sent; its number."""
        number = self.sent
        if self.first_sent_s is None:
            self.first_sent_s = now_s
        if not self._waiting:
            self._waiting_since_s = now_s
        self._waiting[number] = _Waiting(text, size_bytes, now_s)
        self.in_flight_bytes += size_bytes
        self.sent += 1
        return number

    def answer(self, number: int, *, partition: int, offset: int, tokens: int, now_s: float) -> str | None:
        """A result came, of the request at `offset` of `partition`. Its text; None where it is not the first result.

        A repeat is no break of order: after a worker's death what it had not committed comes again, all of it.
        """
        waiting = self._settle(number, now_s)
        if waiting is None:
            self.repeated += 1
            return None
        self.results += 1
        self.tokens += tokens
        self._latency_ms.append((now_s - waiting.sent_s) * 1e3)
        highest = self._highest_offset.get(partition, -1)
        if offset < highest:
            self.out_of_order += 1
        self._highest_offset[partition] = max(offset, highest)
        return waiting.text

    def dead_letter(self, number: int, now_s: float) -> None:
        """A request came back as a dead letter: it gets no result any more."""
        if self._settle(number, now_s) is None:
            self.repeated += 1
        else:
            self.dead_letters += 1

    def _settle(self, number: int, now_s: float) -> _Waiting | None:
        assert 0 <= number < self.sent, "only what was sent can come back"
        waiting = self._waiting.pop(number, None)
        if waiting is not None:
            self.in_flight_bytes -= waiting.size_bytes
            self.last_answer_s = self._waiting_since_s = now_s
        return waiting
