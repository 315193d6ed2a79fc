"""The ensemble file's section `transactions`: how exactly-once delivery commits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.ensemble_file import Section

Delivery = Literal["at_least_once", "exactly_once"]

# Kafka Streams commits every 100 ms where it promises exactly once: results are invisible until then.
DEFAULT_COMMIT_INTERVAL_MS: dict[Delivery, int] = {"at_least_once": 500, "exactly_once": 100}


class TransactionSettings(Section):
    """Of `delivery: exactly_once`; without effect otherwise."""

    producers: int = Field(default=2, ge=1, le=64)
    """Transactional producers of a worker: while one waits for its commit, the others' partitions go on. A partition
    belongs to one of them, so more than the worker has partitions are of no use."""

    max_records: int = Field(default=10_000, ge=1, le=1_000_000)
    """Records in one transaction; a fuller one is committed before its interval has passed."""
