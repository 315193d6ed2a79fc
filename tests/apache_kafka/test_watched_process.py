"""A command that ends with whoever started it, however that one ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipeline.apache_kafka.watched_process import WatchedProcess
from pipeline.deadline import Deadline

pytestmark = pytest.mark.processes

WAIT_S = 30.0
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


def start(folder: Path, *command: str) -> WatchedProcess:
    return WatchedProcess(command, folder=folder, output=folder / "said", environment=os.environ)


def family(process: WatchedProcess) -> list[psutil.Process]:
    command = psutil.Process(process.pid)
    return [command, *command.children(recursive=True)]


def wait_for_said(folder: Path, text: str) -> None:
    deadline = Deadline(WAIT_S)
    while text not in ((folder / "said").read_text() if (folder / "said").exists() else ""):
        assert not deadline.expired


def assert_gone(processes: list[psutil.Process]) -> None:
    assert len(processes) == 2  # the command and its watcher
    _, alive = psutil.wait_procs(processes, timeout=WAIT_S)
    assert not alive


def test_what_it_says_goes_to_the_file_and_its_exit_code_is_told(tmp_path: Path) -> None:
    process = start(tmp_path, "/bin/sh", "-c", "pwd; echo oops >&2; exit 3")
    assert process.how_it_ended() == "exited with 3"
    assert process.exit_code == 3
    assert (tmp_path / "said").read_text() == f"{tmp_path}\noops\n"
    assert process.terminate(WAIT_S)


def test_it_is_asked_to_end_and_its_watcher_goes_with_it(tmp_path: Path) -> None:
    process = start(tmp_path, "sleep", "60")
    wait_until_it_is(process, "sleep")
    both = family(process)
    assert process.terminate(WAIT_S)
    assert process.how_it_ended() == "was ended by signal 15"
    assert_gone(both)


@pytest.mark.slow
def test_it_is_killed_where_it_does_not_end_in_time(tmp_path: Path) -> None:
    process = start(tmp_path, sys.executable, "-c", STUBBORN)
    wait_for_said(tmp_path, "up")
    both = family(process)
    assert not process.terminate(0.1)
    assert process.how_it_ended() == "was ended by signal 9"
    assert_gone(both)


@pytest.mark.slow
def test_it_ends_when_whoever_started_it_is_killed(tmp_path: Path) -> None:
    program = (
        "import os, sys, time; from pathlib import Path\n"
        "from pipeline.apache_kafka.watched_process import WatchedProcess\n"
        "folder = Path(sys.argv[1])\n"
        "process = WatchedProcess(['sleep', '60'], folder=folder, output=folder / 'said', environment=os.environ)\n"
        "print(process.pid, flush=True); time.sleep(60)"
    )
    starter = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    command = psutil.Process(int(starter.stdout.readline()))
    deadline = Deadline(WAIT_S)
    while command.name() != "sleep" or not command.children():
        assert not deadline.expired
    both = [command, *command.children(recursive=True)]
    starter.kill()
    starter.communicate(timeout=WAIT_S)
    assert_gone(both)


def wait_until_it_is(process: WatchedProcess, name: str) -> None:
    """The shell becomes the command a moment after the start."""
    deadline = Deadline(WAIT_S)
    while psutil.Process(process.pid).name() != name:
        assert not deadline.expired
