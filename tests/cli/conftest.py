"""The command as its users call it: a process with lines in and out, or, where nothing must be a process, its main."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from pipeline import cli, reach
from pipeline.broker import BrokerProcess, start_broker_process

# Longer than anything here takes; a test that waits for so long has failed.
WAIT_S = 30.0
PENSTOCK = [sys.executable, "-P", "-m", "pipeline.cli"]


@dataclass(frozen=True)
class Outcome:
    """What a command came to. A person's lines on stderr, without the log's."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()

    @property
    def json_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


Penstock = Callable[..., Outcome]


@pytest.fixture
def penstock(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Iterator[Penstock]:
    """Runs the command in this process, with standard input empty."""
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.delenv("PENSTOCK_BOOTSTRAP_SERVERS", raising=False)
    monkeypatch.delenv("PENSTOCK_LOG_LEVEL", raising=False)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str | Path) -> Outcome:
        capfdbinary.readouterr()
        monkeypatch.setattr(sys, "argv", ["penstock", *map(str, arguments)])
        with restored_output(), pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capfdbinary.readouterr()
        return Outcome(int(left.value.code or 0), out.decode(), err.decode())

    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        yield run
    signal.signal(signal.SIGINT, before)


@contextmanager
def restored_output() -> Iterator[None]:
    """Standard output as it was, after a command that keeps it for its results to the end of its process."""
    kept = os.dup(1)
    try:
        with redirect_stdout(sys.stdout):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@pytest.fixture
def broker_looked_for_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that isn't there is given up after 0.3 s."""
    monkeypatch.setitem(reach.reach_broker.__kwdefaults__, "budget_s", 0.3)
    monkeypatch.setattr(reach, "_LOOK_S", 0.1)


def run_process(*arguments: str | Path, lines: bytes = b"", environ: dict[str, str] | None = None) -> Outcome:
    """Runs the command as a process, `lines` on its standard input."""
    done = subprocess.run(
        [*PENSTOCK, *map(str, arguments)], input=lines, capture_output=True, timeout=WAIT_S, env=environment(environ)
    )
    return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())


class Started(subprocess.Popen[bytes]):
    """A process that does not outlive a test that fails: waiting for its end might be for ever."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, error, trace)


def start_process(*arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    """Starts the command; whoever does so ends it."""
    return Started([*PENSTOCK, *map(str, arguments)], env=environment(None), **options)


def environment(more: dict[str, str] | None) -> dict[str, str]:
    ours = ("PENSTOCK_BOOTSTRAP_SERVERS", "PENSTOCK_LOG_LEVEL")
    return {name: value for name, value in os.environ.items() if name not in ours} | {"COLUMNS": "80"} | (more or {})


@pytest.fixture(scope="session")
def kafka() -> Iterator[BrokerProcess]:
    """An embedded broker that all tests here share; each has topics of its own."""
    with start_broker_process() as broker:
        yield broker


WriteEnsemble = Callable[..., Path]


@pytest.fixture
def ensemble(tmp_path: Path, small_model: Path, request: pytest.FixtureRequest) -> WriteEnsemble:
    """Writes an ensemble file on the small model, named after the test."""

    def write(
        *, bootstrap: str = "127.0.0.1:1", models: Sequence[dict[str, Any]] | None = None, **changes: Any
    ) -> Path:
        vector = {"name": "vector", "source": str(small_model), "task": "sentence-embedding"}
        data: dict[str, Any] = {
            "name": request.node.name.replace("[", ".").rstrip("]")[:100],
            "topics": {"partitions": 2},
            "tokenizer": {"stride": 4},
            "models": [vector] if models is None else list(models),
            "commit_interval_ms": 50,
            "http": {"port": 0},
            "kafka": {"bootstrap.servers": bootstrap},
        }
        path = tmp_path / "ensemble.yaml"
        path.write_text(json.dumps(data | changes))
        return path

    return write
