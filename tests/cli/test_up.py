"""`penstock up` and `run` as processes: drained, killed, orphaned; every request is answered all the same."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition

import pipeline.up
from pipeline.broker import BrokerProcess
from pipeline.errors import UserError
from pipeline.settings import load_ensemble
from tests.cli.conftest import WAIT_S, Penstock, WriteEnsemble, start_process
from tests.eventually import eventually

pytestmark = [pytest.mark.broker, pytest.mark.processes]


class Traffic:
    """Requests with ids that count up, and their results."""

    def __init__(self, kafka: BrokerProcess, name: str) -> None:
        self._name = name
        self._producer = Producer({"bootstrap.servers": kafka.bootstrap, "linger.ms": 0})
        self._consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": "test"})
        self._consumer.assign([TopicPartition(f"{name}.results", partition, 0) for partition in (0, 1)])
        self.sent = 0
        self.answered: dict[int, int] = {}

    def send(self, count: int) -> None:
        for number in range(self.sent, self.sent + count):
            value = json.dumps({"text": f"Text number {number}.", "id": str(number)})
            self._producer.produce(f"{self._name}.requests", value, partition=number % 2)
        self.sent += count
        assert self._producer.flush(WAIT_S) == 0

    def read(self, until: Callable[[], bool]) -> None:
        """Take results until something is so."""
        deadline_s = time.monotonic() + WAIT_S
        while not until():
            assert time.monotonic() < deadline_s, f"{len(self.answered)} of {self.sent} requests are answered"
            for message in self._consumer.consume(500, 0.1):
                self._count(message)

    def all_answered(self) -> bool:
        return len(self.answered) == self.sent

    def close(self) -> None:
        self._consumer.close()

    def _count(self, message: Message) -> None:
        assert message.error() is None
        number = int(json.loads(message.value() or b"")["id"])
        self.answered[number] = self.answered.get(number, 0) + 1


@pytest.fixture
def traffic(kafka: BrokerProcess, request: pytest.FixtureRequest) -> Iterator[Traffic]:
    made = Traffic(kafka, request.node.name)
    yield made
    made.close()


@contextmanager
def running(*arguments: str | Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command until the test is over; then nothing of it is left, whatever the test said."""
    with log.open("wb") as err, start_process(*arguments, stderr=err, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            left = children(process) if process.poll() is None else []
            process.kill()
            for each in left:
                each.kill()


def children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def workers(process: subprocess.Popen[bytes]) -> dict[str, psutil.Process]:
    """The stages' workers by what they run."""
    return {child.cmdline()[-4]: child for child in children(process)}


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=WAIT_S)
    assert not alive


def test_at_info_only_what_the_file_changes_is_told(
    ensemble: WriteEnsemble, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def find_none(_: object) -> None:
        raise UserError("no broker")

    monkeypatch.setattr(pipeline.up, "reach_broker", find_none)
    caplog.set_level(logging.DEBUG, "penstock.up")
    with pytest.raises(UserError):
        pipeline.up.up(load_ensemble(ensemble()), ensemble(), fused=False)
    told = {record.message: record.levelname for record in caplog.records}
    assert (told["topics.partitions = 2"], told["topics.replication_factor = 1"]) == ("INFO", "DEBUG")


@pytest.mark.slow
def test_stages_that_are_killed_are_started_again_and_nothing_is_lost(
    ensemble: WriteEnsemble, kafka: BrokerProcess, traffic: Traffic, tmp_path: Path
) -> None:
    file = ensemble(bootstrap=kafka.bootstrap)
    log = tmp_path / "log"
    with running("--log-level", "warning", "up", file, log=log) as process:
        # Sending makes no topic: up does that first.
        wait_for_topics(kafka, f"{traffic._name}.requests")
        traffic.send(50)
        traffic.read(traffic.all_answered)
        for each in workers(process).values():
            traffic.send(100)
            each.kill()
            traffic.send(100)
        traffic.read(traffic.all_answered)
        left = workers(process)
        assert sorted(left) == ["encode", "postprocess", "tokenize"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
        assert_gone([*left.values()])
    lines = log.read_text().splitlines()
    for role in ("tokenize", "encode", "postprocess"):
        assert sum(f"{role} was ended by SIGKILL: starting it again in 0.2 s" in line for line in lines) == 1
    assert not any("Traceback" in line for line in lines)
    # What was on its way when a worker was killed may be answered twice, and is the minority.
    assert sum(traffic.answered.values()) < 2 * traffic.sent


@pytest.mark.slow
def test_a_standby_takes_over_what_it_has_loaded_for(
    ensemble: WriteEnsemble, kafka: BrokerProcess, traffic: Traffic, tmp_path: Path
) -> None:
    file = ensemble(bootstrap=kafka.bootstrap)
    log = tmp_path / "log"

    def said(what: str) -> int:
        return log.read_text().count(what)

    with running("up", file, "--fused", "--standby", log=log) as process:
        wait_for_topics(kafka, f"{traffic._name}.requests")
        traffic.send(50)
        traffic.read(traffic.all_answered)
        # Both have loaded; which of them works is told by its pid.
        eventually(lambda: said("stands by") == 2)
        pids = [int(pid) for pid in re.findall(r"fused [ab] started \(pid (\d+)\)", log.read_text())]
        assert len(pids) == 2
        working = next(pid for pid in pids if psutil.Process(pid).net_connections())
        traffic.send(100)
        os.kill(working, signal.SIGKILL)
        traffic.send(100)
        traffic.read(traffic.all_answered)
        assert said("assigned") >= 2
        eventually(lambda: said("stands by") == 3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0


@pytest.mark.slow
def test_a_fused_worker_is_started_again_and_leaves_with_its_supervisor(
    ensemble: WriteEnsemble, kafka: BrokerProcess, traffic: Traffic, tmp_path: Path
) -> None:
    file = ensemble(bootstrap=kafka.bootstrap)
    log = tmp_path / "log"
    with running("--log-level", "warning", "up", file, "--fused", log=log) as process:
        wait_for_topics(kafka, f"{traffic._name}.requests")
        traffic.send(50)
        traffic.read(traffic.all_answered)
        traffic.send(100)
        workers(process)["fused"].kill()
        traffic.send(100)
        traffic.read(traffic.all_answered)
        left = workers(process)["fused"]
        process.kill()
        process.wait(WAIT_S)
        assert_gone([left])
    assert "the supervisor is gone: draining" in log.read_text()


@pytest.mark.slow
def test_one_stage_alone_drains_on_sigterm(
    ensemble: WriteEnsemble, kafka: BrokerProcess, traffic: Traffic, penstock: Penstock, tmp_path: Path
) -> None:
    file = ensemble(bootstrap=kafka.bootstrap)
    assert penstock("topics", file, "--create").code == 0
    traffic.send(200)
    with running("run", "fused", file, log=tmp_path / "log") as process:
        traffic.read(lambda: len(traffic.answered) > 0)
        traffic.send(200)
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
    before = dict(traffic.answered)
    # What it had read is answered and committed: another goes on where it ended.
    traffic.send(1)  # answered only once it is at work: before that, Ctrl-C ends what is loading with 130
    with running("run", "fused", file, log=tmp_path / "log") as process:
        traffic.read(traffic.all_answered)
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 0
    assert before
    assert set(traffic.answered.values()) == {1}


def test_workers_of_a_stage_share_an_embedded_brokers_partitions(
    ensemble: WriteEnsemble, kafka: BrokerProcess, penstock: Penstock, tmp_path: Path
) -> None:
    file = ensemble(bootstrap=kafka.bootstrap)
    assert penstock("topics", file, "--create").code == 0
    logs = [tmp_path / "first", tmp_path / "second"]

    def holds(log: Path) -> set[int]:
        held: set[int] = set()
        for what, partitions in re.findall(r"(assigned|revoked) \S+ (\[.*\])", log.read_text()):
            held = held | {*json.loads(partitions)} if what == "assigned" else held - {*json.loads(partitions)}
        return held

    with running("run", "tokenize", file, log=logs[0]), running("run", "tokenize", file, log=logs[1]):
        eventually(lambda: sorted(map(holds, logs), key=sorted) == [{0}, {1}])


def test_a_stage_that_can_not_listen_stops_all_of_them(
    ensemble: WriteEnsemble, kafka: BrokerProcess, tmp_path: Path
) -> None:
    file = ensemble(bootstrap=kafka.bootstrap, http={"host": "192.0.2.1"})
    log = tmp_path / "log"
    with running("--log-level", "error", "up", file, "--fused", log=log) as process:
        assert process.wait(WAIT_S) == 2
    assert [line.partition("http.host: ")[2][:12] for line in log.read_text().splitlines()[:1]] == ["can't listen"]


def test_a_second_worker_of_a_stage_takes_another_port(
    ensemble: WriteEnsemble, kafka: BrokerProcess, traffic: Traffic, penstock: Penstock, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        file = ensemble(bootstrap=kafka.bootstrap, http={"port": port})
        assert penstock("topics", file, "--create", "--fused").code == 0
        traffic.send(1)
        log = tmp_path / "log"
        with running("run", "fused", file, log=log) as process:
            traffic.read(traffic.all_answered)
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT_S) == 0
    assert f"http.port: {port} is taken: taking a free one; --http-port chooses" in log.read_text()


def test_the_embedded_broker_says_its_address_and_stops_when_told(tmp_path: Path) -> None:
    with running("broker", "--topic", "t:3", log=tmp_path / "log") as process:
        assert process.stdout is not None
        bootstrap = process.stdout.readline().decode().strip()
        consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "test"})
        assert len(consumer.list_topics(timeout=WAIT_S).topics["t"].partitions) == 3
        consumer.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0


def wait_for_topics(kafka: BrokerProcess, name: str) -> None:
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": "test"})
    deadline_s = time.monotonic() + WAIT_S
    while name not in consumer.list_topics(timeout=WAIT_S).topics:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    consumer.close()
