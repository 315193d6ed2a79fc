"""Ctrl-C at the worst moment: while a command leaves."""

from __future__ import annotations

import subprocess
import sys

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
