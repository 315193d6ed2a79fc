"""Signals that come at the worst moment: inside of what the main thread does, or inside of one another."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline import up
from pipeline.settings import EnsembleSettings
from pipeline.worker_process import stopped_by_signals

WAIT_S = 20.0


@pytest.fixture(autouse=True)
def _handlers_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_worker_stops_though_the_main_thread_holds_the_event_s_lock() -> None:
    stop = threading.Event()
    with stopped_by_signals(stop):
        with stop._cond:  # type: ignore[attr-defined]  # as inside of set() and wait()
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
        assert stop.wait(WAIT_S)


def test_a_worker_that_stops_by_itself_can_be_told_to_stop_as_well() -> None:
    stop = threading.Event()
    with stopped_by_signals(stop):
        stop.set()
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


class SupervisorStandIn:
    """Runs nothing; gets its signals while it runs."""

    def __init__(self, commands: object) -> None:
        self.kills = 0

    def run(self, stopped: Callable[[], bool], *, drain_budget_s: float) -> int:
        assert drain_budget_s == 250.0
        assert not stopped()
        signal.raise_signal(signal.SIGTERM)
        assert stopped()
        signal.raise_signal(signal.SIGTERM)
        assert self.kills == 0
        signal.raise_signal(signal.SIGINT)
        assert self.kills == 1
        return 0

    def kill(self) -> None:
        self.kills += 1


def test_up_lets_workers_drain_and_kills_at_ctrl_c_after_another_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up, "Supervisor", SupervisorStandIn)
    monkeypatch.setattr(up, "reach_broker", lambda kafka: None)
    monkeypatch.setattr(up, "make_topics", lambda settings, *, fused: [])
    models = [{"name": "a", "source": "m"}]
    settings = EnsembleSettings.model_validate({"name": "e", "models": models, "drain_timeout_ms": 240_000})
    assert up.up(settings, Path("e.yaml"), fused=False) == 0
