"""What a person can mend is one line on stderr that says what, where and what to do; the exit code is 2."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from pipeline import reach
from pipeline.broker import BrokerProcess
from pipeline.errors import UserError
from pipeline.kafka_settings import KafkaSettings
from tests.cli.conftest import PENSTOCK, WAIT_S, Penstock, WriteEnsemble, environment, run_process, start_process


def one_line(found: Any) -> str:
    """The line on stderr; nothing else was said."""
    assert (found.code, found.out) == (2, ""), found
    [line] = found.lines
    assert line.startswith("penstock: ")
    return str(line.removeprefix("penstock: "))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run"], "Missing argument 'STAGE'. Choose from: tokenize, encode, postprocess, fused; see: penstock run"),
        (["run", "decode", "e.yaml"], "Invalid value for 'STAGE': 'decode' is not one of 'tokenize', 'encode', "),
        (["up"], "Missing argument 'ENSEMBLE.yaml'; see: penstock up --help"),
        (["up", "e.yaml", "--fuzed"], "No such option: --fuzed"),
        (["fly"], "No such command 'fly'; see: penstock --help"),
        (
            ["consume", "e.yaml", "--count", "0"],
            "Invalid value for '--count': Input should be greater than or equal to 1; see: ",
        ),
        (["consume", "e.yaml", "--count", "many"], "Invalid value for '--count': Input should be a valid integer"),
        (
            ["--log-level", "loud", "up", "e.yaml"],
            "Invalid value for '--log-level' (env var: 'PENSTOCK_LOG_LEVEL'): 'loud' ",
        ),
        (["predict"], "predict: give either an ensemble file or --model DIR_OR_PACKAGE"),
        (["predict", "e.yaml", "--model", "m"], "predict: give either an ensemble file or --model DIR_OR_PACKAGE"),
        (["predict", "e.yaml", "--task", "sentence-embedding"], "predict: --task goes with --model; an ensemble file"),
        (["predict", "--model", "no-such-model"], "--model: models[0].source: model 'no-such-model': neither "),
        (["broker", "--topic", "t"], "topic 't': write it as NAME:PARTITIONS, such as reviews.requests:4"),
        (["broker", "--host", "0.0.0.0"], "the embedded broker listens on 127.0.0.1 only, not on 0.0.0.0"),
        (
            ["broker", "--host", "me"],
            "the embedded broker listens on 127.0.0.1 only, not on me: it knows no passwords and "
            "keeps nothing; for other machines run Apache Kafka and name its address with --bootstrap",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line(penstock: Penstock, arguments: list[str], says: str) -> None:
    assert one_line(penstock(*arguments)).startswith(says)


FILE_COMMANDS = [
    ["up", "FILE"],
    ["run", "encode", "FILE"],
    ["topics", "FILE"],
    ["produce", "FILE"],
    ["consume", "FILE"],
    ["dead-letters", "list", "FILE"],
    ["dead-letters", "show", "FILE", "0/0"],
    ["dead-letters", "replay", "FILE"],
    ["dead-letters", "purge", "FILE"],
    ["replay", "FILE", "--from", "beginning"],
    ["predict", "FILE"],
    ["demo", "--ensemble", "FILE"],
]


@pytest.mark.parametrize("command", FILE_COMMANDS, ids=lambda command: "-".join(command))
def test_a_file_that_is_not_there_or_has_mistakes(penstock: Penstock, tmp_path: Path, command: list[str]) -> None:
    path = tmp_path / "e.yaml"
    arguments = [str(path) if argument == "FILE" else argument for argument in command]
    assert one_line(penstock(*arguments)) == f"{path}: can't be read: No such file or directory"
    path.write_text("name: [reviews\n")
    assert one_line(penstock(*arguments)).startswith(f"{path}:2: is not YAML: expected ',' or ']'")
    path.write_text("name: e\nmodels: [{name: m, source: s, pooling: men}]\nhttp: {prot: 1}\n")
    found = penstock(*arguments)
    assert (found.code, found.lines) == (
        2,
        [
            f"penstock: {path}:2: models[0].pooling: 'men' is not allowed; allowed: mean, cls, max, null",
            f"penstock: {path}:3: http.prot: no such option; did you mean port?",
        ],
    )


@pytest.mark.parametrize("command", [["up"], ["demo", "--ensemble"]], ids=["up", "demo"])
def test_a_file_that_only_this_process_can_read(penstock: Penstock, tmp_path: Path, command: list[str]) -> None:
    fifo = tmp_path / "e.yaml"
    os.mkfifo(fifo)  # whoever opened it would wait for ever
    for path in (fifo, "/dev/stdin"):
        says = one_line(penstock(*command, path))
        assert says == f"{path}: is not a regular file, and each worker reads it anew: save it as one"


@pytest.mark.processes
def test_a_pipe_is_a_file_to_predict_from(ensemble: WriteEnsemble) -> None:
    script = 'file=$1; shift; echo a | "$@" predict <(cat "$file")'
    command = ["bash", "-c", script, "bash", str(ensemble()), *PENSTOCK]
    found = subprocess.run(command, capture_output=True, timeout=WAIT_S, env=environment(None))
    assert (found.returncode, found.stdout.count(b"\n"), found.stderr) == (0, 1, b"")


@pytest.mark.parametrize("address", ["a b", "", "http://x:1"], ids=["blank", "empty", "scheme"])
@pytest.mark.parametrize(
    "command", [["topics"], ["consume"], ["demo", "--ensemble"]], ids=["topics", "consume", "demo"]
)
def test_an_address_that_is_none(penstock: Penstock, ensemble: WriteEnsemble, command: list[str], address: str) -> None:
    says = one_line(penstock(*command, ensemble(), "--bootstrap", address))
    assert says.startswith(f"--bootstrap: '{address}' is not allowed; allowed: host:port, several with commas between")


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that is looked for to the end of the time fails the test: it gets an hour."""
    monkeypatch.setitem(reach.reach_broker.__kwdefaults__, "budget_s", 3600.0)
    monkeypatch.setattr(reach, "_LOOK_S", 0.1)


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize(
    "address",
    ["nowhere.invalid:9092", "nowhere.invalid", "no.invalid:1,none.invalid:2"],
    ids=["one", "portless", "two"],
)
def test_a_host_that_is_not_known_is_told_at_once(penstock: Penstock, ensemble: WriteEnsemble, address: str) -> None:
    says = one_line(penstock("topics", ensemble(), "--bootstrap", address))
    assert re.fullmatch(
        rf"no broker is found at {re.escape(address)} \(.*Failed to resolve .*\): correct .*; allowed: host:port", says
    )


@pytest.mark.usefixtures("no_waiting")
def test_addresses_of_another_protocol_are_told_at_once(penstock: Penstock, ensemble: WriteEnsemble) -> None:
    says = one_line(penstock("topics", ensemble(), "--bootstrap", "ssl://127.0.0.1:1"))
    assert says.startswith("no broker is asked at ssl://127.0.0.1:1: what stands before :// is not kafka.security.")


@pytest.mark.broker
@pytest.mark.usefixtures("no_waiting")
def test_one_host_that_is_known_is_enough(penstock: Penstock, ensemble: WriteEnsemble, kafka: BrokerProcess) -> None:
    found = penstock("topics", ensemble(bootstrap=f"nowhere.invalid:1,{kafka.bootstrap}"))
    assert (found.code, "doesn't exist" in found.out) == (1, True)


@pytest.mark.usefixtures("broker_looked_for_briefly")
@pytest.mark.parametrize("command", ["topics", "produce", "consume", "up"])
def test_a_broker_that_is_not_there(penstock: Penstock, ensemble: WriteEnsemble, command: str) -> None:
    says = one_line(penstock(command, ensemble()))
    assert re.match(
        r"no broker answers at 127\.0\.0\.1:1 within 0\.3 s \(.*Connection refused.*\): start one, or ", says
    )


def test_who_waits_for_a_broker_at_a_terminal_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(reach, "_LOOK_S", 0.05)
    with pytest.raises(UserError):
        reach.reach_broker(KafkaSettings.model_validate({"bootstrap.servers": "127.0.0.1:1"}), budget_s=0.2)
    [line] = capsys.readouterr().err.splitlines()
    assert line == "penstock: waiting for a broker at 127.0.0.1:1, for at most 0.2 s"


@pytest.mark.usefixtures("broker_looked_for_briefly")
def test_a_broker_that_answers_nothing(penstock: Penstock, ensemble: WriteEnsemble) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert one_line(penstock("topics", ensemble(bootstrap=address))).startswith(f"no broker answers at {address}")


@pytest.mark.processes
def test_ctrl_c_while_a_broker_is_looked_for(ensemble: WriteEnsemble) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        start_process(
            "consume", ensemble(bootstrap=f"127.0.0.1:{silent.getsockname()[1]}"), stderr=subprocess.PIPE
        ) as process,
    ):
        silent.settimeout(WAIT_S)
        silent.accept()
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b""


@pytest.mark.broker
@pytest.mark.parametrize("command", ["produce", "consume"])
def test_a_topic_that_is_not_there(
    penstock: Penstock, ensemble: WriteEnsemble, kafka: BrokerProcess, command: str
) -> None:
    file = ensemble(bootstrap=kafka.bootstrap, name="nowhere")
    topic = {"produce": "nowhere.requests", "consume": "nowhere.results"}[command]
    says = one_line(penstock(command, file))
    assert says == f"{topic}: no such topic at {kafka.bootstrap}; make it: penstock topics FILE --create"
    assert penstock("topics", file).code == 1, "asking made none"


@pytest.mark.broker
def test_run_without_its_topics(penstock: Penstock, ensemble: WriteEnsemble, kafka: BrokerProcess) -> None:
    found = penstock("run", "encode", ensemble(bootstrap=kafka.bootstrap, name="untopical"))
    topics = ["requests", "tokens", "encodings", "results", "dead-letters"]
    lines = [f"penstock: untopical.{topic}: doesn't exist" for topic in topics]
    assert found.code == 2
    assert found.lines == [*lines, "penstock: make what is missing with: penstock topics FILE --create"]


def test_run_on_a_port_that_is_taken(penstock: Penstock, ensemble: WriteEnsemble) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        says = one_line(penstock("run", "encode", ensemble(), "--http-port", str(port)))
    assert says.startswith(f"http.port: can't listen on 127.0.0.1, port {port}: Address already in use; ")


@pytest.mark.broker
@pytest.mark.parametrize(
    ("name", "why"),
    [("none.txt", "No such file or directory"), (".", "Is a directory"), ("a\0b", "embedded null byte")],
    ids=["missing", "folder", "null"],
)
def test_lines_that_can_not_be_read(
    penstock: Penstock, ensemble: WriteEnsemble, tmp_path: Path, name: str, why: str
) -> None:
    source = f"{tmp_path}/{name}"
    # Told before a broker is looked for.
    assert one_line(penstock("produce", ensemble(), source)) == f"{source}: {why}"


@pytest.mark.processes
def test_standard_input_that_is_closed(ensemble: WriteEnsemble) -> None:
    command = ["sh", "-c", 'exec "$@" <&-', "sh", *PENSTOCK, "produce", str(ensemble())]
    closed = subprocess.run(command, capture_output=True, timeout=WAIT_S, env=environment(None))
    assert (closed.returncode, closed.stderr) == (2, b"penstock: standard input is closed: send lines into it\n")


@pytest.mark.processes
@pytest.mark.broker
@pytest.mark.parametrize("closed", ["2>&-", ">&-", "2>&- >&-"])
def test_closed_outputs_are_no_mistake_of_produce(
    penstock: Penstock, ensemble: WriteEnsemble, kafka: BrokerProcess, closed: str
) -> None:
    file = ensemble(bootstrap=kafka.bootstrap, name=f"closed-{'2' in closed}-{' ' in closed}")
    assert penstock("topics", file, "--create").code == 0
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", *PENSTOCK, "produce", str(file)]
    done = subprocess.run(command, input=b"one\n", capture_output=True, timeout=WAIT_S, env=environment(None))
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert done.stdout == b""


@pytest.mark.processes
@pytest.mark.parametrize("command", [["broker"], ["topics"], ["consume"], ["predict"], ["check"], ["demo", "--json"]])
def test_what_is_to_be_printed_needs_a_standard_output(ensemble: WriteEnsemble, command: list[str]) -> None:
    file = [] if command[0] in ("broker", "demo") else [str(ensemble())]
    shell = ["sh", "-c", 'exec "$@" >&-', "sh", *PENSTOCK, *command, *file]
    closed = subprocess.run(shell, input=b"", stderr=subprocess.PIPE, timeout=WAIT_S, env=environment(None))
    assert (closed.returncode, closed.stderr) == (
        2,
        b"penstock: standard output is closed: there is nowhere to write to\n",
    )


@pytest.mark.processes
def test_a_closed_standard_error_keeps_the_exit_code_and_says_nothing_elsewhere(ensemble: WriteEnsemble) -> None:
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *PENSTOCK, "topics", str(ensemble(engine={"kind": "abacus"}))]
    done = subprocess.run(command, capture_output=True, timeout=WAIT_S, env=environment(None))
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"")


@pytest.mark.processes
def test_the_environment_counts_as_the_flag_does(ensemble: WriteEnsemble) -> None:
    found = run_process("topics", ensemble(), environ={"PENSTOCK_BOOTSTRAP_SERVERS": "nowhere:x"})
    assert found.lines[0].startswith("penstock: --bootstrap: 'nowhere:x' is not allowed")


def test_listen_runs_here_whatever_kafka_the_environment_names(
    penstock: Penstock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    found = penstock("listen", tmp_path / "none.wav")
    assert found.lines == [f"penstock: {tmp_path}/none.wav: No such file: name a WAV file"]
    found = penstock("listen", tmp_path / "none.wav", "--bootstrap", "127.0.0.1:1")
    assert "--bootstrap goes with --ensemble" in found.err


@pytest.mark.processes
def test_a_bad_log_level_in_the_environment_is_told(ensemble: WriteEnsemble) -> None:
    found = run_process("topics", ensemble(), environ={"PENSTOCK_LOG_LEVEL": "loud"})
    assert found.code == 2
    assert "'loud' is not one of" in found.lines[0]


@pytest.fixture
def full() -> Iterator[BinaryIO]:
    """A device that takes nothing."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with open("/dev/full", "wb") as device:
        yield device


@pytest.mark.processes
@pytest.mark.broker
@pytest.mark.parametrize("command", ["predict", "topics"])
def test_a_full_disk_is_one_line_that_says_which(
    penstock: Penstock, ensemble: WriteEnsemble, kafka: BrokerProcess, full: BinaryIO, command: str
) -> None:
    file = ensemble(bootstrap=kafka.bootstrap, name=f"full-{command}")
    assert penstock("topics", file, "--create").code == 0
    process = subprocess.run(
        [*PENSTOCK, command, file], input=b"a\n", stdout=full, stderr=subprocess.PIPE, timeout=WAIT_S
    )
    assert (process.returncode, process.stderr) == (1, b"penstock: standard output: No space left on device\n")


@pytest.mark.processes
@pytest.mark.broker
def test_what_can_not_be_told_changes_no_exit_code(
    penstock: Penstock, ensemble: WriteEnsemble, kafka: BrokerProcess, full: BinaryIO
) -> None:
    file = ensemble(bootstrap=kafka.bootstrap)
    assert penstock("topics", file, "--create").code == 0
    sent = subprocess.run([*PENSTOCK, "produce", file], input=b"one\n", stderr=full, timeout=WAIT_S)
    assert sent.returncode == 0, "who retried would send it twice"
    mistaken = subprocess.run([*PENSTOCK, "produce", file.with_name("none")], stderr=full, timeout=WAIT_S)
    assert mistaken.returncode == 2


@pytest.mark.parametrize(
    ("why", "told"), [("", "out of memory: free some"), ("12 MiB", "out of memory (12 MiB): free some")]
)
def test_too_little_memory_is_one_line(
    penstock: Penstock, ensemble: WriteEnsemble, monkeypatch: pytest.MonkeyPatch, why: str, told: str
) -> None:
    def find_no_room(*_: object) -> None:
        raise MemoryError(why)

    monkeypatch.setattr("engines.checkpoint.read_weights", find_no_room)
    found = penstock("predict", ensemble(name="e"))
    assert (found.code, found.out) == (1, "")
    assert [line.startswith(f"penstock: {told}, or choose ") for line in found.lines] == [True]


@pytest.mark.processes
def test_what_ascii_lacks_is_written_as_its_escape(tmp_path: Path) -> None:
    folder = tmp_path / "中文"
    folder.mkdir()
    file = folder / "e.yaml"
    file.write_text("name: 集\nmodels: [{name: 模型, source: nowhere}]\n", encoding="utf-8")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    found = run_process("check", file, environ=ascii_only)
    assert (found.code, found.err) == (2, "")
    name, model = found.out.splitlines()
    assert r"/\udce4\udcb8\udcad\udce6\udc96\udc87/e.yaml:1: name: '\u96c6' is not allowed" in name
    assert r"e.yaml:2: models[0].name: '\u6a21\u578b' is not allowed" in model


def test_transcripts_of_what_reads_no_texts(penstock: Penstock, ensemble: WriteEnsemble) -> None:
    model = {"name": "a", "source": "m", "task": "text-ranking"}
    line = one_line(penstock("transcripts", ensemble(models=[model])))
    assert "models[0].task: text-ranking reads no texts, and speech is texts: put it into an ensemble of" in line
