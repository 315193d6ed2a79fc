"""At-least-once delivery: outputs leave in order per partition, and what has arrived moves the watermark.

Steps finish units on their own threads and never wait for a broker; the thread that polls Kafka never waits for
either. So the producer and the lines belong to one thread, and a full producer queue holds up nobody else: in-flight
work is bounded by the worker, which stops reading.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from pipeline import clients
from pipeline.deadline import Deadline
from pipeline.delivery import TOO_LARGE
from pipeline.errors import WorkerFailure
from pipeline.lines import PartitionLine, Unit
from pipeline.metrics import StageMetrics
from schemas.records import OutputRecord

# How long the thread sleeps on an empty queue before it serves delivery reports. They only move the watermark.
_SERVE_EVERY_S = 0.02
# A produce call that finds the queue full waits this long for reports to make room, then tries again.
_QUEUE_FULL_WAIT_S = 0.1
# Delivering all that is on its way, before and after a record that goes alone.
_ALONE_S = 30.0


class Emitter:
    """Implements `pipeline.delivery.Delivery`: one producer, one thread.

    `on_arrived(unit)` is called when a unit has arrived and everything before it too, `oversized(unit, output, why)`
    makes what stands for an output too large for its topic (nothing, where nothing can), `on_failure(err)` is called at
    most once and nothing is produced after it: all three on the emitter's thread.
    """

    commits_offsets = False

    def __init__(
        self,
        producer: Producer,
        *,
        on_arrived: Callable[[Unit], None],
        oversized: Callable[[Unit, OutputRecord, str], list[OutputRecord]],
        on_failure: Callable[[BaseException], None],
        metrics: StageMetrics,
    ) -> None:
        self._producer = producer
        self._metrics = metrics
        self._on_arrived = on_arrived
        self._oversized = oversized
        self._on_failure = on_failure
        self._inbox: queue.SimpleQueue[Unit | None] = queue.SimpleQueue()
        self._failed = False
        # A broker refuses a batch of records for its size as a whole: each of them is then tried alone, once.
        self._to_try_alone: list[tuple[Unit, OutputRecord]] = []
        self._alone: OutputRecord | None = None
        self._thread = threading.Thread(target=self._run, name="emitter", daemon=True)

    def open(self, stopped: Callable[[], bool]) -> None:  # noqa: ARG002 - a producer is ready at once
        """Start the thread."""
        self._thread.start()

    def finish(self, unit: Unit) -> None:
        self._inbox.put(unit)

    def hurry(self, hurried: bool) -> None:
        """Nothing is held back in the first place."""

    def release(self, lines: Iterable[PartitionLine]) -> None:
        for line in lines:
            line.dropped = True

    def stop(self) -> None:
        self._failed = True

    def close(self, deadline: Deadline) -> None:
        """Deliver what was produced, as far as the deadline allows, and end the thread."""
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(deadline.remaining_s())
        self._producer.flush(deadline.remaining_s())

    def turn(self, wait_s: float) -> bool:
        """Emit what has finished, waiting so long for it, and serve reports; whether there may be more."""
        try:
            unit = self._inbox.get(timeout=wait_s) if wait_s > 0 else self._inbox.get_nowait()
            while unit is not None:
                self._emit(unit)
                unit = self._inbox.get_nowait()
        except queue.Empty:
            self._producer.poll(0)
            self._try_alone()
            return True
        return False

    def _run(self) -> None:
        try:
            while self.turn(_SERVE_EVERY_S):
                pass
        except BaseException as err:  # noqa: BLE001 - the thread's last line of defence: the worker must hear of it
            self._fail(err)

    def _emit(self, unit: Unit) -> None:
        if unit.line.dropped or self._failed:
            return
        for ready in unit.line.finish(unit):
            for output in list(ready.outputs):
                self._produce(ready, output)
        self._advance(unit.line)

    def _produce(self, unit: Unit, output: OutputRecord) -> None:
        asked = False
        while not self._failed and not unit.line.dropped:
            try:
                self._producer.produce(
                    output.topic,
                    output.value,
                    output.key,
                    unit.line.partition,
                    partial(self._delivered, unit, output),
                    headers=[*output.headers],
                )
            except BufferError:
                self._producer.poll(_QUEUE_FULL_WAIT_S)
            except KafkaException as err:
                if not asked and err.args[0].code() == KafkaError._UNKNOWN_PARTITION:
                    asked = True
                    if clients.has_partition(self._producer, output.topic, unit.line.partition):
                        continue
                self._undelivered(unit, output, err.args[0])
                return
            else:
                return

    def _delivered(self, unit: Unit, output: OutputRecord, err: KafkaError | None, _message: Message) -> None:
        if err is not None:
            self._undelivered(unit, output, err)
            return
        unit.undelivered -= 1
        if not unit.undelivered:
            self._advance(unit.line)

    def _undelivered(self, unit: Unit, output: OutputRecord, err: KafkaError) -> None:
        self._metrics.delivery_failed()
        if err.code() in TOO_LARGE and output is not self._alone:
            self._to_try_alone.append((unit, output))
            return
        replacements = self._oversized(unit, output, err.str()) if err.code() in TOO_LARGE else []
        if not replacements:
            self._fail(WorkerFailure(f"{output.topic} [{unit.line.partition}]: not delivered: {err.str()}"))
            return
        unit.replace(output, replacements)
        unit.undelivered += len(replacements) - 1
        for replacement in replacements:
            self._produce(unit, replacement)

    def _try_alone(self) -> None:
        while self._to_try_alone and not self._failed:
            unit, self._alone = self._to_try_alone.pop(0)
            self._producer.flush(_ALONE_S)
            self._produce(unit, self._alone)
            self._producer.flush(_ALONE_S)
            self._alone = None

    def _advance(self, line: PartitionLine) -> None:
        for unit in line.advance():
            self._on_arrived(unit)

    def _fail(self, err: BaseException) -> None:
        if not self._failed:
            self._failed = True
            self._on_failure(err)
