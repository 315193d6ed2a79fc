"""What the command says of itself: on 80 columns, for somebody who has never seen it."""

from __future__ import annotations

import re
import subprocess
from importlib.metadata import version

import pytest

from pipeline import cli, dead_letter_commands
from tests.cli.conftest import PENSTOCK, WAIT_S, Penstock, environment, run_process

COMMANDS = [
    "up",
    "run",
    "transcripts",
    "listen",
    "build",
    "broker",
    "topics",
    "produce",
    "consume",
    "predict",
    "replay",
    "check",
    "describe",
    "demo",
]
GROUPS = {
    "dead-letters": {"list": dead_letter_commands.list_letters}
    | {name: getattr(dead_letter_commands, name) for name in ("show", "replay", "purge")}
}
FUNCTIONS = {name: getattr(cli, name) for name in COMMANDS} | {
    f"{group} {name}": function for group, commands in GROUPS.items() for name, function in commands.items()
}


def test_help_names_every_command_with_a_whole_sentence(penstock: Penstock) -> None:
    found = penstock("--help")
    assert found.code == 0
    listed = found.out.partition("Commands:\n")[2].partition("\n\n")[0]
    sentences = dict(line.split(maxsplit=1) for line in listed.splitlines())
    assert list(sentences) == [*COMMANDS, *GROUPS]
    assert all(sentence.endswith(".") and "..." not in sentence for sentence in sentences.values())


def test_help_of_a_group_names_its_commands(penstock: Penstock) -> None:
    for group, commands in GROUPS.items():
        listed = penstock(group, "--help").out.partition("Commands:\n")[2].splitlines()
        assert [line.split()[0] for line in listed] == list(commands)
        assert all(line.endswith(".") and "..." not in line for line in listed)


@pytest.mark.parametrize("command", FUNCTIONS)
def test_help_of_a_command_fits_80_columns_and_explains_every_option(penstock: Penstock, command: str) -> None:
    found = penstock(*command.split(), "--help")
    assert (found.code, found.err) == (0, "")
    lines = found.out.splitlines()
    assert lines[0].startswith(f"Usage: penstock {command} ")
    assert not re.search(r"[{}]", lines[0])
    assert max(map(len, lines)) <= 80
    options = re.findall(r"^  (-.*?)(?:  +(.*))?$\n?( {20,}\S.*)?", found.out, re.MULTILINE)
    assert options
    assert all(described or continued for _, described, continued in options), options


@pytest.mark.parametrize("command", FUNCTIONS)
def test_help_of_a_command_says_all_that_its_docstring_does(penstock: Penstock, command: str) -> None:
    docstring = FUNCTIONS[command].__doc__.replace("\b", "")
    assert " ".join(docstring.split()) in " ".join(penstock(*command.split(), "--help").out.split())


def test_no_command_is_a_mistake_that_shows_the_help(penstock: Penstock) -> None:
    found = penstock()
    assert (found.code, found.out) == (2, "")
    assert found.err == penstock("--help").out


def test_version(penstock: Penstock) -> None:
    assert penstock("--version").out == f"penstock {version('penstock')}\n"


@pytest.mark.processes
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_that_names_the_command(shell: str) -> None:
    found = run_process(environ={"_PENSTOCK_COMPLETE": f"source_{shell}"})
    assert found.code == 0
    assert "_PENSTOCK_COMPLETE" in found.out
    assert "penstock" in found.out


@pytest.mark.processes
def test_show_completion_prints_what_bash_can_run() -> None:
    # The shell that asks is found out by its process; `:` keeps bash from leaving its place to the command.
    script = '"$@" --show-completion; :'
    shown = subprocess.run(
        ["bash", "-c", script, "bash", *PENSTOCK], capture_output=True, timeout=WAIT_S, env=environment(None)
    )
    assert shown.stderr == b""
    script = shown.stdout.decode() + "\ncomplete -p penstock\n"
    registered = subprocess.run(["bash", "-c", script], capture_output=True, timeout=WAIT_S)
    assert (registered.returncode, registered.stderr) == (0, b"")
    assert registered.stdout.startswith(b"complete ")


@pytest.mark.processes
def test_completion_of_a_word() -> None:
    words = {"_PENSTOCK_COMPLETE": "complete_bash", "COMP_WORDS": "penstock pro", "COMP_CWORD": "1"}
    assert run_process(environ=words).out.split() == ["produce"]
