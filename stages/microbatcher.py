"""Gather windows into micro-batches under a size and a latency window. No clock, no thread: time is an argument.

Work-conserving: what waits is due as soon as somebody asks, unless the batch is still below the knee, where more
tokens cost no more time (a GPU with idle units); then it is due when the oldest window has waited
`max_queue_delay_ms`. On a CPU the knee is 0. First in, first out: nobody is overtaken, so nobody starves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class MicroBatch(Generic[Item]):
    """Items in the order of their arrival; `waited_ms` is the queue time of each."""

    items: list[Item]
    waited_ms: list[float]
    tokens: int


class MicroBatcher(Generic[Item]):
    """A queue of items with token counts, cut into batches of at most `max_batch_size` items and
    `max_batch_tokens` tokens (a single item larger than that stands alone)."""

    def __init__(
        self, *, max_batch_size: int, max_batch_tokens: int, max_queue_delay_ms: float, knee_tokens: int
    ) -> None:
        self._max_batch_size = max_batch_size
        self._max_batch_tokens = max_batch_tokens
        self._max_queue_delay_ms = max_queue_delay_ms
        self._knee_tokens = min(knee_tokens, max_batch_tokens)
        self._queue: deque[tuple[Item, int, float]] = deque()
        self._tokens = 0

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def tokens(self) -> int:
        """Tokens that wait."""
        return self._tokens

    def add(self, item: Item, tokens: int, now_ms: float) -> None:
        """Queue one item."""
        self._queue.append((item, tokens, now_ms))
        self._tokens += tokens

    def due(self, now_ms: float) -> bool:
        """Whether a free instance should take a batch now."""
        deadline_ms = self.next_deadline_ms()
        return deadline_ms is not None and now_ms >= deadline_ms

    def next_deadline_ms(self) -> float | None:
        """When the queue is due if nothing more arrives; None while it is empty."""
        if not self._queue:
            return None
        _, _, oldest_ms = self._queue[0]
        if self._tokens >= self._knee_tokens or len(self._queue) >= self._max_batch_size:
            return oldest_ms
        return oldest_ms + self._max_queue_delay_ms

    def take(self, now_ms: float) -> MicroBatch[Item]:
        """The next batch: at least one item, unless the queue is empty."""
        items: list[Item] = []
        waited_ms: list[float] = []
        total = 0
        while self._queue and len(items) < self._max_batch_size:
            item, tokens, added_ms = self._queue[0]
            if items and total + tokens > self._max_batch_tokens:
                break
            self._queue.popleft()
            items.append(item)
            waited_ms.append(now_ms - added_ms)
            total += tokens
        self._tokens -= total
        return MicroBatch(items, waited_ms, total)


def cut(lengths: Sequence[int], *, max_batch_size: int, max_batch_tokens: int) -> list[list[int]]:
    """The batches, as indices, of windows that all are there already: nothing to wait for, the same caps."""
    batcher = MicroBatcher[int](
        max_batch_size=max_batch_size, max_batch_tokens=max_batch_tokens, max_queue_delay_ms=0, knee_tokens=0
    )
    for index, tokens in enumerate(lengths):
        batcher.add(index, tokens, now_ms=0)
    batches: list[list[int]] = []
    while len(batcher):
        batches.append(batcher.take(now_ms=0).items)
    return batches
