"""A flood of dead letters is a few lines in the log, and a number."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from pipeline.dead_letter_log import MOST_TOLD, WINDOW_S, DeadLetterLog
from schemas.errors import BadRecord, Reason
from schemas.records import Source

LOG = logging.getLogger("penstock.test_dead_letter_log")


class Time:
    """A clock that is set by hand, and what is due at a time of it."""

    def __init__(self) -> None:
        self.ms = 1_000.0
        self._due: list[tuple[float, Callable[[], None]]] = []

    def now_ms(self) -> float:
        return self.ms

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        self._due.append((self.ms + seconds * 1e3, function))

    def passes(self, seconds: float) -> None:
        self.ms += seconds * 1e3
        due = [function for at_ms, function in self._due if at_ms <= self.ms]
        self._due = [each for each in self._due if each[0] > self.ms]
        for function in due:
            function()


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def letters(time: Time, caplog: pytest.LogCaptureFixture) -> DeadLetterLog:
    caplog.set_level(logging.INFO, LOG.name)
    return DeadLetterLog(LOG, clock_ms=time.now_ms, call_later=time.later)


def bury(letters: DeadLetterLog, count: int, reason: Reason = Reason.BAD_EVENT) -> None:
    for offset in range(count):
        letters.tell(Source("talk.speech", 0, offset), BadRecord(reason, "no text"))


def test_the_first_are_told_in_full_and_the_rest_by_their_number(
    time: Time, letters: DeadLetterLog, caplog: pytest.LogCaptureFixture
) -> None:
    bury(letters, MOST_TOLD + 1_000)
    bury(letters, 1, Reason.NOT_JSON)
    time.passes(WINDOW_S / 2)
    bury(letters, 200)
    assert [each.message.split(": ")[2] for each in caplog.records] == ["bad_event"] * MOST_TOLD + ["not_json"]
    time.passes(WINDOW_S / 2)
    assert caplog.messages[MOST_TOLD + 1 :] == [
        "... and 1,200 more of bad_event in 10 s: penstock dead-letters list FILE"
    ]
    caplog.clear()
    bury(letters, 1)
    assert len(caplog.messages) == 1


def test_a_few_now_and_then_are_all_told(time: Time, letters: DeadLetterLog, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        bury(letters, MOST_TOLD)
        time.passes(WINDOW_S)
    assert len(caplog.messages) == 3 * MOST_TOLD


def test_the_end_of_the_process_tells_how_many_there_were(
    time: Time, letters: DeadLetterLog, caplog: pytest.LogCaptureFixture
) -> None:
    bury(letters, MOST_TOLD + 5)
    time.passes(2)
    letters.close()
    assert caplog.messages[MOST_TOLD:] == ["... and 5 more of bad_event in 2 s: penstock dead-letters list FILE"]
    time.passes(WINDOW_S)
    assert len(caplog.messages) == MOST_TOLD + 1


def test_with_debug_lines_all_are_told(letters: DeadLetterLog, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, LOG.name)
    bury(letters, 3 * MOST_TOLD)
    assert len(caplog.messages) == 3 * MOST_TOLD
