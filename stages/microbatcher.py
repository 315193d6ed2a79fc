"""Gather windows into micro-batches under a size and a latency window. No clock, no thread: time is an argument.

Work-conserving: what waits is due as soon as somebody asks, unless the batch is still below the knee, where more
tokens cost no more time (a GPU with idle units); then it is due when the oldest window has waited
`max_queue_delay_ms`. On a CPU the knee is 0.

Within a lane: first in, first out, so nobody is overtaken and nobody starves. Between lanes: start-time fair queueing
(Goyal, Vin, Cheng 1996). A lane's virtual time is its tokens over its weight; the lane that is furthest behind is next,
of equals the first; one that was empty goes on where the others are. So a lane that waits gets its weight's share of
the tokens, whatever the others bring, and what a lane leaves is the others'.
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


class Place(Generic[Item]):
    """A place in the queue, of items that came together: they leave one after the other, or all give it to others."""

    __slots__ = ("added_ms", "items", "queued_ms", "taken")

    def __init__(self, items: Sequence[tuple[Item, int]], now_ms: float) -> None:
        self.items = items
        # How many of them have left.
        self.taken = 0
        # Since when the place waits, and its items.
        self.queued_ms = self.added_ms = now_ms


class _Lane(Generic[Item]):
    def __init__(self, weight: int) -> None:
        self.weight = weight
        self.queue: deque[Place[Item]] = deque()
        self.virtual_time = 0.0


class MicroBatcher(Generic[Item]):
    """A queue of items with token counts, cut into batches of at most `max_batch_size` items and
    `max_batch_tokens` tokens (a single item larger than that stands alone). `weights` has a lane each."""

    def __init__(
        self,
        *,
        max_batch_size: int,
        max_batch_tokens: int,
        max_queue_delay_ms: float,
        knee_tokens: int,
        weights: Sequence[int] = (1,),
    ) -> None:
        self._max_batch_size = max_batch_size
        self._max_batch_tokens = max_batch_tokens
        self._max_queue_delay_ms = max_queue_delay_ms
        self._knee_tokens = min(knee_tokens, max_batch_tokens)
        self._lanes = [_Lane[Item](weight) for weight in weights]
        self._items = 0
        self._tokens = 0
        self._virtual_time = 0.0

    def __len__(self) -> int:
        return self._items

    @property
    def tokens(self) -> int:
        """Tokens that wait."""
        return self._tokens

    def add(self, item: Item, tokens: int, now_ms: float) -> None:
        """Queue one item, in the first lane."""
        self._queue(self._lanes[0], Place(((item, tokens),), now_ms))
        self._items += 1
        self._tokens += tokens

    def add_together(self, items: Sequence[tuple[Item, int]], now_ms: float, *, lane: int = 0) -> Place[Item]:
        """Queue items with their tokens, at least one, in a place that they share."""
        place = Place(items, now_ms)
        self._queue(self._lanes[lane], place)
        self._count(items, 1)
        return place

    def replace(self, place: Place[Item], items: Sequence[tuple[Item, int]], now_ms: float) -> list[Item]:
        """Give a place, of which nothing has been taken, to other items; those that had it."""
        assert not place.taken, "what is being computed can't be replaced"
        before = [item for item, _ in place.items]
        self._count(place.items, -1)
        self._count(items, 1)
        place.items = items
        place.added_ms = now_ms
        return before

    def due(self, now_ms: float) -> bool:
        """Whether a free instance should take a batch now."""
        deadline_ms = self.next_deadline_ms()
        return deadline_ms is not None and now_ms >= deadline_ms

    def next_deadline_ms(self) -> float | None:
        """When the queue is due if nothing more arrives; None while it is empty."""
        if not self._items:
            return None
        oldest_ms = min(lane.queue[0].queued_ms for lane in self._lanes if lane.queue)
        if self._tokens >= self._knee_tokens or self._items >= self._max_batch_size:
            return oldest_ms
        return oldest_ms + self._max_queue_delay_ms

    def take(self, now_ms: float) -> MicroBatch[Item]:
        """The next batch: at least one item, unless the queue is empty."""
        items: list[Item] = []
        waited_ms: list[float] = []
        total = 0
        while self._items and len(items) < self._max_batch_size:
            lane = self._next_lane()
            place = lane.queue[0]
            item, tokens = place.items[place.taken]
            if items and total + tokens > self._max_batch_tokens:
                break
            place.taken += 1
            if place.taken == len(place.items):
                lane.queue.popleft()
            self._items -= 1
            self._virtual_time = lane.virtual_time
            lane.virtual_time += tokens / lane.weight
            items.append(item)
            waited_ms.append(now_ms - place.added_ms)
            total += tokens
        self._tokens -= total
        return MicroBatch(items, waited_ms, total)

    def _queue(self, lane: _Lane[Item], place: Place[Item]) -> None:
        if not lane.queue:
            lane.virtual_time = max(lane.virtual_time, self._virtual_time)
        lane.queue.append(place)

    def _next_lane(self) -> _Lane[Item]:
        if len(self._lanes) == 1:
            return self._lanes[0]
        return min((lane for lane in self._lanes if lane.queue), key=lambda lane: lane.virtual_time)

    def _count(self, items: Sequence[tuple[Item, int]], sign: int) -> None:
        self._items += sign * len(items)
        self._tokens += sign * sum(tokens for _, tokens in items)


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
