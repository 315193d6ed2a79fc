"""The chaos script, short: what is promised holds while workers and the broker are killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.apache_kafka.runtime import Runtime
from tests.chaos.chaos import Plan, chaos

pytestmark = [pytest.mark.apache, pytest.mark.processes]


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
def test_nothing_is_lost_and_order_is_kept_while_processes_are_killed(
    delivery: str, apache_runtime: Runtime, tmp_path: Path
) -> None:
    plan = Plan(requests=1_500, kills=8, broker_kills=1, delivery=delivery, seed=7, seconds=12.0)
    outcome = chaos(plan, tmp_path, runtime=apache_runtime)
    assert outcome.broken == [], f"logs are in {tmp_path / 'logs'}"
    assert outcome.answered == outcome.requests == 1_500
    assert sum(outcome.kills.values()) == 8
    assert outcome.broker_kills == 1
