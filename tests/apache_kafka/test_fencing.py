"""A killed broker leaves no transaction open: its successor finds it out of the metadata already."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from pipeline.apache_kafka import fencing
from pipeline.apache_kafka.broker import ApacheBroker
from pipeline.apache_kafka.runtime import Runtime
from pipeline.apache_kafka.watched_process import WatchedProcess
from pipeline.errors import WorkerFailure
from tests.eventually import WAIT_S, eventually

PARTITIONS = 4
PRODUCERS = 8
TRANSACTION_TIMEOUT_S = 2.0


class Committer:
    """Commits one small transaction after the other, until the broker is gone or it is told to stop."""

    def __init__(self, bootstrap: str) -> None:
        self.commits = 0
        self.stopped = threading.Event()
        self._settings = {
            "bootstrap.servers": bootstrap,
            "transactional.id": uuid.uuid4().hex,
            "transaction.timeout.ms": int(TRANSACTION_TIMEOUT_S * 1e3),
            "linger.ms": 0,
            "log_level": 0,
        }
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        producer = Producer(self._settings)
        try:
            producer.init_transactions(WAIT_S)
            while not self.stopped.is_set():
                producer.begin_transaction()
                for partition in range(PARTITIONS):
                    producer.produce("topic", b"value", partition=partition)
                producer.commit_transaction(TRANSACTION_TIMEOUT_S)
                self.commits += 1
        except KafkaException:
            pass


def ends(bootstrap: str, isolation: str) -> list[int]:
    """Of each partition, where a reader of this isolation stops."""
    reader = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": "reader", "isolation.level": isolation, "log_level": 0}
    )
    try:
        places = [TopicPartition("topic", partition) for partition in range(PARTITIONS)]
        return [reader.get_watermark_offsets(place, WAIT_S)[1] for place in places]
    finally:
        reader.close()


@pytest.mark.apache
@pytest.mark.processes
@pytest.mark.slow
def test_a_kill_leaves_no_transaction_open(apache_runtime: Runtime, tmp_path: Path) -> None:
    with ApacheBroker(tmp_path, runtime=apache_runtime) as broker:
        admin = AdminClient({"bootstrap.servers": broker.bootstrap, "log_level": 0})
        [created] = admin.create_topics([NewTopic("topic", PARTITIONS, 1)]).values()
        created.result(WAIT_S)
        for _ in range(3):
            # Producers of each kill's own: who goes on under an old name would end what it had left open.
            committers = [Committer(broker.bootstrap) for _ in range(PRODUCERS)]
            eventually(lambda: all(each.commits > 10 for each in committers))  # noqa: B023 - called at once
            broker.kill()
            for each in committers:
                each.stopped.set()
            broker.start()
        # What had not come to its commit is ended when it times out.
        eventually(
            lambda: ends(broker.bootstrap, "read_committed") == ends(broker.bootstrap, "read_uncommitted"),
            say=lambda: (ends(broker.bootstrap, "read_committed"), ends(broker.bootstrap, "read_uncommitted")),
        )


def said_by(tmp_path: Path, script: str) -> tuple[WatchedProcess, Path]:
    output = tmp_path / "said"
    return WatchedProcess(["/bin/sh", "-c", script], folder=tmp_path, output=output, environment={}), output


@pytest.mark.processes
def test_a_controller_has_fenced(tmp_path: Path) -> None:
    process, output = said_by(tmp_path, "echo 'Fencing broker 1 at epoch 7'; sleep 60")
    assert fencing.fence(process, output.read_text)
    assert process.exit_code is not None


@pytest.mark.processes
def test_a_controller_that_has_nobody_to_fence_is_not_waited_for(tmp_path: Path) -> None:
    process, output = said_by(tmp_path, "echo 'Performing controller activation.'; sleep 60")
    assert fencing.fence(process, output.read_text)
    assert process.exit_code is not None


@pytest.mark.processes
def test_a_controller_that_ends_by_itself_has_not_fenced(tmp_path: Path) -> None:
    process, output = said_by(tmp_path, "exit 3")
    assert not fencing.fence(process, output.read_text)


@pytest.mark.processes
def test_a_controller_that_never_comes_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fencing, "_BUDGET_S", 0.1)
    process, output = said_by(tmp_path, "sleep 60")
    with pytest.raises(WorkerFailure, match="was not there within"):
        fencing.fence(process, output.read_text)
    assert process.exit_code is not None
