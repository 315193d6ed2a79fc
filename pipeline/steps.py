"""Steps: the stages on threads of their own. A unit is submitted, never waited for, and handed to the next step.

    submit(unit) -> [queue] -> the step's threads -> next(unit)

Fused, three steps follow one another in one process; spread, a worker has one. A unit whose records are all dead
letters goes through with nothing but outputs. A dead letter's original may have to be read from a broker that takes its
time: a unit that lost a text waits for that on a thread beside the step's own.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from pipeline.clock import now_ms, wall_ms
from pipeline.dead_letters import DeadLetters
from pipeline.deadline import Deadline
from pipeline.lines import Unit
from pipeline.metrics import StageMetrics
from schemas.errors import BadRecord
from schemas.packs import ClosedText, PackedText, source_of
from schemas.records import OutputRecord
from schemas.results import Result, encode_result
from stages.blame import answer_apart
from stages.encode import EncodeStage
from stages.microbatcher import MicroBatch, MicroBatcher
from stages.pack_in_progress import PackInProgress
from stages.postprocess import PostprocessStage, unanswered, without_expired
from stages.tokenize import TokenizeStage
from stages.window_queue import Window, WindowQueue

Next = Callable[[Unit], None]
OnFailure = Callable[[BaseException], None]

_Taken = tuple[MicroBatch[Window[Unit]], list[PackInProgress[Unit]]]

# Units that one call of the tokenizer takes at most: 1,024 texts keep its threads busy.
_TOKENIZE_UNITS = 16


class Step(Protocol):
    """A stage with its threads; with none (`threads=0`), whoever calls `turn` does their work."""

    def submit(self, unit: Unit) -> None:
        """Queue a unit. Never blocks."""
        ...

    def turn(self) -> bool:
        """Do what is due; whether there was anything."""
        ...

    def close(self, deadline: Deadline) -> None:
        """Let go of what is queued, and end the threads as far as the deadline allows. By then what was read has
        arrived, or has run out of time, or may not be delivered any more."""
        ...


class _UnitThread:
    """A queue and the one thread that takes from it: whatever waits, `at_most` units at a time, handed to `work`."""

    def __init__(
        self,
        name: str,
        work: Callable[[Sequence[Unit]], None],
        *,
        at_most: int,
        on_failure: OnFailure,
        threads: int,
    ) -> None:
        self._work = work
        self._at_most = at_most
        self._closing = False
        self._queue: queue.SimpleQueue[Unit | None] = queue.SimpleQueue()
        self._threads = _start(name, threads, self._run, on_failure)

    def submit(self, unit: Unit) -> None:
        unit.queued_ms = now_ms()
        self._queue.put(unit)

    def close(self, deadline: Deadline) -> None:
        self._closing = True
        self._queue.put(None)
        _join(self._threads, deadline)

    def turn(self) -> bool:
        if self._queue.empty():
            return False
        self._work(self._next())
        return True

    def _run(self) -> None:
        while (units := self._next()) and not self._closing:
            self._work(units)

    def _next(self) -> list[Unit]:
        """At least one unit; fewer, or none, once the queue is closed. Nobody else takes from it."""
        units: list[Unit] = []
        while len(units) < self._at_most and (not units or not self._queue.empty()):
            unit = self._queue.get()
            if unit is None:
                break
            units.append(unit)
        return units


class _Losses:
    """Makes the dead letters of a unit's lost texts, on a thread of its own, and only then hands the unit on."""

    def __init__(
        self, stage: str, dead_letters: DeadLetters, *, then: Next, on_failure: OnFailure, threads: int
    ) -> None:
        self._dead_letters = dead_letters
        self._then = then
        self._thread = _UnitThread(
            f"{stage}-dead-letters", self._make, at_most=1, on_failure=on_failure, threads=min(1, threads)
        )

    def pass_on(self, unit: Unit) -> None:
        """At once where nothing of it is lost."""
        if unit.lost:
            self._thread.submit(unit)
        else:
            self._then(unit)

    def turn(self) -> bool:
        return self._thread.turn()

    def close(self, deadline: Deadline) -> None:
        self._thread.close(deadline)

    def _make(self, units: Sequence[Unit]) -> None:
        for unit in units:
            unit.outputs.extend(
                self._dead_letters.of_text(source, text, error, unit.records) for source, text, error in unit.lost
            )
            unit.lost = []
            self._then(unit)


class TokenizeStep:
    """Request records to token packs, as many units in a call of the tokenizer as are waiting."""

    def __init__(
        self,
        stage: TokenizeStage,
        *,
        then: Next,
        on_failure: OnFailure,
        dead_letters: DeadLetters,
        metrics: StageMetrics,
        threads: int = 1,
        clock_ms: Callable[[], float] = wall_ms,
    ) -> None:
        self._stage = stage
        self._then = then
        self._dead_letters = dead_letters
        self._metrics = metrics
        self._clock_ms = clock_ms
        self._thread = _UnitThread(
            "tokenize", self._tokenize, at_most=_TOKENIZE_UNITS, on_failure=on_failure, threads=threads
        )

    def submit(self, unit: Unit) -> None:
        self._thread.submit(unit)

    def turn(self) -> bool:
        return self._thread.turn()

    def close(self, deadline: Deadline) -> None:
        self._thread.close(deadline)

    def _tokenize(self, units: Sequence[Unit]) -> None:
        started_ms = now_ms()
        packs = self._stage([unit.records for unit in units], now_ms=self._clock_ms())
        computed_ms = now_ms()
        for unit, (pack, rejected) in zip(units, packs, strict=True):
            unit.tokens = pack
            unit.closed = len(pack.closed) if pack is not None else 0
            if unit.closed:
                self._metrics.unanswered("expired", unit.closed)
            unit.outputs.extend(self._dead_letters.of_record(each.record, each.error) for each in rejected)
            self._metrics.stage_done(
                texts=len(unit.records) - unit.closed,
                queue_ms=started_ms - unit.queued_ms,
                compute_ms=computed_ms - started_ms,
            )
            self._then(unit)


class EncodeStep:
    """Token packs to encodings: windows of all units share micro-batches, a thread for each instance computes them."""

    def __init__(
        self,
        stage: EncodeStage,
        batcher: MicroBatcher[Window[Unit]],
        *,
        then: Next,
        on_failure: OnFailure,
        dead_letters: DeadLetters,
        metrics: StageMetrics,
        threads: int,
        lanes: Sequence[str] = ("default",),
        clock_ms: Callable[[], float] = now_ms,
        wall_clock_ms: Callable[[], float] = wall_ms,
    ) -> None:
        self._stage = stage
        self._queue = WindowQueue(batcher, on_closed=metrics.unanswered, lanes=lanes)
        self._then = then
        self._losses = _Losses("encode", dead_letters, then=then, on_failure=on_failure, threads=threads)
        self._metrics = metrics
        self._changed = threading.Condition()
        self._closing = False
        self._clock_ms = clock_ms
        self._wall_ms = wall_clock_ms
        self._threads = _start("encode", threads, self._run, on_failure)

    def submit(self, unit: Unit) -> None:
        if unit.tokens is None:
            self._then(unit)
            return
        pack = PackInProgress(unit.tokens, unit)
        with self._changed:
            complete = self._queue.add(pack, self._clock_ms())
            self._metrics.pending(len(self._queue))
            self._changed.notify()
        self._finish(complete)

    def close(self, deadline: Deadline) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        _join(self._threads, deadline)
        self._losses.close(deadline)
        if not any(thread.is_alive() for thread in self._threads):  # else one still computes, or hangs
            self._stage.close()

    def turn(self) -> bool:
        with self._changed:
            taken = self._take() if self._queue.due(self._clock_ms()) else None
        if taken is None:
            return self._losses.turn()
        self._encode(*taken)
        return True

    def _run(self) -> None:
        while (taken := self._await_batch()) is not None:
            self._encode(*taken)

    def _await_batch(self) -> _Taken | None:
        """None when the step is closed."""
        with self._changed:
            while not self._closing and not self._queue.due(self._clock_ms()):
                deadline_ms = self._queue.next_deadline_ms()
                self._changed.wait(None if deadline_ms is None else max(0.0, deadline_ms - self._clock_ms()) / 1e3)
            return None if self._closing else self._take()

    def _take(self) -> _Taken:
        taken = self._queue.take(self._clock_ms(), self._wall_ms())
        self._metrics.pending(len(self._queue))
        if len(self._queue):
            self._changed.notify()
        return taken

    def _encode(self, batch: MicroBatch[Window[Unit]], complete: Sequence[PackInProgress[Unit]]) -> None:
        self._finish(complete)
        items = batch.items
        if not items:
            return
        started_ms = now_ms()
        windows = [item.pack.windows[item.place] for item in items]
        groups = self._stage.pack(windows)
        packed_ms = now_ms()
        encoded = self._stage(windows, groups)
        computed_ms = now_ms()
        with self._changed:
            complete = [item.pack for index, item in enumerate(items) if item.pack.put(item.place, encoded, index)]
        self._finish(complete)
        self._metrics.batch_done(
            windows=len(items),
            tokens=encoded.tokens,
            padded_tokens=encoded.padded_tokens,
            waited_ms=batch.waited_ms,
            input_ms=packed_ms - started_ms,
            infer_ms=computed_ms - packed_ms,
            output_ms=now_ms() - computed_ms,
        )

    def _finish(self, complete: Sequence[PackInProgress[Unit]]) -> None:
        for pack in complete:
            unit = pack.owner
            unit.encodings, lost = pack.encodings()
            unit.closed = len(unit.encodings.closed) if unit.encodings is not None else 0
            unit.lost = [(source_of(pack.pack, text), text, error) for text, error in lost]
            self._losses.pass_on(unit)


class PostprocessStep:
    """Encodings to result records."""

    def __init__(
        self,
        stage: PostprocessStage,
        *,
        results_topic: str,
        then: Next,
        on_failure: OnFailure,
        dead_letters: DeadLetters,
        metrics: StageMetrics,
        threads: int = 1,
        answer_superseded: bool = False,
        clock_ms: Callable[[], float] = wall_ms,
    ) -> None:
        self._stage = stage
        self._results_topic = results_topic
        self._unanswered = {"expired", "superseded"} if answer_superseded else {"expired"}
        self._clock_ms = clock_ms
        self._losses = _Losses("postprocess", dead_letters, then=then, on_failure=on_failure, threads=threads)
        self._metrics = metrics
        self._thread = _UnitThread("postprocess", self._take, at_most=1, on_failure=on_failure, threads=threads)

    def submit(self, unit: Unit) -> None:
        self._thread.submit(unit)

    def turn(self) -> bool:
        return self._thread.turn() or self._losses.turn()

    def close(self, deadline: Deadline) -> None:
        self._thread.close(deadline)
        self._losses.close(deadline)

    def _take(self, units: Sequence[Unit]) -> None:
        for unit in units:
            if unit.encodings is not None:
                self._postprocess(unit, now_ms())
            self._losses.pass_on(unit)

    def _postprocess(self, unit: Unit, started_ms: float) -> None:
        assert unit.encodings is not None, "only units with encodings come here"
        pack, expired = without_expired(unit.encodings, self._clock_ms())
        unit.closed = len(pack.closed)
        if expired:
            self._metrics.unanswered("expired", expired)
        answers = self._stage(pack)
        computed_ms = now_ms()
        lost = {place: answer for place, answer in enumerate(answers) if isinstance(answer, BadRecord)}
        results = {place: answer for place, answer in enumerate(answers) if not isinstance(answer, BadRecord)}
        # A task of a user's own may answer what is no JSON.
        values = answer_apart(
            list(results.values()),
            lambda some: [encode_result(result) for result in some],
            harmless=lambda: encode_result(self._stage.harmless(pack)),
            text_of=lambda result: result.id,
        )
        records: list[OutputRecord] = []
        for (place, result), value in zip(results.items(), values, strict=True):
            if isinstance(value, BadRecord):
                lost[place] = value
            else:
                records.append(self._record(pack.texts[place], value, result))
        if pack.closed:
            for closed in pack.closed:
                if closed.why in self._unanswered:
                    result = unanswered(pack, closed)
                    records.append(self._record(closed, encode_result(result), result))
            records.sort(key=lambda record: record.answers[0].offset)
        unit.outputs.extend(records)
        unit.lost = [(source_of(pack, pack.texts[place]), pack.texts[place], lost[place]) for place in sorted(lost)]
        self._metrics.stage_done(
            texts=len(results),
            queue_ms=started_ms - unit.queued_ms,
            compute_ms=computed_ms - started_ms,
            output_ms=now_ms() - computed_ms,
        )

    def _record(self, text: PackedText | ClosedText, value: bytes, result: Result) -> OutputRecord:
        return OutputRecord(self._results_topic, text.key, value, text.headers, [result.source])


def _start(name: str, count: int, run: Callable[[], None], on_failure: OnFailure) -> list[threading.Thread]:
    def guarded() -> None:
        try:
            run()
        # BaseException: a panic in a tokenizer's Rust is no Exception.
        except BaseException as err:  # noqa: BLE001 - the thread's last line of defence: the worker must hear of it
            on_failure(err)

    threads = [threading.Thread(target=guarded, name=f"{name}-{i}", daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    return threads


def _join(threads: Sequence[threading.Thread], deadline: Deadline) -> None:
    for thread in threads:
        thread.join(deadline.remaining_s())
