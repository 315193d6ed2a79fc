"""Small children under a supervisor: started again, given up, drained, killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pipeline.deadline import Deadline
from pipeline.parent import PARENT_PID, child_environment, parent_gone
from pipeline.supervisor import RestartPolicy, Supervisor

pytestmark = pytest.mark.processes

WAIT_S = 20.0
QUICK = RestartPolicy(first_delay_s=0.01, longest_delay_s=0.02, max_deaths=4)


class Children:
    """Writes children's programs, and reads the lines they leave in one file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said_in = folder / "said"
        self.said_in.touch()

    def command(self, program: str) -> list[str]:
        start = (
            "import os, signal, sys, time\n"
            "def say(text):\n"
            f"    with open({str(self.said_in)!r}, 'a') as said: said.write(text + '\\n')\n"
        )
        return [sys.executable, "-S", "-E", "-c", start + program]

    def said(self) -> list[str]:
        return self.said_in.read_text().splitlines()

    def wait_for(self, count: int, supervisor: Supervisor) -> list[str]:
        deadline = Deadline(WAIT_S)
        while len(said := self.said()) < count:
            assert not deadline.expired, f"said only {said}"
            assert supervisor.poll() is None
            time.sleep(0.01)
        return said


@pytest.fixture
def children(tmp_path: Path) -> Children:
    return Children(tmp_path)


@pytest.fixture
def supervisors() -> Iterator[list[Supervisor]]:
    started: list[Supervisor] = []
    yield started
    for supervisor in started:
        supervisor.kill()
        supervisor.stop()


def supervise(supervisors: list[Supervisor], commands: Mapping[str, list[str]]) -> Supervisor:
    supervisor = Supervisor(commands, policy=QUICK)
    supervisors.append(supervisor)
    supervisor.start()
    return supervisor


DRAINS = """
def drain(*_):
    say('drained')
    sys.exit(0)
signal.signal(signal.SIGTERM, drain)
say('ready')
while True: time.sleep(0.01)
"""
IGNORES_SIGTERM = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
say('ready')
time.sleep(60)
"""


def test_a_child_that_dies_is_started_again(children: Children, supervisors: list[Supervisor]) -> None:
    supervisor = supervise(supervisors, {"stage": children.command(DRAINS), "other": children.command(DRAINS)})
    children.wait_for(2, supervisor)
    before = supervisor.pids
    os.kill(before["stage"], signal.SIGKILL)
    children.wait_for(3, supervisor)

    after = supervisor.pids
    assert after["stage"] != before["stage"]
    assert after["other"] == before["other"]
    assert supervisor.restarts == {"stage": 1, "other": 0}
    assert supervisor.stop(WAIT_S)
    assert children.said() == ["ready"] * 3 + ["drained"] * 2
    assert supervisor.pids == {}


def test_a_child_that_ends_by_itself_is_started_again_too(children: Children, supervisors: list[Supervisor]) -> None:
    supervisor = supervise(supervisors, {"stage": children.command("say('done')")})
    children.wait_for(3, supervisor)


def test_it_gives_up_after_so_many_deaths_in_a_row(children: Children, caplog: pytest.LogCaptureFixture) -> None:
    commands = {"bad": children.command("say('bad'); sys.exit(1)"), "good": children.command(DRAINS)}
    assert Supervisor(commands, policy=QUICK).run(lambda: False, drain_budget_s=WAIT_S) == 1
    assert children.said().count("bad") == QUICK.max_deaths
    assert "bad exited with 1: given up after 4 deaths in a row" in caplog.text


def test_a_user_s_mistake_is_not_tried_again(children: Children) -> None:
    commands = {"bad": children.command("say('bad'); sys.exit(2)"), "good": children.command(DRAINS)}
    assert Supervisor(commands, policy=QUICK).run(lambda: False, drain_budget_s=WAIT_S) == 2
    assert children.said().count("bad") == 1


def test_it_drains_when_asked_to_stop(children: Children) -> None:
    stop = threading.Event()
    exit_codes: list[int] = []
    supervisor = Supervisor({"stage": children.command(DRAINS)}, policy=QUICK)
    thread = threading.Thread(target=lambda: exit_codes.append(supervisor.run(stop.is_set, drain_budget_s=WAIT_S)))
    thread.start()
    deadline = Deadline(WAIT_S)
    while not children.said() and not deadline.expired:
        time.sleep(0.01)
    stop.set()
    thread.join(WAIT_S)
    assert exit_codes == [0]
    assert children.said() == ["ready", "drained"]


def test_a_child_that_does_not_drain_in_time_is_killed(
    children: Children, supervisors: list[Supervisor], caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = supervise(supervisors, {"stuck": children.command(IGNORES_SIGTERM)})
    children.wait_for(1, supervisor)
    assert not supervisor.stop(0.1)
    assert supervisor.pids == {}
    assert "stuck did not drain within 0.1 s: killed" in caplog.text


def test_killing_takes_what_a_child_started_along(children: Children, supervisors: list[Supervisor]) -> None:
    grandchild = "import subprocess\nsay(str(subprocess.Popen(['sleep', '60']).pid))\n" + IGNORES_SIGTERM
    supervisor = supervise(supervisors, {"stuck": children.command(grandchild)})
    pid = int(children.wait_for(2, supervisor)[0])
    supervisor.kill()
    supervisor.stop(WAIT_S)
    deadline = Deadline(WAIT_S)
    while _is_alive(pid):
        assert not deadline.expired
        time.sleep(0.01)


def test_a_child_leads_its_own_session_and_has_no_terminal_to_read(
    children: Children, supervisors: list[Supervisor]
) -> None:
    program = "say(f'{os.getsid(0) == os.getpid()} {sys.stdin.read()!r}')\n" + DRAINS
    supervisor = supervise(supervisors, {"stage": children.command(program)})
    assert children.wait_for(2, supervisor)[0] == "True ''"


def test_a_program_that_is_not_there_is_said_at_the_start(children: Children) -> None:
    supervisor = Supervisor({"good": children.command(DRAINS), "gone": ["/nonexistent/program"]})
    with pytest.raises(FileNotFoundError):
        supervisor.start()
    assert supervisor.pids == {}


def test_a_program_that_goes_away_counts_as_a_death(children: Children, supervisors: list[Supervisor]) -> None:
    program = children.folder / "program"
    program.write_text(f"#!/bin/sh\necho ready >> {children.said_in}\nexec sleep 60\n")
    program.chmod(0o755)
    supervisor = supervise(supervisors, {"stage": [str(program)]})
    children.wait_for(1, supervisor)
    program.unlink()
    os.kill(supervisor.pids["stage"], signal.SIGKILL)
    deadline = Deadline(WAIT_S)
    while (exit_code := supervisor.poll()) is None:
        assert not deadline.expired
        time.sleep(0.01)
    assert exit_code == 1


def test_children_see_that_their_supervisor_is_gone() -> None:
    watcher = (
        "import os, time\n"
        "from pipeline.parent import parent_gone\n"
        "print(os.getpid(), parent_gone(), flush=True)\n"
        "while not parent_gone(): time.sleep(0.01)\n"
        "print('gone', flush=True)\n"
    )
    supervisor = (
        "import sys\n"
        "from pipeline.supervisor import Supervisor\n"
        f"Supervisor({{'watcher': [sys.executable, '-c', {watcher!r}]}}).run(lambda: False)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", supervisor], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    # What children print is none of the supervisor's results.
    assert process.stderr is not None
    assert process.stderr.readline().split()[1] == "False"
    process.kill()
    process.wait()
    assert process.stderr.read() == "gone\n"
    assert process.stdout.read() == ""


def test_a_process_that_nobody_supervises_has_no_parent_to_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PARENT_PID, raising=False)
    assert not parent_gone()
    monkeypatch.setenv(PARENT_PID, str(os.getppid()))
    assert not parent_gone()
    assert child_environment()[PARENT_PID] == str(os.getpid())


def _is_alive(pid: int) -> bool:
    """A zombie that nobody reaps is dead."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return not Path("/proc/self").exists()
    return state != "Z"
