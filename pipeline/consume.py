"""`penstock consume`: records of the results topic, or of the dead letters, as lines of JSON."""

from __future__ import annotations

import sys

import msgspec
from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, KafkaException, TopicPartition

from pipeline import clients
from pipeline.errors import WorkerFailure
from pipeline.reach import existing_partitions
from pipeline.settings import EnsembleSettings
from schemas.records import InputRecord, Source

# How late Ctrl-C is noticed: nothing interrupts librdkafka while it waits.
_POLL_S = 0.2


def consume_lines(settings: EnsembleSettings, *, count: int | None, dead_letters: bool, from_end: bool) -> None:
    """Print records as they come, `count` of them or until interrupted. Raises UserError, WorkerFailure."""
    topic = settings.topic_names.dead_letters if dead_letters else settings.topic_names.results
    output = sys.stdout.buffer
    partitions = existing_partitions(settings.kafka, topic)
    consumer = clients.reader(settings.kafka.consumer_settings(), client_id="penstock-consume")
    try:
        start = OFFSET_END if from_end else OFFSET_BEGINNING
        consumer.assign([TopicPartition(topic, partition, start) for partition in partitions])
        printed = 0
        while count is None or printed < count:
            message = consumer.poll(_POLL_S)
            if message is None:
                continue
            if message.error():
                raise WorkerFailure(f"{topic}: {message.error()}")
            line = _dead_letter_line(clients.input_record(message)) if dead_letters else message.value() or b"null"
            output.write(line + b"\n")
            output.flush()
            printed += 1
    except KafkaException as err:
        raise WorkerFailure(f"{topic}: {err.args[0].str()}") from err
    finally:
        consumer.close()


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
