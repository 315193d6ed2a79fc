"""Lines in and out: what `penstock produce`, `consume` and `predict` do with standard input and output.

A line that starts with `{` is a request as JSON and passed on as it is, right or wrong; any other line is a text. An
empty line is an empty text. Bytes that are not UTF-8 are passed on too: the pipeline is what judges requests.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec
from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, KafkaError, KafkaException, Message, TopicPartition

from pipeline import clients
from pipeline.ensemble import Ensemble
from pipeline.errors import UserError, WorkerFailure
from pipeline.settings import EnsembleSettings
from schemas.records import InputRecord, Source

# A broker that does not take a record for this long is away.
_DELIVERY_TIMEOUT_S = 60.0
_METADATA_TIMEOUT_S = 10.0


def produce_lines(settings: EnsembleSettings, source: str, *, key: str | None) -> None:
    """Send every line of a file, or of standard input where `source` is `-`."""
    topic = settings.topic_names.requests
    producer = clients.producer({"linger.ms": 5, **settings.kafka.producer_settings()}, client_id="penstock-produce")
    failures: list[KafkaError] = []
    delivered = 0

    def report(err: KafkaError | None, _message: Message) -> None:
        nonlocal delivered
        if err is None:
            delivered += 1
        else:
            failures.append(err)

    with _opened(source) as lines:
        for line in lines:
            value = _request(line, settings.requests.format)
            while not failures:
                try:
                    producer.produce(topic, value, key, on_delivery=report)
                except BufferError:
                    producer.poll(0.1)
                except KafkaException as err:
                    failures.append(err.args[0])
                else:
                    break
            producer.poll(0)
            if failures:
                break
    if producer.flush(_DELIVERY_TIMEOUT_S):
        raise WorkerFailure(f"{topic}: no broker took all records within {_DELIVERY_TIMEOUT_S:g} s")
    print(f"{delivered} requests sent to {topic}", file=sys.stderr)
    if failures:
        raise WorkerFailure(f"{topic}: not sent: {failures[0].str()}")


def consume_lines(settings: EnsembleSettings, *, count: int | None, dead_letters: bool, from_end: bool) -> None:
    """Print records of the results topic, or of the dead letters, as JSON lines."""
    topic = settings.topic_names.dead_letters if dead_letters else settings.topic_names.results
    consumer = clients.reader(settings.kafka.consumer_settings(), client_id="penstock-consume")
    try:
        found = consumer.list_topics(topic, timeout=_METADATA_TIMEOUT_S).topics[topic]
        if found.error is not None:
            raise UserError(f"{topic}: {found.error.str()}; make it with: penstock topics FILE --create")
        start = OFFSET_END if from_end else OFFSET_BEGINNING
        consumer.assign([TopicPartition(topic, partition, start) for partition in found.partitions])
        printed = 0
        while count is None or printed < count:
            message = consumer.poll(0.2)
            if message is None:
                continue
            if message.error():
                raise WorkerFailure(f"{topic}: {message.error()}")
            line = _dead_letter_line(clients.input_record(message)) if dead_letters else message.value() or b"null"
            sys.stdout.buffer.write(line + b"\n")
            sys.stdout.buffer.flush()
            printed += 1
    except KafkaException as err:
        raise WorkerFailure(f"{topic}: {err.args[0].str()}") from err
    finally:
        consumer.close()


def predict_lines(file: Path | None, model: str | None, task: str | None) -> None:
    """Answer standard input line by line, as soon as it comes in blocks."""
    ensemble = Ensemble.load(file) if file is not None else Ensemble.of_model(str(model), task)
    encoder = msgspec.json.Encoder()
    with ensemble, _opened("-") as lines:
        format = ensemble.settings.requests.format
        records = (
            InputRecord(Source("stdin", 0, number), None, _request(line, format), [])
            for number, line in enumerate(lines)
        )
        for answer in ensemble.answer(records):
            sys.stdout.buffer.write(encoder.encode(answer) + b"\n")
            sys.stdout.buffer.flush()


def _request(line: bytes, format: str) -> bytes:
    text = line.removesuffix(b"\n").removesuffix(b"\r")
    if format == "text" or text.lstrip().startswith(b"{"):
        return text
    try:
        return msgspec.json.encode({"text": text.decode()})
    except UnicodeDecodeError:
        return text


class _DeadLetter(msgspec.Struct):
    key: str | None
    value: str | None
    headers: dict[str, str | None]
    source: Source


def _dead_letter_line(record: InputRecord) -> bytes:
    return msgspec.json.encode(
        _DeadLetter(
            _readable(record.key),
            _readable(record.value),
            {name: _readable(value) for name, value in record.headers},
            record.source,
        )
    )


def _readable(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="backslashreplace")


@contextmanager
def _opened(source: str) -> Iterator[BinaryIO]:
    if source == "-":
        yield sys.stdin.buffer
        return
    try:
        file = Path(source).open("rb")  # noqa: SIM115 - closed below; only opening may be the user's mistake
    except OSError as err:
        raise UserError(f"{source}: {err.strerror}") from err
    with file:
        yield file
