"""`penstock demo` as a person starts it: a real broker, real workers, a tiny model."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.demo.test_summary import JSON_KEYS

pytestmark = [pytest.mark.broker, pytest.mark.processes]

WAIT_S = 60.0
DEMO = [sys.executable, "-m", "pipeline.cli", "demo"]

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def ensemble(tmp_path: Path, small_model: Path) -> Path:
    """Two outputs of a tiny model, on the port that is taken most often."""
    file = tmp_path / "small.yaml"
    file.write_text(
        f"""
name: small
topics: {{partitions: 2}}
tokenizer: {{max_length: 32, long_texts: reject}}
models:
  - {{name: vector, source: {small_model}, task: sentence-embedding}}
  - {{name: mood, source: {small_model}, task: text-classification}}
batching: {{max_batch_tokens: 512, row_length: 64}}
engine: {{kind: numpy}}
http: {{port: 8002}}
kafka: {{consumer: {{fetch.wait.max.ms: 10}}}}
"""
    )
    return file


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "texts"
    file.write_text("".join(f"This is text number {number}.\n" for number in range(50)))
    return file


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the command with its temporary files in the test's folder; kills what is left at the end."""
    started: list[subprocess.Popen[str]] = []
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}

    def run(*arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*DEMO, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | {"TMPDIR": str(temporary)},
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def await_line(process: subprocess.Popen[str], start: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(start):
            return
    pytest.fail(f"ended without saying {start!r}: {process.stderr and process.stderr.read()}")


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def await_end(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=WAIT_S)
    assert alive == []


def test_all_stages_answer_every_request_once(start: Start, ensemble: Path, texts: Path) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 8002))
            taken.listen()
        except OSError:
            pass  # then somebody else has it, which is what is wanted
        process = start("--ensemble", ensemble, "--texts", texts, "--count", 120, "--json")
        out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, err
    assert out.count("\n") == 1
    summary = json.loads(out)
    assert summary.keys() == JSON_KEYS
    assert (summary["requests"], summary["results"]) == (120, 120)
    assert [summary[name] for name in ("dead_letters", "lost", "repeated", "out_of_order")] == [0, 0, 0, 0]
    assert summary["stopped"] is None
    assert summary["tokens_per_s"] > summary["texts_per_s"] > 0
    assert 0 <= summary["padding_share"] < 1
    assert summary["mean_batch_texts"] >= 1
    latency = summary["latency_ms"]
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]
    assert summary["time_ms"].keys() == {"tokenize", "encode", "postprocess", "topics"}
    assert summary["time_ms"]["encode"].keys() == {"queue", "compute"}
    assert summary["time_ms"]["encode"]["compute"] > 0
    if sys.platform == "linux":
        assert summary["memory_mib"].keys() == {"tokenize", "encode", "postprocess", "broker", "demo"}
    assert "Ready after" in err


def test_a_closed_standard_error_is_in_nobodys_way(ensemble: Path, texts: Path) -> None:
    shell = ["sh", "-c", 'exec "$@" 2>&-', "sh", *DEMO, "--ensemble", str(ensemble), "--texts", str(texts)]
    closed = subprocess.run(shell, stdout=subprocess.PIPE, text=True, timeout=WAIT_S)
    assert closed.returncode == 0
    assert "50 requests, each answered exactly once, in order" in closed.stdout


def test_a_dead_letter_fails_the_demo_and_is_told(start: Start, ensemble: Path, texts: Path) -> None:
    with texts.open("a") as file:
        file.write("far too long " * 30 + "\n")
    process = start("--ensemble", ensemble, "--texts", texts, "--fused")
    out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 1
    assert "51 requests, 50 results, 1 dead letters" in out
    assert "text_too_long" in err
    assert "the logs of all processes are in" in err


def test_an_interruption_stops_all_and_tells_how_far_it_came(start: Start, ensemble: Path, texts: Path) -> None:
    process = start("--ensemble", ensemble, "--texts", texts, "--rate", 20, "--count", 100_000, "--fused")
    await_line(process, "Sending")
    children = family(process)
    assert len(children) == 2
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert "interrupted" in err
    assert " requests, " in out
    await_end(children)


@pytest.mark.slow
def test_killed_it_leaves_no_process_behind(start: Start, ensemble: Path, texts: Path) -> None:
    process = start("--ensemble", ensemble, "--texts", texts, "--rate", 20, "--count", 100_000, "--fused")
    await_line(process, "Sending")
    children = family(process)
    assert len(children) == 2
    process.kill()
    await_end(children)


def test_a_worker_that_can_not_work_ends_it_with_its_own_lines(
    start: Start, ensemble: Path, texts: Path, small_model: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    ensemble.write_text(ensemble.read_text().replace(str(small_model), str(empty)))
    process = start("--ensemble", ensemble, "--texts", texts, "--fused", "--json")
    out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 2
    assert json.loads(out)["stopped"] == "fused can't work with these settings"
    assert f"fused: penstock: {ensemble}:" in err
    assert f"model '{empty}'" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--texts", "/nowhere/texts"], "/nowhere/texts: no such file"),
        (["--texts", os.devnull], f"{os.devnull}: is not a regular file"),
        (["--ensemble", "/nowhere/ensemble.yaml"], "/nowhere/ensemble.yaml"),
        (["--bootstrap", "127.0.0.1:nine"], "--bootstrap"),
    ],
)
def test_a_mistake_gives_lines_and_exit_code_2(start: Start, arguments: list[str], line: str) -> None:
    process = start(*arguments, "--json")
    out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 2
    assert out == ""
    assert line in err
    assert "Traceback" not in err
