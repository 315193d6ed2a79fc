"""Partitions that a killed worker had given up, and that its successor does not get back, are read again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from pipeline.settings import EnsembleSettings
from tests.delivery.conftest import Echo, MakeSettings
from tests.delivery.topics import in_order, results, send
from tests.eventually import eventually

pytestmark = [pytest.mark.apache, pytest.mark.processes, pytest.mark.slow]

Start = Callable[..., Echo]

# A worker's consumer, as a process that can be killed, which gives partitions up and comes no further.
_HOLDER = """
import sys, time
from pipeline import clients

def assigned(consumer, partitions):
    consumer.incremental_assign(partitions)
    print("assigned", len(partitions), flush=True)

def revoked(consumer, partitions):
    print("revoked", len(partitions), flush=True)
    time.sleep(600)

bootstrap, group, name, topic = sys.argv[1:]
consumer = clients.consumer(
    {"bootstrap.servers": bootstrap}, group=group, client_id=name, instance=name,
    on_error=lambda error: None, on_commit=lambda error, places: None,
)
consumer.subscribe([topic], on_assign=assigned, on_revoke=revoked)
while True:
    consumer.poll(0.05)
"""


def _holder(made: EnsembleSettings, name: str) -> subprocess.Popen[str]:
    bootstrap = str(made.kafka.client_settings()["bootstrap.servers"])
    arguments = [bootstrap, made.group_id("tokenize"), name, made.topic_names.requests]
    return subprocess.Popen([sys.executable, "-c", _HOLDER, *arguments], stdout=subprocess.PIPE, text=True)


def _said(holder: subprocess.Popen[str]) -> str:
    assert holder.stdout is not None
    return holder.stdout.readline().strip()


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_what_a_killed_worker_was_giving_up_is_read_when_it_is_back(
    settings: MakeSettings, start: Start, delivery: str
) -> None:
    made = settings(delivery=delivery, drain_timeout_ms=1_000)
    with _holder(made, "a") as holder:
        try:
            assert _said(holder) == "assigned 4"
            other = start(made, name="b")
            other.worker._orphans = None  # only a member that starts is to notice
            assert _said(holder) == "revoked 2"
        finally:
            holder.kill()
    send(made, range(40))
    again = start(made, name="a")
    assert results(made, 40) == in_order(made, 40)
    search = again.worker._orphans
    eventually(lambda: search is not None and search.over)
    for echo in (other, again):
        echo.end()
        assert echo.error is None
    assert other.records_seen + again.records_seen == 40
