"""A partition's line: whatever finishes or arrives first, order is kept and nothing is committed too early."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pipeline.deadline import Deadline
from pipeline.lines import PartitionLine, Unit
from schemas.records import InputRecord, OutputRecord, Source

TOPIC = "reviews.requests"


def unit_of(line: PartitionLine, *offsets: int, tokens: int = 0) -> Unit:
    records = [InputRecord(Source(TOPIC, line.partition, offset), None, b"", []) for offset in offsets]
    return Unit(line=line, records=records, texts=len(records), tokens_in_flight=tokens, read_ms=0.0)


def outputs(count: int) -> list[OutputRecord]:
    return [OutputRecord("reviews.results", None, b"", []) for _ in range(count)]


class LineOfUnits(RuleBasedStateMachine):
    """Units are read in order, finish in any order, and what they produced is acknowledged in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.line = PartitionLine(3)
        self.read: list[Unit] = []
        self.computing: list[Unit] = []
        self.emitted: list[Unit] = []
        self.arrived: list[Unit] = []
        self.next_offset = 7

    @rule(gaps=st.lists(st.integers(0, 2), min_size=1, max_size=3), tokens=st.integers(0, 50))
    def a_unit_is_read(self, gaps: list[int], tokens: int) -> None:
        """Offsets grow, not always by one: transactions and compaction leave gaps."""
        offsets: list[int] = []
        for gap in gaps:
            offsets.append(self.next_offset + gap)
            self.next_offset += gap + 1
        unit = unit_of(self.line, *offsets, tokens=tokens)
        self.line.begin(unit)
        self.read.append(unit)
        self.computing.append(unit)

    @precondition(lambda self: self.computing)
    @rule(data=st.data(), count=st.integers(0, 3))
    def one_of_them_finishes(self, data: st.DataObject, count: int) -> None:
        unit = self.computing.pop(data.draw(st.integers(0, len(self.computing) - 1)))
        unit.outputs = outputs(count)
        released = self.line.finish(unit)
        for each in released:
            assert each.finished
            assert each.undelivered == len(each.outputs)
        self.emitted += released
        # All that can leave has left, and in the order it was read.
        assert self.emitted == self.read[: len(self.emitted)]
        held_back = self.read[len(self.emitted) :]
        assert not held_back or held_back[0] in self.computing

    @precondition(lambda self: any(unit.undelivered for unit in self.emitted))
    @rule(data=st.data())
    def one_output_is_acknowledged(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from([unit for unit in self.emitted if unit.undelivered])).undelivered -= 1

    @precondition(lambda self: any(unit.undelivered for unit in self.emitted))
    @rule(data=st.data(), dead_letters=st.integers(1, 3))
    def one_output_was_too_large_and_is_replaced(self, data: st.DataObject, dead_letters: int) -> None:
        unit = data.draw(st.sampled_from([unit for unit in self.emitted if unit.undelivered]))
        unit.undelivered += dead_letters - 1

    @rule()
    def the_emitter_looks_what_has_arrived(self) -> None:
        arrived = self.line.advance()
        self.arrived += arrived
        assert self.arrived == self.read[: len(self.arrived)], "in order, each once"
        assert not self.line.advance(), "nothing is left to be seen"
        # As far as it could: what comes next is not emitted or not acknowledged.
        following = self.emitted[len(self.arrived) :]
        assert not following or following[0].undelivered

    @invariant()
    def the_watermark_stands_behind_all_that_arrived(self) -> None:
        """And so never behind anything that did not, nor behind anything whose predecessors did not."""
        expected = self.arrived[-1].records[-1].source.offset + 1 if self.arrived else None
        assert self.line.watermark == expected
        assert all(unit.finished and not unit.undelivered for unit in self.arrived)
        missing = self.read[len(self.arrived) :]
        if expected is not None and missing:
            assert expected <= missing[0].records[0].source.offset

    @invariant()
    def in_flight_is_what_was_read_and_has_not_arrived(self) -> None:
        missing = self.read[len(self.arrived) :]
        assert self.line.in_flight == sum(len(unit.records) for unit in missing)
        assert self.line.tokens_in_flight == sum(unit.tokens_in_flight for unit in missing)

    def teardown(self) -> None:
        """In the end everything arrives."""
        for unit in self.computing[::-1]:
            self.emitted += self.line.finish(unit)
        assert self.emitted == self.read
        for unit in self.emitted:
            unit.undelivered = 0
        self.arrived += self.line.advance()
        assert self.arrived == self.read
        assert self.line.in_flight == self.line.tokens_in_flight == 0
        assert self.line.watermark == (self.next_offset if self.read else None)


TestLineOfUnits = LineOfUnits.TestCase
TestLineOfUnits.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


def test_a_new_line_has_nothing_to_commit() -> None:
    line = PartitionLine(0)
    assert (line.watermark, line.in_flight, line.tokens_in_flight, line.dropped) == (None, 0, 0, False)
    assert line.advance() == []


def test_the_last_to_be_read_waits_for_the_first() -> None:
    line = PartitionLine(0)
    first, second = unit_of(line, 0, 1), unit_of(line, 2)
    line.begin(first)
    line.begin(second)
    assert line.finish(second) == []
    assert line.finish(first) == [first, second]
    assert line.advance() == [first, second], "units that produced nothing have arrived when they left"
    assert line.watermark == 3


def test_what_is_not_acknowledged_holds_the_watermark() -> None:
    line = PartitionLine(0)
    units = [unit_of(line, 0), unit_of(line, 1)]
    for unit in units:
        line.begin(unit)
        unit.outputs = outputs(2)
    line.finish(units[0])
    line.finish(units[1])
    units[1].undelivered = 0
    units[0].undelivered = 1
    assert line.advance() == []
    assert line.watermark is None
    units[0].undelivered = 0
    assert line.advance() == units
    assert line.watermark == 2


def test_a_unit_finishes_once() -> None:
    line = PartitionLine(0)
    unit = unit_of(line, 0)
    line.begin(unit)
    line.finish(unit)
    with pytest.raises(AssertionError):
        line.finish(unit)


# The budget that draining lines shares with the other waits of a shutdown.


def clock_of(*times: float) -> Callable[[], float]:
    remaining = iter(times)
    return lambda: next(remaining)


def test_waits_share_one_deadline() -> None:
    deadline = Deadline(10.0, clock=clock_of(100.0, 104.0, 109.5, 112.0))
    assert [deadline.remaining_s() for _ in range(3)] == [6.0, 0.5, 0.0]


def test_a_deadline_expires_when_nothing_remains() -> None:
    deadline = Deadline(1.0, clock=clock_of(5.0, 5.0, 5.9, 6.0, 60.0))
    assert [deadline.expired for _ in range(4)] == [False, False, True, True]


def test_no_budget_is_an_expired_deadline() -> None:
    assert Deadline(0.0, clock=lambda: 5.0).expired
