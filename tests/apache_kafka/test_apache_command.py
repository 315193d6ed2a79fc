"""`penstock broker --apache`: its one line, its topics, its mistakes, its end."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import psutil
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from pipeline import cli
from pipeline.apache_kafka.runtime import Runtime
from pipeline.deadline import Deadline

pytestmark = [pytest.mark.apache, pytest.mark.processes, pytest.mark.slow]

WAIT_S = 60.0
COMMAND = [sys.executable, "-P", "-m", "pipeline.cli", "broker", "--apache"]


class Command(subprocess.Popen[str]):
    """The command, and what it started."""

    def __init__(self, *arguments: str | Path) -> None:
        super().__init__(
            [*COMMAND, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Under nohup it would be ignored.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )
        self.family: list[psutil.Process] = []

    def address(self) -> str:
        """Waits until it serves."""
        line = self._stream(self.stdout).readline()
        assert re.fullmatch(r"127\.0\.0\.1:\d+\n", line), self._stream(self.stderr).read()
        self.family = psutil.Process(self.pid).children(recursive=True)
        assert "java" in {process.name() for process in self.family}
        return line.strip()

    def remarks(self) -> str:
        """The rest of stderr, once it has ended; stdout must have had the address alone."""
        rest, remarks = self.communicate(timeout=WAIT_S)
        assert rest == ""
        return remarks

    def assert_nothing_is_left(self) -> None:
        assert self.family
        _, alive = psutil.wait_procs(self.family, timeout=WAIT_S)
        assert not alive

    @staticmethod
    def _stream(stream: IO[str] | None) -> IO[str]:
        assert stream is not None
        return stream


@pytest.fixture
def run(apache_runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Command]]:
    """Runs the command, with temporary folders inside of this test's own."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    commands: list[Command] = []

    def started(*arguments: str | Path) -> Command:
        commands.append(Command(*arguments))
        return commands[-1]

    yield started
    for command in commands:
        command.kill()
        command.communicate()


def arguments(process: psutil.Process) -> list[str]:
    """None of one that is gone or not ours to ask."""
    return process.info["cmdline"] or []


def partition_counts(bootstrap: str) -> dict[str, int]:
    topics = AdminClient({"bootstrap.servers": bootstrap}).list_topics(timeout=WAIT_S).topics
    return {name: len(topic.partitions) for name, topic in topics.items()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_with_0_and_leaves_nothing(
    run: Callable[..., Command], number: signal.Signals, tmp_path: Path
) -> None:
    command = run("--port", "0")
    command.address()
    assert list((tmp_path / "tmp").iterdir())
    command.send_signal(number)
    remarks = command.remarks()
    assert command.returncode == 0, remarks
    assert "Its records are gone when it stops" in remarks
    command.assert_nothing_is_left()
    assert not list((tmp_path / "tmp").iterdir())


def test_its_port_and_topics_are_as_asked_and_its_data_is_there_again(
    run: Callable[..., Command], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    arguments = ["--data", tmp_path / "data", "--port", str(port)]
    command = run(*arguments, "--topic", "texts:3")
    assert command.address() == f"127.0.0.1:{port}"
    producer = Producer({"bootstrap.servers": f"127.0.0.1:{port}"})
    producer.produce("texts", b"x", partition=2)
    assert producer.flush(WAIT_S) == 0
    command.terminate()
    assert f"Its records stay in {tmp_path / 'data'}" in command.remarks()

    command = run(*arguments, "--topic", "texts:3", "--topic", "more:12")
    assert partition_counts(command.address()) == {"texts": 3, "more": 12}
    command.terminate()
    command.remarks()

    command = run(*arguments, "--topic", "texts:4")
    assert command.remarks() == "penstock: topic texts has 3 partitions, wanted are 4\n"
    assert command.returncode == 2


def test_java_ends_when_the_command_is_killed_and_its_folder_can_be_used_at_once(
    run: Callable[..., Command], tmp_path: Path
) -> None:
    first = run("--port", "0", "--data", tmp_path / "data")
    first.address()
    first.kill()
    first.wait()
    second = run("--port", "0", "--data", tmp_path / "data")
    second.address()
    first.assert_nothing_is_left()
    second.terminate()
    second.remarks()
    assert second.returncode == 0


def test_the_end_of_java_ends_it_with_1_and_one_line(run: Callable[..., Command]) -> None:
    command = run("--port", "0")
    command.address()
    next(process for process in command.family if process.name() == "java").kill()
    last = command.remarks().splitlines()[-1]
    assert command.returncode == 1
    assert last.startswith("penstock: Apache Kafka was ended by signal 9")
    command.assert_nothing_is_left()


def test_a_signal_while_it_starts_ends_it_with_0(run: Callable[..., Command], tmp_path: Path) -> None:
    command = run("--port", "0", "--data", tmp_path / "data")
    while not (tmp_path / "data/server.properties").exists():
        assert command.poll() is None
    command.terminate()
    command.remarks()
    assert command.returncode == 0
    deadline = Deadline(WAIT_S)
    while any(str(tmp_path) in argument for each in psutil.process_iter(["cmdline"]) for argument in arguments(each)):
        assert not deadline.expired


def test_a_folder_in_use_is_one_line(run: Callable[..., Command], tmp_path: Path) -> None:
    first = run("--port", "0", "--data", tmp_path / "data")
    first.address()
    second = run("--port", "0", "--data", tmp_path / "data")
    assert second.remarks() == (
        f"penstock: {tmp_path / 'data'}: in use by another broker (process {first.pid}): "
        "stop it, or name another folder\n"
    )
    assert second.returncode == 2


def test_a_port_in_use_is_one_line(run: Callable[..., Command], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        command = run("--port", str(port))
        assert command.remarks() == (
            f"penstock: port {port}: Address already in use: choose another one with --port; 0 is any free one\n"
        )
    assert command.returncode == 2


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--port", "9092"], "--data and --port go with --apache"),
        (["--data", "x"], "--data and --port go with --apache"),
        (["--apache", "--host", "0.0.0.0"], "listens on 127.0.0.1 only, not on 0.0.0.0"),
        (["--apache", "--topic", "texts"], "write it as NAME:PARTITIONS"),
        (["--apache", "--port", "70000"], "Invalid value for '--port'"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    arguments: list[str], line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["penstock", "broker", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    captured = capsys.readouterr()
    assert (left.value.code, captured.out, captured.err.count("\n")) == (2, "", 1)
    assert line in captured.err
