"""The embedded broker in its own process: its one line, its topics, its end."""

from __future__ import annotations

import errno
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient

from pipeline import broker, mock_cluster
from pipeline.broker import (
    CONSUMER_SETTINGS,
    CONTROL_TOPIC,
    BrokerProcess,
    EmbeddedBroker,
    create_topics,
    is_embedded,
    parse_topic,
    serve,
    start_broker_process,
)
from pipeline.errors import UserError, WorkerFailure

pytestmark = [pytest.mark.broker, pytest.mark.processes]

WAIT_S = 20.0
COMMAND = [sys.executable, "-m", "pipeline.broker"]


@pytest.fixture(scope="module")
def process() -> Iterator[BrokerProcess]:
    with start_broker_process({"given": 3}) as process:
        yield process


def partition_counts(bootstrap: str) -> dict[str, int]:
    topics = AdminClient({"bootstrap.servers": bootstrap}).list_topics(timeout=WAIT_S).topics
    return {name: len(topic.partitions) for name, topic in topics.items()}


def test_records_pass_through_another_process(process: BrokerProcess) -> None:
    producer = Producer({"bootstrap.servers": process.bootstrap, "linger.ms": 0})
    producer.produce("given", value=b"text", partition=2)
    assert producer.flush(WAIT_S) == 0
    consumer = Consumer(
        {"bootstrap.servers": process.bootstrap, "group.id": "readers", "auto.offset.reset": "earliest"}
        | CONSUMER_SETTINGS
    )
    consumer.subscribe(["given"])
    (message,) = consumer.consume(1, timeout=WAIT_S)
    consumer.close()
    assert (message.partition(), message.value()) == (2, b"text")


def test_topics_are_created_with_any_number_of_partitions(process: BrokerProcess) -> None:
    assert create_topics(process.bootstrap, {"given": 3, "asked-1": 1, "asked-12": 12}) == ["asked-1", "asked-12"]
    counts = partition_counts(process.bootstrap)
    assert (counts["given"], counts["asked-1"], counts["asked-12"]) == (3, 1, 12)
    assert create_topics(process.bootstrap, {"asked-1": 1}) == []


def test_another_number_of_partitions_than_there_is_gives_one_line(process: BrokerProcess) -> None:
    with pytest.raises(UserError, match="topic given has 3 partitions, wanted are 4"):
        create_topics(process.bootstrap, {"given": 4})
    with pytest.raises(UserError, match="allowed are 1 to 1000"):
        create_topics(process.bootstrap, {"new": 0})


def test_a_bad_request_for_a_topic_stops_nothing(process: BrokerProcess) -> None:
    producer = Producer({"bootstrap.servers": process.bootstrap, "linger.ms": 0})
    for value in (
        b"not json",
        b'{"name": "a b", "partition_count": 1}',
        b'{"name": "given", "partition_count": 9}',
        None,
    ):
        producer.produce(CONTROL_TOPIC, value=value)
    assert producer.flush(WAIT_S) == 0
    assert create_topics(process.bootstrap, {"after": 2}) == ["after"]
    assert partition_counts(process.bootstrap)["given"] == 3


def test_only_an_embedded_broker_s_process_takes_requests() -> None:
    with EmbeddedBroker() as other:
        assert not is_embedded(partition_counts(other.bootstrap))
        with pytest.raises(UserError, match="not an embedded broker's process"):
            create_topics(other.bootstrap, {"texts": 1})
    with pytest.raises(UserError, match="no broker answers"):
        create_topics(other.bootstrap, {"texts": 1}, budget_s=0.3)


def test_stopping_ends_the_process() -> None:
    with start_broker_process() as process:
        assert process.alive
        assert is_embedded(partition_counts(process.bootstrap))
    assert not process.alive


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_0_and_stdout_has_the_address_alone(number: signal.Signals) -> None:
    process = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = process.stdout.readline()
    process.send_signal(number)
    rest, remarks = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0
    host, port = address.rstrip("\n").split(":")
    assert host == "127.0.0.1"
    assert 0 < int(port) < 65_536
    assert rest == ""
    assert "Ctrl-C stops it" in remarks


def test_a_soft_limit_of_open_files_is_raised() -> None:
    process = subprocess.Popen(
        ["sh", "-c", 'ulimit -Sn 24; exec "$@"', "sh", *COMMAND, "--quiet"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    bootstrap = process.stdout.readline().strip()
    clients = [AdminClient({"bootstrap.servers": bootstrap}) for _ in range(40)]
    assert all(is_embedded(client.list_topics(timeout=WAIT_S).topics) for client in clients)
    process.terminate()
    process.communicate(timeout=WAIT_S)


def test_too_few_open_files_are_one_line() -> None:
    limited = ["sh", "-c", 'ulimit -n 24; exec "$@"', "sh", *COMMAND]
    refused = subprocess.run(limited, capture_output=True, text=True, timeout=WAIT_S)
    assert (refused.returncode, refused.stdout) == (2, "")
    says = "the embedded broker needs 64 open files, one a connection and more, and may have 24: ulimit -n 64\n"
    assert refused.stderr == says


def test_no_port_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_none(address: object) -> None:
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))

    monkeypatch.setattr("socket.create_server", find_none)
    with pytest.raises(UserError, match=r"can't listen on 127\.0\.0\.1: "):
        EmbeddedBroker()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--host", "0.0.0.0"], "listens on 127.0.0.1 only, not on 0.0.0.0"),
        (["--host", "example.org"], "listens on 127.0.0.1 only, not on example.org"),
        (["--topic", "texts"], "write it as NAME:PARTITIONS"),
        (["--topic", "texts:0"], "allowed are 1 to 1000"),
        (["--topic", "te xts:1"], "a name has 1 to 249 of the characters"),
    ],
)
def test_a_mistake_gives_one_line_and_exit_code_2(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert broker.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert line in captured.err


def test_a_librdkafka_without_a_mock_cluster_gives_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(mock_cluster._FUNCTIONS, "rd_kafka_mock_gone", (None, []))
    mock_cluster._library.cache_clear()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert broker.main([]) == 2
    finally:
        mock_cluster._library.cache_clear()
        for number, handler in before.items():
            signal.signal(number, handler)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("the embedded broker needs librdkafka's rd_kafka_mock_gone, which ")
    assert captured.err.count("\n") == 1


def test_serve_refuses_other_hosts_for_its_callers_too() -> None:
    with pytest.raises(UserError, match=r"127\.0\.0\.1 only"):
        serve({}, host="192.168.1.7")


def test_a_topic_of_the_command_line() -> None:
    assert parse_topic("reviews.requests:4") == ("reviews.requests", 4)
    for text in ("", ":", ":4", "a:", "a:-1", "a:1.5", "a:\u0664"):
        with pytest.raises(UserError):
            parse_topic(text)


def test_one_that_can_not_start_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(WorkerFailure, match="did not start"):
        start_broker_process()


def test_it_ends_when_whoever_started_it_is_killed() -> None:
    # The starter hands its own stdout on as the broker's stderr: at its end-of-file both are gone.
    starter = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import json, os, sys, time\n"
            "from pipeline.broker import start_broker_process\n"
            "os.dup2(1, 2)\n"
            "process = start_broker_process()\n"
            "print(json.dumps([process.pid, process.bootstrap]), flush=True)\n"
            "time.sleep(60)\n",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert starter.stdout is not None
    pid, bootstrap = json.loads(starter.stdout.readline())
    os.kill(pid, 0)
    assert CONTROL_TOPIC in partition_counts(bootstrap)
    starter.kill()
    starter.wait()
    readable, _, _ = select.select([starter.stdout], [], [], WAIT_S)
    assert readable
    assert starter.stdout.read() == ""
