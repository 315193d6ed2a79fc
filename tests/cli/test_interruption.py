"""Ctrl-C at the worst moment: while a command leaves, and before it has begun."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import WAIT_S, environment

pytestmark = pytest.mark.processes

LEAVES_SLOWLY = """
import signal, typer
from pipeline import command_line

def leave_slowly():
    try:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            print("leaving", flush=True)
            signal.raise_signal(signal.SIGINT)
    finally:
        print("left in a half-way state")

app = typer.Typer(cls=command_line.Commands)
app.command()(leave_slowly)
app.command("another")(leave_slowly)
command_line.run(app)
"""


def test_the_second_ends_a_command_that_leaves_at_once() -> None:
    command = [sys.executable, "-c", LEAVES_SLOWLY, "another"]
    left = subprocess.run(command, capture_output=True, timeout=WAIT_S, env=environment(None))
    assert (left.returncode, left.stdout, left.stderr) == (130, b"leaving\n", b"")


def test_one_that_comes_while_modules_are_loaded_leaves_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import signal, time\nsignal.raise_signal(signal.SIGINT)\ntime.sleep(60)\n")
    command = [sys.executable, "-P", "-m", "pipeline", "--version"]
    path = environment({"PYTHONPATH": str(tmp_path)})
    left = subprocess.run(
        command,
        capture_output=True,
        timeout=WAIT_S,
        env=path,
        # A shell's background job ignores it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (left.returncode, left.stdout, left.stderr) == (-signal.SIGINT, b"", b"")
