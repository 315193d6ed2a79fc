"""What became of each request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.demo.ledger import Ledger


def sent(count: int) -> Ledger:
    """Texts "0", "1", ... at 0, 1, ... s."""
    ledger = Ledger()
    for number in range(count):
        assert ledger.send(str(number), 10, float(number)) == number
    return ledger


def answer(
    ledger: Ledger, number: int, *, partition: int = 0, offset: int | None = None, now_s: float = 10.0
) -> str | None:
    offset = number if offset is None else offset
    return ledger.answer(number, partition=partition, offset=offset, tokens=7, now_s=now_s)


def counts(ledger: Ledger) -> tuple[int, ...]:
    return ledger.results, ledger.dead_letters, ledger.in_flight, ledger.repeated, ledger.out_of_order


def test_each_request_answered_once() -> None:
    ledger = sent(3)
    assert [answer(ledger, number, now_s=4.0 + number) for number in range(3)] == ["0", "1", "2"]
    assert counts(ledger) == (3, 0, 0, 0, 0)
    assert ledger.tokens == 21
    assert ledger.latencies_ms().tolist() == [4_000.0, 4_000.0, 4_000.0]
    assert ledger.seconds == 6.0
    assert ledger.in_flight_bytes == 0


def test_what_is_not_answered_stays_in_flight() -> None:
    ledger = sent(3)
    answer(ledger, 1)
    assert counts(ledger) == (1, 0, 2, 0, 0)
    assert ledger.in_flight_bytes == 20


def test_a_second_result_is_a_repeat() -> None:
    ledger = sent(2)
    answer(ledger, 0)
    assert answer(ledger, 0, now_s=11.0) is None
    assert counts(ledger) == (1, 0, 1, 1, 0)
    assert len(ledger.latencies_ms()) == 1


def test_a_dead_letter_is_no_result_and_not_lost() -> None:
    ledger = sent(2)
    ledger.dead_letter(1, 9.0)
    answer(ledger, 0)
    assert counts(ledger) == (1, 1, 0, 0, 0)
    ledger.dead_letter(1, 11.0)
    assert answer(ledger, 1) is None
    assert counts(ledger) == (1, 1, 0, 2, 0)


def test_order_is_of_a_partition_s_offsets() -> None:
    ledger = sent(6)
    for number, partition, offset in ((0, 0, 0), (1, 1, 7), (2, 0, 2), (3, 0, 1), (4, 1, 8), (5, 0, 3)):
        answer(ledger, number, partition=partition, offset=offset)
    assert counts(ledger) == (6, 0, 0, 0, 1)


def test_what_comes_again_after_a_restart_is_in_order() -> None:
    ledger = sent(4)
    for number in (0, 1, 2, 1, 2, 3):
        answer(ledger, number)
    assert counts(ledger) == (4, 0, 0, 2, 0)


def test_only_what_was_sent_can_come_back() -> None:
    with pytest.raises(AssertionError):
        answer(sent(1), 1)


def test_silence_counts_only_while_something_is_awaited() -> None:
    ledger = Ledger()
    assert ledger.silent_s(100.0) == 0.0
    ledger.send("a", 1, 100.0)
    ledger.send("b", 1, 130.0)
    assert ledger.silent_s(140.0) == 40.0
    answer(ledger, 0, now_s=150.0)
    assert ledger.silent_s(155.0) == 5.0
    ledger.dead_letter(1, 160.0)
    assert ledger.silent_s(300.0) == 0.0
    ledger.send("c", 1, 400.0)
    assert ledger.silent_s(401.0) == 1.0


def test_nothing_sent_is_nothing_measured() -> None:
    assert Ledger().seconds == 0.0
    assert len(Ledger().latencies_ms()) == 0


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans())))
def test_every_request_is_in_one_place(events: list[tuple[int, bool]]) -> None:
    ledger = sent(10)
    for number, dead in events:
        if dead:
            ledger.dead_letter(number, 10.0)
        else:
            answer(ledger, number)
    assert ledger.results + ledger.dead_letters + ledger.in_flight == ledger.sent
    assert ledger.results + ledger.dead_letters + ledger.repeated == len(events)
    assert ledger.in_flight == 10 - len({number for number, _ in events})
    assert ledger.in_flight_bytes == 10 * ledger.in_flight
