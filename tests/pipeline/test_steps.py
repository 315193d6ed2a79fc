"""Steps: a thread that dies is heard of, and what is queued when a worker ends holds nobody up."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import cast

import pytest

from pipeline.dead_letters import DeadLetters
from pipeline.deadline import Deadline
from pipeline.lines import PartitionLine, Unit
from pipeline.metrics import WorkerMetrics
from pipeline.steps import TokenizeStep
from schemas.packs import TokenPack
from schemas.records import InputRecord, Source
from stages.tokenize import Rejected, TokenizeStage

WAIT_S = 30.0


class RustPanic(BaseException):
    """What pyo3 raises where Rust panics is no Exception."""


class Stage:
    """Panics, or waits until it may go on."""

    def __init__(self, *, panics: bool) -> None:
        self.panics = panics
        self.may_go_on = threading.Event()
        self.calls = 0
        self.called = threading.Event()

    def __call__(self, groups: Sequence[Sequence[InputRecord]]) -> list[tuple[TokenPack | None, list[Rejected]]]:
        self.calls += 1
        self.called.set()
        if self.panics:
            raise RustPanic("index out of bounds")
        self.may_go_on.wait(WAIT_S)
        return [(None, []) for _ in groups]


def a_unit() -> Unit:
    record = InputRecord(Source("requests", 0, 0), None, b"", [])
    return Unit(line=PartitionLine(0), records=[record], texts=1, tokens_in_flight=1, read_ms=0.0)


def a_step(stage: Stage, failures: list[BaseException], heard: threading.Event) -> TokenizeStep:
    metrics = WorkerMetrics("reviews").stage("tokenize")

    def on_failure(err: BaseException) -> None:
        failures.append(err)
        heard.set()

    return TokenizeStep(
        cast(TokenizeStage, stage),
        then=lambda unit: None,
        on_failure=on_failure,
        dead_letters=DeadLetters({}, topic="dead", stage="tokenize", group="g", metrics=metrics),
        metrics=metrics,
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_panics_is_heard_of() -> None:
    failures: list[BaseException] = []
    heard = threading.Event()
    step = a_step(Stage(panics=True), failures, heard)
    step.submit(a_unit())
    assert heard.wait(WAIT_S)
    assert isinstance(failures[0], RustPanic)
    step.close(Deadline(WAIT_S))


def test_closing_lets_go_of_what_is_queued() -> None:
    stage = Stage(panics=False)
    step = a_step(stage, [], threading.Event())
    step.submit(a_unit())
    assert stage.called.wait(WAIT_S)
    for _ in range(100):
        step.submit(a_unit())
    closing = threading.Thread(target=step.close, args=(Deadline(WAIT_S),))
    closing.start()
    while not step._thread._closing:  # the queue must be closed before the stage goes on
        threading.Event().wait(0.001)
    stage.may_go_on.set()
    closing.join(WAIT_S)
    assert not closing.is_alive()
    assert stage.calls == 1
