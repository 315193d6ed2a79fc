"""What a worker commits when it hands partitions over, whatever became of the commits before."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import cast

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from pipeline.assignment import Assignment
from pipeline.deadline import Deadline
from pipeline.emitter import Emitter
from pipeline.lines import Unit
from pipeline.metrics import WorkerMetrics
from schemas.records import InputRecord, Source


class Coordinator:
    """A consumer that only commits."""

    def __init__(self) -> None:
        self.committed: dict[int, int] = {}
        self.refuses: KafkaError | None = None

    def commit(self, *, offsets: list[TopicPartition], asynchronous: bool) -> list[TopicPartition] | None:
        if not asynchronous and self.refuses is not None:
            raise KafkaException(self.refuses)
        if self.refuses is None:
            self.committed.update((each.partition, each.offset) for each in offsets)
        return None if asynchronous else offsets


class NoProducer:
    def flush(self, _timeout: float) -> int:
        return 0


def an_assignment() -> Assignment:
    metrics = WorkerMetrics("reviews").stage("tokenize")
    delivery = Emitter(
        cast("object", NoProducer()),  # type: ignore[arg-type]
        on_arrived=lambda unit: None,
        oversized=lambda unit, output, why: [],
        on_failure=lambda err: None,
        metrics=metrics,
    )
    assignment = Assignment("requests", max_in_flight_tokens=100, metrics=metrics, delivery=delivery)
    assignment.add([0])
    return assignment


def arrive(assignment: Assignment, offset: int) -> None:
    line = assignment.line(0)
    assert line is not None
    record = InputRecord(Source("requests", 0, offset), None, b"", [])
    unit = Unit(line=line, records=[record], texts=1, tokens_in_flight=1, read_ms=0.0)
    line.begin(unit)
    line.finish(unit)
    line.advance()


def test_what_a_failed_commit_did_not_commit_is_committed_at_the_hand_over() -> None:
    """Its failure is reported later: only the hand-over itself may not rely on it."""
    assignment, coordinator = an_assignment(), Coordinator()
    arrive(assignment, 6)
    coordinator.refuses = KafkaError(KafkaError.COORDINATOR_NOT_AVAILABLE)
    assignment.commit(cast(Consumer, coordinator), wait=False)
    coordinator.refuses = None
    assignment.hand_over(cast(Consumer, coordinator), [0], Deadline(1.0), lambda: False)
    assert coordinator.committed == {0: 7}


def test_a_commit_that_was_refused_for_one_partition_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    assignment, coordinator = an_assignment(), Coordinator()
    arrive(assignment, 6)
    coordinator.refuses = KafkaError(KafkaError.COORDINATOR_NOT_AVAILABLE)
    assignment.commit(cast(Consumer, coordinator), wait=False)
    coordinator.refuses = None
    # As the client reports it; TopicPartition's own error can't be set.
    refused = SimpleNamespace(partition=0, offset=7, error=KafkaError(KafkaError.COORDINATOR_NOT_AVAILABLE))
    with caplog.at_level(logging.WARNING):
        assignment.on_commit(None, cast(list[TopicPartition], [refused]))
    assignment.commit(cast(Consumer, coordinator), wait=False)
    assert coordinator.committed == {0: 7}
    assert "is tried again" in caplog.text
