"""Classes that print, from Python and from C: standard output has the command's results alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.cli.conftest import Penstock, WriteEnsemble, run_process

# C's buffer is written at the process's end where standard output is no terminal.
CHATTY = """
import ctypes, os, sys

print("imported")

class Task:
    json_schema = {"type": "number"}

    def __init__(self):
        os.write(1, b"made\\n")

    def __call__(self, rows):
        print("called")
        sys.__stdout__.write("called again\\n")
        ctypes.CDLL(None).printf(b"called in C\\n")
        return [1.0] * len(rows)
"""


@pytest.fixture
def file(ensemble: WriteEnsemble, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "chatty", raising=False)
    (tmp_path / "chatty.py").write_text(CHATTY)
    return ensemble(models=[{"name": "m", "source": str(small_model), "task": "chatty:Task"}])


@pytest.mark.processes
def test_predict(file: Path) -> None:
    found = run_process("predict", file, lines=b"one\ntwo\n")
    assert [answer["outputs"] for answer in found.json_lines] == [{"m": 1.0}, {"m": 1.0}]
    assert {*found.lines} == {"imported", "made", "called", "called again", "called in C"}


def test_describe(penstock: Penstock, file: Path) -> None:
    found = penstock("describe", file, "--json")
    assert json.loads(found.out)["info"]["description"] == "m: chatty:Task"
    assert found.err == "imported\n"
    assert YAML(typ="safe").load(penstock("describe", file).out) == json.loads(found.out)


def test_check(penstock: Penstock, file: Path, broker_looked_for_briefly: None) -> None:
    found = penstock("check", file)
    assert all(line.startswith(("ok   ", "FAILED")) for line in found.out.splitlines())
    assert found.out.endswith(" tokens; m 1.0\n")
    assert {"imported", "made", "called"} <= {*found.lines}
