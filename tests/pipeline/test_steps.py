"""Steps: a thread that dies is heard of, and what is queued when a worker ends holds nobody up."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.rows import PackedRows
from pipeline.dead_letters import DeadLetters
from pipeline.deadline import Deadline
from pipeline.errors import WorkerFailure
from pipeline.lines import PartitionLine, Unit
from pipeline.metrics import WorkerMetrics
from pipeline.steps import EncodeStep, PostprocessStep, TokenizeStep
from schemas.errors import Reason
from schemas.headers import read_cause
from schemas.packs import EncodingPack, PackedText, TokenPack, encoding_pack, token_pack
from schemas.records import InputRecord, Source
from schemas.results import Output
from stages.encode import EncodeStage
from stages.errors import StageError
from stages.microbatcher import MicroBatcher
from stages.postprocess import PostprocessStage
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

    def __call__(
        self, groups: Sequence[Sequence[InputRecord]], *, now_ms: float
    ) -> list[tuple[TokenPack | None, list[Rejected]]]:
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


# A unit that lost a text waits for its dead letter; nobody else does.

POISON = 7


class OneEngine:
    widths: Mapping[str, int] = {"v": 1}
    of_tokens: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.closed = False
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.asked = threading.Event()

    def run(self, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
        self.asked.set()
        assert self.may_answer.wait(WAIT_S)
        if (rows.input_ids == POISON).any():
            raise EngineError("poison")
        return {"v": np.ones((len(rows.row), 1), np.float32)}

    def close(self) -> None:
        self.closed = True


class SlowOriginals(DeadLetters):
    """A broker that doesn't answer until it may; or never."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__({}, topic="dead", stage="encode", group="g", metrics=WorkerMetrics("reviews").stage("encode"))
        self.may_answer = threading.Event()
        self._fails = fails

    def _fetch(self, source: Source) -> InputRecord | None:
        assert self.may_answer.wait(WAIT_S)
        if self._fails:
            raise WorkerFailure("no answer")
        return InputRecord(source, b"k", b"original", [])


def packed(*ids: int) -> TokenPack:
    texts = [PackedText(f"id{offset}", None, [], offset, 1, 1, False) for offset in range(len(ids))]
    return token_pack(topic="requests", partition=0, texts=texts, chunks=[np.array([each], np.int32) for each in ids])


def an_encode_step(
    letters: DeadLetters,
    done: queue.SimpleQueue[Unit],
    failures: list[BaseException],
    engine: OneEngine | None = None,
) -> EncodeStep:
    return EncodeStep(
        EncodeStage([engine or OneEngine()], row_length=8, max_length=8),
        MicroBatcher(max_batch_size=4, max_batch_tokens=16, max_queue_delay_ms=0, knee_tokens=0),
        then=done.put,
        on_failure=failures.append,
        dead_letters=letters,
        metrics=WorkerMetrics("reviews").stage("encode"),
        threads=1,
    )


def test_an_engine_is_closed_with_its_step_unless_it_still_computes() -> None:
    engine = OneEngine()
    an_encode_step(SlowOriginals(), queue.SimpleQueue(), [], engine).close(Deadline(WAIT_S))
    assert engine.closed
    engine = OneEngine()
    engine.may_answer.clear()
    step = an_encode_step(SlowOriginals(), queue.SimpleQueue(), [], engine)
    unit = a_unit()
    unit.tokens = packed(1)
    step.submit(unit)
    assert engine.asked.wait(WAIT_S)
    step.close(Deadline(0.0))
    assert not engine.closed
    engine.may_answer.set()


def test_a_broker_that_is_slow_with_an_original_holds_up_only_the_unit_that_lost_it() -> None:
    done: queue.SimpleQueue[Unit] = queue.SimpleQueue()
    letters = SlowOriginals()
    step = an_encode_step(letters, done, [])
    first, *others = [a_unit() for _ in range(5)]
    first.tokens = packed(1, POISON, 2)
    step.submit(first)
    for other in others:
        other.tokens = packed(1, 2)
        step.submit(other)
    assert [done.get(timeout=WAIT_S) for _ in others] == others
    letters.may_answer.set()
    assert done.get(timeout=WAIT_S) is first
    [output] = first.outputs
    assert output.value == b"original"
    assert first.encodings is not None
    assert [text.offset for text in first.encodings.texts] == [0, 2]
    step.close(Deadline(WAIT_S))


def test_an_original_that_a_broker_does_not_give_stops_the_worker_and_the_unit_is_not_passed_on() -> None:
    done: queue.SimpleQueue[Unit] = queue.SimpleQueue()
    failures: list[BaseException] = []
    letters = SlowOriginals(fails=True)
    letters.may_answer.set()
    step = an_encode_step(letters, done, failures)
    unit = a_unit()
    unit.tokens = packed(1, POISON)
    step.submit(unit)
    for thread in step._losses._thread._threads:
        thread.join(WAIT_S)
    assert [str(failure) for failure in failures] == ["no answer"]
    assert done.empty()
    step.close(Deadline(WAIT_S))


# What a task of a user's own answers must be JSON.


class OddTask:
    """Answers what is no JSON: for numbers above zero, or always."""

    def __init__(self, *, always: bool) -> None:
        self._always = always

    def __call__(self, rows: NDArray[np.float64]) -> list[Output]:
        odd: Any = object()
        return [odd if self._always or row[0] > 0 else [0.0] for row in rows]


def encoded(*values: float) -> EncodingPack:
    return encoding_pack(packed(*[1] * len(values)), {"v": np.array([[value] for value in values], np.float32)})


def postprocessed(unit: Unit, *, always: bool) -> None:
    letters = SlowOriginals()
    letters.may_answer.set()
    step = PostprocessStep(
        PostprocessStage({"v": OddTask(always=always)}),
        results_topic="results",
        then=lambda unit: None,
        on_failure=lambda err: None,
        dead_letters=letters,
        metrics=WorkerMetrics("reviews").stage("postprocess"),
        threads=0,
    )
    step.submit(unit)
    while step.turn():
        pass


def test_an_answer_that_is_no_json_is_a_dead_letter_and_its_neighbours_are_answered() -> None:
    unit = a_unit()
    unit.encodings = encoded(0, 1, 0)
    postprocessed(unit, always=False)
    assert [output.topic for output in unit.outputs] == ["results", "results", "dead"]
    cause = read_cause(unit.outputs[2].headers)
    assert cause is not None
    assert (cause.offset, cause.reason) == (1, Reason.STAGE_FAILED)
    assert cause.message is not None
    assert cause.message.startswith("TypeError: Encoding objects of type object is unsupported")


def test_a_task_that_never_answers_json_makes_nobody_guilty() -> None:
    unit = a_unit()
    unit.encodings = encoded(0, 1)
    with pytest.raises(StageError, match="fails whatever the text: TypeError"):
        postprocessed(unit, always=True)
