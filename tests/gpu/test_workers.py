"""Workers on a real GPU: how they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from pipeline.broker import BrokerProcess, start_broker_process
from pipeline.exit_codes import EXIT_FAILED
from tests.chaos.tiny_ensemble import PARTITIONS, some_texts, write_ensemble
from tests.cli.conftest import PENSTOCK, Started, environment
from tests.eventually import eventually

LOST_GPU = Path(__file__).parent / "lost_gpu"


@pytest.fixture
def kafka() -> Iterator[BrokerProcess]:
    with start_broker_process({}) as broker:
        yield broker


@pytest.fixture
def file(tmp_path: Path, kafka: BrokerProcess, plan_cache: Path) -> Path:
    engine = {"kind": "tensorrt", "plan_cache": str(plan_cache), "devices": [0]}
    file = write_ensemble(tmp_path, name="gpu", bootstrap=kafka.bootstrap, engine=engine)
    for command in ["topics", file, "--create"], ["build", file]:
        subprocess.run([*PENSTOCK, *map(str, command)], check=True, timeout=300)
    return file


class Traffic:
    def __init__(self, kafka: BrokerProcess) -> None:
        self._producer = Producer({"bootstrap.servers": kafka.bootstrap, "linger.ms": 0})
        self._results = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": "test", "fetch.wait.max.ms": 10})
        self._results.assign([TopicPartition("gpu.results", partition, 0) for partition in range(PARTITIONS)])
        self.sent = 0
        self.answered: dict[str, int] = {}

    def send(self, count: int) -> None:
        for text in some_texts(count, seed=self.sent):
            value = json.dumps({"text": text, "id": str(self.sent)})
            self._producer.produce("gpu.requests", value, partition=self.sent % PARTITIONS)
            self.sent += 1
        assert self._producer.flush(60) == 0

    def read(self) -> int:
        for message in self._results.consume(5_000, 0.1):
            assert message.error() is None
            found = str(json.loads(message.value() or b"")["id"])
            self.answered[found] = self.answered.get(found, 0) + 1
        return len(self.answered)


def started(file: Path, **environ: str) -> subprocess.Popen[bytes]:
    command = [*PENSTOCK, "run", "fused", str(file)]
    return Started(command, env=environment(environ), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_a_worker_ends_with_0_at_sigterm(file: Path, kafka: BrokerProcess) -> None:
    traffic = Traffic(kafka)
    traffic.send(3_000)
    worker = started(file)
    eventually(lambda: traffic.read() > 0)
    worker.send_signal(signal.SIGTERM)
    said, _ = worker.communicate(timeout=60)
    assert worker.returncode == 0, said.decode()
    traffic.send(100)
    worker = started(file)
    eventually(lambda: traffic.read() == traffic.sent)
    worker.send_signal(signal.SIGINT)
    worker.communicate(timeout=60)
    assert worker.returncode == 0
    assert set(traffic.answered.values()) == {1}


def test_a_worker_whose_gpu_is_lost_leaves_without_committing(file: Path, kafka: BrokerProcess) -> None:
    traffic = Traffic(kafka)
    traffic.send(100)
    worker = started(file, PYTHONPATH=f"{LOST_GPU}:{os.environ.get('PYTHONPATH', '')}")
    eventually(lambda: traffic.read() == traffic.sent)
    traffic.send(20_000)
    worker.send_signal(signal.SIGUSR1)
    said, _ = worker.communicate(timeout=60)
    assert b"launched:" in said
    assert worker.returncode == EXIT_FAILED, said.decode()
    assert b"GPU 0" in said
    assert b"Traceback" not in said
    answered = traffic.read()
    assert answered < traffic.sent
    worker = started(file)
    eventually(lambda: traffic.read() == traffic.sent)
    worker.send_signal(signal.SIGTERM)
    worker.communicate(timeout=60)
    assert worker.returncode == 0
