from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.apache_kafka.runtime import Runtime
from tests.chaos.transcript_kills import Plan, kill

pytestmark = [pytest.mark.apache, pytest.mark.processes, pytest.mark.slow]


# Kills of Apache Kafka's clients, 3 s of start after each.
@pytest.mark.timeout(240)
def test_transcripts_are_the_same_whoever_is_killed(apache_runtime: Runtime, tmp_path: Path) -> None:
    plan = Plan(streams=12, kills=8, seed=3, seconds=24.0)
    outcome = kill(plan, tmp_path, runtime=apache_runtime)
    assert outcome.broken == [], f"logs are in {tmp_path}"
    assert outcome.equal == outcome.transcripts == 12
    assert sum(outcome.kills.values()) == 8


@pytest.mark.timeout(240)
def test_each_record_of_the_feed_is_heard_whoever_is_killed(apache_runtime: Runtime, tmp_path: Path) -> None:
    plan = Plan(streams=8, kills=12, seed=4, seconds=20.0, all_final=True, victims=("transcripts",))
    outcome = kill(plan, tmp_path, runtime=apache_runtime)
    assert outcome.broken == [], f"logs are in {tmp_path}"
    assert outcome.equal == outcome.transcripts == 8
    assert outcome.kills == {"transcripts": 12}
