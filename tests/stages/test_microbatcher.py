"""Micro-batches: nothing lost, nothing twice, nobody overtaken, caps kept, nobody made to wait past the delay."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stages.microbatcher import MicroBatcher, cut


def batcher(
    *, max_batch_size: int = 4, max_batch_tokens: int = 100, max_queue_delay_ms: float = 5.0, knee_tokens: int = 0
) -> MicroBatcher[int]:
    return MicroBatcher(
        max_batch_size=max_batch_size,
        max_batch_tokens=max_batch_tokens,
        max_queue_delay_ms=max_queue_delay_ms,
        knee_tokens=knee_tokens,
    )


class Instances(RuleBasedStateMachine):
    """Items arrive, time passes, now and then an instance is free and asks for a batch."""

    @initialize(
        max_batch_size=st.integers(1, 6),
        max_batch_tokens=st.integers(1, 60),
        max_queue_delay_ms=st.integers(0, 20),
        knee_tokens=st.integers(0, 90),
    )
    def begin(self, max_batch_size: int, max_batch_tokens: int, max_queue_delay_ms: int, knee_tokens: int) -> None:
        self.size, self.tokens, self.delay_ms = max_batch_size, max_batch_tokens, max_queue_delay_ms
        self.knee = min(knee_tokens, max_batch_tokens)
        self.batcher = batcher(
            max_batch_size=max_batch_size,
            max_batch_tokens=max_batch_tokens,
            max_queue_delay_ms=max_queue_delay_ms,
            knee_tokens=knee_tokens,
        )
        self.now_ms = 0
        self.waiting: list[tuple[int, int, int]] = []  # number, tokens, when it was added
        self.added = 0

    @rule(tokens=st.integers(1, 70))
    def add(self, tokens: int) -> None:
        self.batcher.add(self.added, tokens, self.now_ms)
        self.waiting.append((self.added, tokens, self.now_ms))
        self.added += 1

    @rule(ms=st.integers(1, 12))
    def pass_time(self, ms: int) -> None:
        self.now_ms += ms

    @precondition(lambda self: self.batcher.due(self.now_ms))
    @rule()
    def a_free_instance_takes_what_is_due(self) -> None:
        self.take()

    @rule()
    def an_instance_takes_without_asking(self) -> None:
        self.take()

    def take(self) -> None:
        batch = self.batcher.take(self.now_ms)
        expected, self.waiting = self.waiting[: len(batch.items)], self.waiting[len(batch.items) :]
        # Nothing lost, nothing twice, first in, first out.
        assert batch.items == [number for number, _, _ in expected]
        assert batch.waited_ms == [self.now_ms - added_ms for _, _, added_ms in expected]
        assert batch.tokens == sum(tokens for _, tokens, _ in expected)
        # Caps; a single larger item stands alone.
        assert len(batch.items) <= self.size
        assert batch.tokens <= self.tokens or len(batch.items) == 1
        # Never less than could be taken.
        if self.waiting and len(batch.items) < self.size:
            assert batch.tokens + self.waiting[0][1] > self.tokens
        assert batch.items or not expected

    @invariant()
    def it_counts_what_waits(self) -> None:
        assert len(self.batcher) == len(self.waiting)
        assert self.batcher.tokens == sum(tokens for _, tokens, _ in self.waiting)

    @invariant()
    def an_instance_that_asks_is_answered(self) -> None:
        """At once from the knee on; below it when the oldest has waited for the delay; never for nothing."""
        if not self.waiting:
            assert not self.batcher.due(self.now_ms + 10**9)
            return
        full = self.batcher.tokens >= self.knee or len(self.waiting) >= self.size
        oldest_waited_ms = self.now_ms - self.waiting[0][2]
        assert self.batcher.due(self.now_ms) is (full or oldest_waited_ms >= self.delay_ms)

    @invariant()
    def the_next_deadline_is_when_it_becomes_due(self) -> None:
        deadline_ms = self.batcher.next_deadline_ms()
        assert (deadline_ms is None) is (not self.waiting)
        if deadline_ms is not None:
            assert self.batcher.due(deadline_ms)
            assert not self.batcher.due(deadline_ms - 1)
            assert deadline_ms <= self.waiting[0][2] + self.delay_ms

    def teardown(self) -> None:
        while len(getattr(self, "waiting", ())):
            self.take()
        if hasattr(self, "batcher"):
            assert len(self.batcher) == self.batcher.tokens == 0


TestInstances = Instances.TestCase
TestInstances.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


@given(tokens=st.lists(st.integers(1, 300), min_size=1, max_size=40))
def test_taken_one_after_another_the_batches_are_all_items_in_order(tokens: list[int]) -> None:
    made = batcher()
    for number, each in enumerate(tokens):
        made.add(number, each, 0.0)
    taken: list[int] = []
    while len(made):
        taken += made.take(0.0).items
    assert taken == list(range(len(tokens)))


def test_without_a_knee_one_item_is_due_at_once_whatever_the_delay() -> None:
    made = batcher(knee_tokens=0, max_queue_delay_ms=60_000)
    made.add(1, 3, 10.0)
    assert made.due(10.0)


def test_below_the_knee_it_waits_for_company_and_no_longer_than_the_delay() -> None:
    made = batcher(knee_tokens=50, max_queue_delay_ms=5.0)
    made.add(1, 20, 10.0)
    made.add(2, 20, 14.0)
    assert not made.due(14.9)
    assert made.next_deadline_ms() == 15.0
    assert made.due(15.0)


def test_at_the_knee_the_wait_ends() -> None:
    made = batcher(knee_tokens=50, max_queue_delay_ms=5.0)
    made.add(1, 20, 10.0)
    assert not made.due(11.0)
    made.add(2, 30, 11.0)
    assert made.due(11.0)


def test_a_full_batch_does_not_wait_for_the_knee() -> None:
    made = batcher(knee_tokens=50, max_batch_size=2)
    made.add(1, 1, 0.0)
    made.add(2, 1, 0.0)
    assert made.due(0.0)


def test_a_knee_above_the_cap_is_the_cap() -> None:
    made = batcher(knee_tokens=1000, max_batch_tokens=10, max_queue_delay_ms=60_000)
    made.add(1, 10, 0.0)
    assert made.due(0.0)


def test_what_is_left_behind_keeps_the_time_of_its_arrival() -> None:
    made = batcher(max_batch_tokens=10, knee_tokens=10, max_queue_delay_ms=5.0)
    made.add(1, 8, 0.0)
    made.add(2, 8, 3.0)
    assert made.take(3.0).items == [1]
    assert made.next_deadline_ms() == 8.0


def test_an_item_over_the_cap_stands_alone_and_holds_nobody_up() -> None:
    made = batcher(max_batch_tokens=10)
    for number, tokens in enumerate([4, 50, 4]):
        made.add(number, tokens, 0.0)
    assert [made.take(0.0).items for _ in range(3)] == [[0], [1], [2]]


@pytest.mark.parametrize("now_ms", [0.0, 1e12])
def test_an_empty_queue_is_never_due_and_gives_an_empty_batch(now_ms: float) -> None:
    made = batcher()
    assert not made.due(now_ms)
    assert made.next_deadline_ms() is None
    assert made.take(now_ms).items == []


@given(lengths=st.lists(st.integers(1, 300)), size=st.integers(1, 8), tokens=st.integers(1, 400))
def test_what_is_all_there_is_cut_in_order_under_the_same_caps(lengths: list[int], size: int, tokens: int) -> None:
    batches = cut(lengths, max_batch_size=size, max_batch_tokens=tokens)
    assert [index for batch in batches for index in batch] == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= size
        assert len(batch) == 1 or sum(lengths[index] for index in batch) <= tokens
