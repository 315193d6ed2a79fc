"""The one thread that produces: outputs leave in order per partition, and what has arrived moves the watermark.

Steps finish units on their own threads and never wait for a broker; the thread that polls Kafka never waits for
either. So the producer and the lines belong to this thread alone, and a full producer queue holds up nobody else:
in-flight work is bounded by the worker, which stops reading.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from pipeline.deadline import Deadline
from pipeline.errors import WorkerFailure
from pipeline.lines import PartitionLine, Unit
from pipeline.metrics import StageMetrics
from schemas.records import OutputRecord

# How long the thread sleeps on an empty queue before it serves delivery reports. They only move the watermark.
_SERVE_EVERY_S = 0.02
# A produce call that finds the queue full waits this long for reports to make room, then tries again.
_QUEUE_FULL_WAIT_S = 0.1
# The client's own limit (message.max.bytes) and the topic's (max.message.bytes).
_TOO_LARGE = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE})


class Emitter:
    """Owns a producer; `finish` takes units from any thread.

    `on_arrived(unit)` is called when a unit has arrived and everything before it too, `oversized(unit, output, why)`
    makes the dead letters that stand for an output too large for its topic, `on_failure(err)` is called at most once
    and nothing is produced after it: all three on the emitter's thread.
    """

    def __init__(
        self,
        producer: Producer,
        *,
        on_arrived: Callable[[Unit], None],
        oversized: Callable[[Unit, OutputRecord, str], list[OutputRecord]],
        on_failure: Callable[[BaseException], None],
        dead_letters_topic: str,
        metrics: StageMetrics,
    ) -> None:
        self._producer = producer
        self._dead_letters_topic = dead_letters_topic
        self._metrics = metrics
        self._on_arrived = on_arrived
        self._oversized = oversized
        self._on_failure = on_failure
        self._inbox: queue.SimpleQueue[Unit | None] = queue.SimpleQueue()
        self._failed = False
        self._thread = threading.Thread(target=self._run, name="emitter", daemon=True)
        self._thread.start()

    def finish(self, unit: Unit) -> None:
        """A unit's outputs are complete. Called once a unit, from any thread; never blocks."""
        self._inbox.put(unit)

    def close(self, deadline: Deadline) -> None:
        """Deliver what was produced, as far as the deadline allows, and stop the thread."""
        self._inbox.put(None)
        self._thread.join(deadline.remaining_s())
        self._producer.flush(deadline.remaining_s())

    def _run(self) -> None:
        try:
            while self._serve():
                self._producer.poll(0)
        except Exception as err:  # noqa: BLE001 - the thread's last line of defence: the worker must hear of it
            self._fail(err)

    def _serve(self) -> bool:
        """Emit what has finished; whether there may be more."""
        try:
            unit = self._inbox.get(timeout=_SERVE_EVERY_S)
            while unit is not None:
                self._emit(unit)
                unit = self._inbox.get_nowait()
        except queue.Empty:
            return True
        return False

    def _emit(self, unit: Unit) -> None:
        if unit.line.dropped or self._failed:
            return
        for ready in unit.line.finish(unit):
            for output in ready.outputs:
                self._produce(ready, output)
        self._advance(unit.line)

    def _produce(self, unit: Unit, output: OutputRecord) -> None:
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
        replaceable = err.code() in _TOO_LARGE and output.topic != self._dead_letters_topic
        if not replaceable:
            self._fail(WorkerFailure(f"{output.topic} [{unit.line.partition}]: not delivered: {err.str()}"))
            return
        dead_letters = self._oversized(unit, output, err.str())
        unit.undelivered += len(dead_letters) - 1
        for dead_letter in dead_letters:
            self._produce(unit, dead_letter)

    def _advance(self, line: PartitionLine) -> None:
        for unit in line.advance():
            self._on_arrived(unit)

    def _fail(self, err: BaseException) -> None:
        if not self._failed:
            self._failed = True
            self._on_failure(err)
