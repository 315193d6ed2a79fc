"""produce, consume and topics on a broker: what goes in as lines comes out as lines."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from pipeline.broker import BrokerProcess, start_broker_process
from tests.cli.conftest import PENSTOCK, WAIT_S, Penstock, WriteEnsemble, environment, run_process, start_process

pytestmark = [pytest.mark.broker, pytest.mark.processes]


@pytest.fixture
def file(ensemble: WriteEnsemble, kafka: BrokerProcess, penstock: Penstock) -> Path:
    """An ensemble whose topics are made."""
    path = ensemble(bootstrap=kafka.bootstrap)
    assert penstock("topics", path, "--create").code == 0
    return path


def name_of(file: Path) -> str:
    return str(json.loads(file.read_text())["name"])


def requests(file: Path, kafka: BrokerProcess, count: int) -> list[tuple[bytes | None, bytes | None]]:
    """Key and value of the first `count` requests, in the order of partition and offset."""
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": "test"})
    consumer.assign([TopicPartition(f"{name_of(file)}.requests", partition, 0) for partition in (0, 1)])
    messages: list[Any] = []
    deadline_s = time.monotonic() + WAIT_S
    while len(messages) < count and time.monotonic() < deadline_s:
        messages += consumer.consume(count, 0.1)
    consumer.close()
    messages.sort(key=lambda message: (message.partition(), message.offset()))
    return [(message.key(), message.value()) for message in messages]


def write(kafka: BrokerProcess, topic: str, *values: bytes | None, **options: Any) -> None:
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    for value in values:
        producer.produce(topic, value, partition=0, **options)
    assert producer.flush(WAIT_S) == 0


def test_topics_are_compared_and_made(penstock: Penstock, ensemble: WriteEnsemble, kafka: BrokerProcess) -> None:
    path = ensemble(bootstrap=kafka.bootstrap, name="topical")
    names = ["topical.requests", "topical.tokens", "topical.encodings", "topical.results", "topical.dead-letters"]
    found = penstock("topics", path)
    assert (found.code, found.lines) == (1, ["penstock: make what is missing with: penstock topics FILE --create"])
    assert found.out.splitlines() == [f"{name}  2 partitions  doesn't exist" for name in names]
    found = penstock("topics", path, "--create", "--fused")
    fused = [name for name in names if name not in ("topical.tokens", "topical.encodings")]
    assert (found.code, found.out.splitlines()) == (0, [f"{name}  2 partitions  made" for name in fused])
    found = penstock("topics", path, "--create")
    assert found.code == 0
    assert [line.split()[-1] for line in found.out.splitlines()] == ["ok", "made", "made", "ok", "ok"]
    found = penstock("topics", ensemble(bootstrap=kafka.bootstrap, name="topical", topics={"partitions": 3}))
    assert found.code == 1
    assert "has 2 partitions, wanted are 3" in found.out.splitlines()[0]


def test_lines_of_a_file_are_sent_as_text_or_as_json(file: Path, kafka: BrokerProcess, penstock: Penstock) -> None:
    lines = file.with_name("lines.txt")
    lines.write_bytes('\ufeffplain\r\n\n{"text": "a", "id": "7"}\n  {broken\ncaf\xe9 ☕\nlast'.encode() + b"\n\xff\xfe")
    found = penstock("produce", file, lines, "--key", "k")
    assert (found.code, found.out, found.err) == (0, "", f"penstock: {name_of(file)}.requests: 7 sent\n")
    assert requests(file, kafka, 7) == [
        (b"k", b'{"text":"plain"}'),
        (b"k", b'{"text":""}'),
        (b"k", b'{"text": "a", "id": "7"}'),
        (b"k", b"  {broken"),
        (b"k", '{"text":"caf\xe9 ☕"}'.encode()),
        (b"k", b'{"text":"last"}'),
        (b"k", b"\xff\xfe"),
    ]


def test_lines_of_standard_input(file: Path, kafka: BrokerProcess) -> None:
    lines = b"".join(b"%d\n" % number for number in range(3000))
    found = run_process("produce", file, lines=lines)
    assert (found.code, found.err) == (0, f"penstock: {name_of(file)}.requests: 3000 sent\n")
    sent = requests(file, kafka, 3000)
    assert sorted(sent) == sorted((None, b'{"text":"%d"}' % number) for number in range(3000))


def test_lines_before_what_is_none_are_sent(
    file: Path, penstock: Penstock, kafka: BrokerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.lines_of_text.MAX_LINE_BYTES", 1 << 20)
    lines = file.with_name("lines.txt")
    lines.write_bytes(b"one\n" + bytes(2 << 20))
    found = penstock("produce", file, lines)
    assert (found.code, found.lines) == (
        2,
        [
            f"penstock: {name_of(file)}.requests: 1 sent",
            "penstock: the input has no line end in 1 MiB: are these lines of text?",
        ],
    )
    assert requests(file, kafka, 1) == [(None, b'{"text":"one"}')]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_produce_with_how_many_were_sent(
    ensemble: WriteEnsemble, penstock: Penstock, kafka: BrokerProcess, number: signal.Signals, code: int
) -> None:
    file = ensemble(bootstrap=kafka.bootstrap, name=f"ended-{code}")
    assert penstock("topics", file, "--create").code == 0
    with start_process("produce", file, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(b"one\ntwo\n")
        process.stdin.flush()
        assert len(requests(file, kafka, 2)) == 2
        time.sleep(0.2)  # from the broker's acknowledgement to the client
        process.send_signal(number)
        _, err = process.communicate(timeout=WAIT_S)
    assert (process.returncode, err) == (code, f"penstock: ended-{code}.requests: 2 sent\n".encode())


def test_lines_of_an_ensemble_whose_requests_are_text(
    ensemble: WriteEnsemble, kafka: BrokerProcess, penstock: Penstock
) -> None:
    file = ensemble(bootstrap=kafka.bootstrap, requests={"format": "text"})
    penstock("topics", file, "--create")
    lines = file.with_name("lines.txt")
    lines.write_text('{"text": "a"}\nplain\n')
    assert penstock("produce", file, lines, "--key", "k").code == 0
    assert requests(file, kafka, 2) == [(b"k", b'{"text": "a"}'), (b"k", b"plain")]


def test_a_line_that_is_typed_is_sent_before_the_next(file: Path, kafka: BrokerProcess) -> None:
    with start_process("produce", file, "-", stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        process.stdin.write(b"one\n")
        process.stdin.flush()
        assert requests(file, kafka, 1) == [(None, b'{"text":"one"}')]
        process.stdin.close()
        assert process.wait(WAIT_S) == 0


def test_a_line_that_no_broker_takes_is_told_and_the_others_are_sent(
    ensemble: WriteEnsemble, kafka: BrokerProcess, penstock: Penstock
) -> None:
    settings = {"bootstrap.servers": kafka.bootstrap, "producer": {"message.max.bytes": 2000}}
    file = ensemble(kafka=settings)
    penstock("topics", file, "--create")
    lines = file.with_name("lines.txt")
    lines.write_text("a\n" + 3000 * "x" + "\nb\n")
    found = penstock("produce", file, lines, "--key", "k")
    topic = f"{name_of(file)}.requests"
    assert (found.code, found.lines) == (
        1,
        [
            f"penstock: {topic}: 2 sent",
            f"penstock: {topic}: 1 not sent, the first: line 2: Broker: Message size too large",
        ],
    )
    assert [value for _, value in requests(file, kafka, 2)] == [b'{"text":"a"}', b'{"text":"b"}']


@pytest.mark.slow
def test_a_broker_that_dies_under_produce(ensemble: WriteEnsemble, penstock: Penstock) -> None:
    with start_broker_process() as broker:
        # A producer that is idempotent gets its number in steps of 500 ms: one record in ten is sent after 1 s.
        producer = {"message.timeout.ms": 3000}
        file = ensemble(kafka={"bootstrap.servers": broker.bootstrap, "producer": producer})
        penstock("topics", file, "--create")
        with start_process("produce", file, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdin is not None
            process.stdin.write(b"one\n")
            process.stdin.flush()
            assert len(requests(file, broker, 1)) == 1
            broker.stop()
            _, err = process.communicate(b"two\n", timeout=WAIT_S)
    topic = f"{name_of(file)}.requests"
    assert process.returncode == 1
    assert err.decode().splitlines() == [
        f"penstock: {topic}: 1 sent",
        f"penstock: {topic}: not sent: line 2: Local: Message timed out",
    ]


def test_results_are_printed_as_they_are(file: Path, kafka: BrokerProcess) -> None:
    topic = f"{name_of(file)}.results"
    write(kafka, topic, b'{"id":"1"}', b'{"id":"2"}', b'{"id":"3"}')
    found = run_process("consume", file, "--count", "2")
    assert (found.code, found.out, found.err) == (0, '{"id":"1"}\n{"id":"2"}\n', "")


def test_who_reads_slower_than_retention_goes_on_with_what_is_left(
    ensemble: WriteEnsemble, kafka: BrokerProcess, penstock: Penstock
) -> None:
    file = ensemble(bootstrap=kafka.bootstrap)
    penstock("topics", file, "--create")
    topic = f"{name_of(file)}.results"
    write(kafka, topic, b'"000"')
    with start_process("consume", file, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        numbers = [int(process.stdout.readline()[1:4])]
        # A full pipe holds it up. It has fetched 8 MiB then, and the broker keeps 5.
        write(kafka, topic, *[b'"%03d%s"' % (number, bytes(150_000)) for number in range(1, 201)])
        for line in process.stdout:
            numbers.append(int(line[1:4]))
            if numbers[-1] == 200:
                break
        process.kill()
    assert numbers == sorted(set(numbers))
    assert numbers[-20:] == list(range(181, 201))
    assert len(numbers) < 201, "else nothing was lost here, and nothing is shown"


def test_results_from_now_on(file: Path, kafka: BrokerProcess) -> None:
    topic = f"{name_of(file)}.results"
    write(kafka, topic, b'"old"')
    with start_process("consume", file, "--from-end", "--count", "1", stdout=subprocess.PIPE) as process:
        deadline_s = time.monotonic() + WAIT_S
        while process.poll() is None and time.monotonic() < deadline_s:
            write(kafka, topic, b'"new"')
            time.sleep(0.2)
        assert process.stdout is not None
        assert (process.wait(WAIT_S), process.stdout.read()) == (0, b'"new"\n')


def test_dead_letters_are_readable_whatever_their_bytes_are(file: Path, kafka: BrokerProcess) -> None:
    headers = [("__dlq.errors.reason", b"not_utf8"), ("none", None)]
    write(kafka, f"{name_of(file)}.dead-letters", b'{"text": "\xff"}', None, key=b"k\xfe", headers=headers)
    found = run_process("consume", file, "--dead-letters", "--count", "2")
    assert found.json_lines[0] == {
        "key": "k\\xfe",
        "value": '{"text": "\\xff"}',
        "headers": {"__dlq.errors.reason": "not_utf8", "none": None},
        "source": {"topic": f"{name_of(file)}.dead-letters", "partition": 0, "offset": 0},
    }
    assert found.json_lines[1]["value"] is None


def test_ctrl_c_ends_consume_with_130_and_without_a_word(file: Path, kafka: BrokerProcess) -> None:
    write(kafka, f"{name_of(file)}.results", b'"first"')
    with start_process("consume", file, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b'"first"\n'
        process.send_signal(signal.SIGINT)
        assert (process.wait(WAIT_S), process.stdout.read(), process.stderr.read()) == (130, b"", b"")


@pytest.mark.parametrize("command", ["consume", "topics"])
def test_a_reader_that_goes_ends_the_command_silently(file: Path, kafka: BrokerProcess, command: str) -> None:
    write(kafka, f"{name_of(file)}.results", *[b'"%d"' % number for number in range(50)])
    script = '"$@" | head -n 1; echo "${PIPESTATUS[0]}"'
    arguments = ["bash", "-c", script, "bash", *PENSTOCK, command, str(file)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(None)) as shell:
        # consume is told by its next record.
        deadline_s = time.monotonic() + WAIT_S
        while shell.poll() is None and time.monotonic() < deadline_s:
            write(kafka, f"{name_of(file)}.results", b'"more"')
            time.sleep(0.1)
        out, err = shell.communicate(timeout=WAIT_S)
    assert err == b""
    assert out.splitlines()[1:] == [b"0"]
