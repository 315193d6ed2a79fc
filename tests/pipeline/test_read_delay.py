"""When a worker reads: at once what comes alone, together what comes soon after, without a pause what has waited."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Consumer

from pipeline.dead_letters import DeadLetters
from pipeline.delivery import Delivery
from pipeline.intake import RequestIntake
from pipeline.lines import Unit
from pipeline.metrics import WorkerMetrics
from pipeline.worker import Worker

DELAY_MS = 5.0
POLL_MS = 50.0


class Arrivals:
    """A consumer whose records come at given times; waiting for them is what makes the clock go on."""

    def __init__(self, times_ms: list[float]) -> None:
        self.now_ms = 0.0
        self._times_ms = times_ms

    def clock_ms(self) -> float:
        return self.now_ms

    def sleep(self, seconds: float) -> None:
        self.now_ms += seconds * 1e3

    def poll(self, _timeout: float) -> Any:
        if not self._times_ms or self._times_ms[0] > self.now_ms + POLL_MS:
            self.now_ms += POLL_MS
            return None
        self.now_ms = max(self.now_ms, self._times_ms[0])
        return self._message()

    def consume(self, count: int, _timeout: float) -> list[Any]:
        found: list[Any] = []
        while len(found) < count and self._times_ms and self._times_ms[0] <= self.now_ms:
            found.append(self._message())
        return found

    def consumer_group_metadata(self) -> object:
        return None

    def memberid(self) -> str:
        return "me"

    def get_watermark_offsets(self, *_: object, **__: object) -> tuple[int, int]:
        return 0, 0

    def _message(self) -> Any:
        self._times_ms.pop(0)
        return SimpleNamespace(
            error=lambda: None,
            topic=lambda: "requests",
            partition=lambda: 0,
            offset=lambda: 0,
            key=lambda: None,
            value=lambda: b"x",
            headers=list,
            timestamp=lambda: (TIMESTAMP_NOT_AVAILABLE, -1),
        )


def read_at(times_ms: list[float], *, delay_ms: float = DELAY_MS) -> list[tuple[float, int]]:
    """When the worker read, and how many records each time."""
    arrivals = Arrivals([*times_ms])
    metrics = WorkerMetrics("e").stage("tokenize")
    worker = Worker(
        topic="requests",
        connect=lambda on_error, on_commit: cast(Consumer, arrivals),
        deliver=lambda worker: cast(Delivery, SimpleNamespace(commits_offsets=True)),
        intake=RequestIntake(max_pack_size=4096),
        dead_letters=DeadLetters({}, topic="dead", stage="tokenize", group="g", metrics=metrics),
        metrics=metrics,
        max_in_flight_tokens=1 << 30,
        commit_interval_ms=1_000,
        drain_timeout_ms=1_000,
        read_delay_ms=delay_ms,
        clock_ms=arrivals.clock_ms,
        sleep=arrivals.sleep,
    )
    worker._assignment.add([0])
    found: list[tuple[float, int]] = []

    def submit(unit: Unit) -> None:
        found.append((arrivals.now_ms, len(unit.records)))

    while sum(count for _, count in found) < len(times_ms):
        worker.turn(submit)
    return found


def test_what_comes_alone_is_read_at_once() -> None:
    assert read_at([3, 10, 200]) == [(3, 1), (10, 1), (200, 1)]


def test_what_comes_soon_after_is_gathered() -> None:
    assert read_at([10, 11, 12, 16, 40]) == [(10, 1), (15, 2), (20, 1), (40, 1)]


def test_at_a_high_rate_packs_fill() -> None:
    found = read_at([number / 10 for number in range(1_000)])
    assert [count for _, count in found[1:-1]] == [50] * (len(found) - 2)


def test_a_backlog_waits_for_nothing() -> None:
    assert read_at([0.0] * 2_000) == [(0, 512), (0, 512), (0, 512), (0, 464)]


@pytest.mark.parametrize("times_ms", [[10.0, 11.0, 12.0, 16.0]])
def test_without_a_delay_all_is_read_as_it_comes(times_ms: list[float]) -> None:
    assert read_at(times_ms, delay_ms=0) == [(time_ms, 1) for time_ms in times_ms]
