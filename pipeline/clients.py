"""Kafka clients: the settings Penstock adds to the user's, and Kafka's messages as records.

The user's own `kafka:` settings win over the defaults here, except for what delivery depends on (committing is
Penstock's), which the ensemble file refuses.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from confluent_kafka import (
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    ShareConsumer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from pipeline.deadline import Deadline
from pipeline.errors import UserError, WorkerFailure
from schemas.records import Headers, InputRecord, OutputRecord, Source

ClientSettings = Mapping[str, str | int | float | bool]

log = logging.getLogger("penstock.kafka")

Answer = TypeVar("Answer")
OnReport = Callable[[KafkaError | None, Message], None]

# A broker answers in milliseconds. It is asked once for a record that the producer has no partition for.
_METADATA_S = 5.0
# A produce call that finds the queue full waits this long for reports to make room, then tries again.
_QUEUE_FULL_WAIT_S = 0.1
# A partition has no leader for a moment: the next answer comes from the right one.
_MOVING = frozenset(
    {KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE, KafkaError.UNKNOWN_TOPIC_OR_PART}
)
_AGAIN_S = 0.05

# With `group.protocol: consumer` (KIP-848) these are the broker's to decide, and librdkafka refuses them. Nor has a
# worker a name of its own then: one that was killed keeps it until its session ends, and refuses it to the next.
CLASSIC_GROUP_DEFAULTS: dict[str, str | int | float | bool] = {
    "partition.assignment.strategy": "cooperative-sticky",
    # A worker that dies is noticed after this; 6 s is the least a broker allows by default.
    "session.timeout.ms": 10_000,
    "heartbeat.interval.ms": 1_000,
}
# A member of the same name takes over at once, whatever the session. A longer one outlasts a broker's restart: one that
# ends meanwhile costs all members their partitions.
_NAMED_MEMBER_DEFAULTS: dict[str, str | int | float | bool] = {"session.timeout.ms": 30_000}

_CONSUMER_DEFAULTS: dict[str, str | int | float | bool] = {
    # The default of 1,000 stalls a full queue for a second.
    "fetch.queue.backoff.ms": 10,
    # Prefetched records are dropped by each pause: 8 MiB a partition is half a second of the fastest stage.
    "queued.max.messages.kbytes": 8_192,
    # The embedded broker does not wake a waiting fetch: a record is seen this much later. Apache Kafka does; it answers
    # an idle worker 100 times a second.
    "fetch.wait.max.ms": 10,
}

# librdkafka logs each attempt to reconnect. What matters comes as an error too, and is told once.
_EVERY_CLIENT: dict[str, str | int | float | bool] = {
    "log_level": 2,
    # 10 s by default, which a network that is back would wait for, once at each of a transaction's coordinators.
    "reconnect.backoff.max.ms": 1_000,
}

_PRODUCER_DEFAULTS: dict[str, str | int | float | bool] = {
    "enable.idempotence": True,
    # 5 ms, the default, would be added at each of three hops.
    "linger.ms": 0,
    "compression.type": "zstd",
    "compression.level": 1,
    # A megabyte of text makes up to 4,700 windows of 1.5 KB.
    "message.max.bytes": 16 * 1024 * 1024,
}

_TRANSACTION_DEFAULTS: dict[str, str | int | float | bool] = {
    # What a killed worker of another name left open holds readers back for so long.
    "transaction.timeout.ms": 10_000,
    # The broker still writes the markers of the last transaction when the next one begins; the default of 100 ms would
    # be what each waits then.
    "retry.backoff.ms": 1,
    # A new bootstrap, the default when no broker answers, drops the connections that its coordinators are looked for at
    # (librdkafka 2.16). A lane whose commits time out makes a new producer anyway.
    "metadata.recovery.strategy": "none",
}

# What decides whether anything is lost; the ensemble file refuses other values.
_OWNED: dict[str, str | int | float | bool] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    # A position that the topic no longer has means records lost by retention: seen and counted, not skipped.
    "auto.offset.reset": "error",
}


def consumer(
    settings: ClientSettings,
    *,
    group: str,
    client_id: str,
    instance: str | None,
    on_error: Callable[[KafkaError], None],
    on_commit: Callable[[KafkaError | None, list[TopicPartition]], None],
) -> Consumer:
    """A consumer of `group` that commits nothing by itself; of a name in it, if it has one (static membership).

    Raises UserError on a setting librdkafka refuses.
    """
    defaults = _EVERY_CLIENT | _CONSUMER_DEFAULTS
    owned = _OWNED | {"group.id": group, "client.id": client_id}
    if is_classic(settings):
        defaults |= CLASSIC_GROUP_DEFAULTS
        if instance is not None:
            defaults |= _NAMED_MEMBER_DEFAULTS
            owned |= {"group.instance.id": instance}
    config = defaults | dict(settings) | owned
    with _user_errors():
        return Consumer(config | {"logger": log, "error_cb": on_error, "on_commit": on_commit})


def is_classic(settings: ClientSettings) -> bool:
    """Whether members share out the partitions among themselves, which is the default, and not the broker (KIP-848)."""
    return settings.get("group.protocol", "classic") == "classic"


def share_consumer(
    settings: ClientSettings,
    *,
    group: str,
    client_id: str,
    max_poll_records: int,
    on_error: Callable[[KafkaError], None],
) -> ShareConsumer:
    """A member of the share group `group`, which accepts or releases each record. Raises UserError likewise: it refuses
    what is only for consumers of partitions, so `settings` are those of any client."""
    owned = {"group.id": group, "client.id": client_id, "share.acknowledgement.mode": "explicit"}
    # More come only where a batch of the topic holds more.
    config = _EVERY_CLIENT | dict(settings) | owned | {"max.poll.records": max_poll_records}
    with _user_errors():
        return ShareConsumer(config | {"logger": log, "error_cb": on_error})


def reader(settings: ClientSettings, *, client_id: str, tell_ends: bool = False) -> Consumer:
    """A consumer outside of any group's bookkeeping: partitions are assigned by hand, nothing is committed.

    Where retention has taken its next record it goes on with the oldest that is left; librdkafka's default would be
    the end, past all that is still there. With `tell_ends` it says `_PARTITION_EOF` where a partition ends.
    """
    config = (
        _EVERY_CLIENT
        | _CONSUMER_DEFAULTS
        | dict(settings)
        | {"enable.auto.commit": False, "enable.auto.offset.store": False, "auto.offset.reset": "earliest"}
        | {"enable.partition.eof": tell_ends}
    )
    with _user_errors():
        return Consumer(config | {"group.id": client_id, "client.id": client_id, "logger": log})


def producer(
    settings: ClientSettings, *, client_id: str, on_error: Callable[[KafkaError], None] | None = None
) -> Producer:
    """A producer whose order per partition survives its retries. Raises UserError likewise."""
    config = _EVERY_CLIENT | _PRODUCER_DEFAULTS | dict(settings) | {"client.id": client_id, "logger": log}
    if on_error is not None:
        config["error_cb"] = on_error
    with _user_errors():
        return Producer(config)


def transactional_producer(
    settings: ClientSettings, *, transactional_id: str, client_id: str, on_error: Callable[[KafkaError], None]
) -> Producer:
    """A producer of transactions; a new one of the same id ends what the one before it left open."""
    return producer(
        _TRANSACTION_DEFAULTS | dict(settings) | {"transactional.id": transactional_id},
        client_id=client_id,
        on_error=on_error,
    )


def admin(settings: ClientSettings, *, on_error: Callable[[KafkaError], None] | None = None) -> AdminClient:
    """A client that asks about topics and makes them. Raises UserError likewise."""
    config: dict[str, Any] = _EVERY_CLIENT | dict(settings) | {"logger": log}
    if on_error is not None:
        config["error_cb"] = on_error
    with _user_errors():
        return AdminClient(config)


def read(consumer: Consumer, most: int, wait_s: float) -> list[Message]:
    """What is there, at most so many; with nothing there, the first that comes within `wait_s`. (A consumer's own
    `consume` waits until there are so many.)"""
    first = consumer.poll(wait_s)
    return [] if first is None else [first, *consumer.consume(most - 1, 0)]


def bounds(consumer: Consumer, place: TopicPartition, wait_s: float) -> tuple[int, int]:
    """The oldest offset that is left of a partition, and the one that the next record will have, asked now. A topic
    that has just been made, or whose leader moves, is waited for. Raises KafkaException."""
    return while_moving(lambda left_s: consumer.get_watermark_offsets(place, timeout=left_s), _MOVING, wait_s)


def while_moving(call: Callable[[float], Answer], moving: frozenset[int], budget_s: float) -> Answer:
    """What a call comes to, made again while it fails with one of these codes: whoever answers it moves. It is told how
    many seconds are left."""
    deadline = Deadline(budget_s)
    while True:
        try:
            return call(deadline.remaining_s())
        except KafkaException as err:
            if err.args[0].code() not in moving or deadline.expired:
                raise
            time.sleep(_AGAIN_S)


def produce(producer: Producer, output: OutputRecord, partition: int, on_report: OnReport) -> None:
    """Queue a record, waiting for room. Raises KafkaException."""
    asked = False
    while True:
        try:
            producer.produce(output.topic, output.value, output.key, partition, on_report, headers=[*output.headers])
        except BufferError:
            producer.poll(_QUEUE_FULL_WAIT_S)
        except KafkaException as err:
            if asked or err.args[0].code() != KafkaError._UNKNOWN_PARTITION:
                raise
            asked = True
            if not has_partition(producer, output.topic, partition):
                raise
        else:
            return


def has_partition(producer: Producer, topic: str, partition: int) -> bool:
    """Whether the broker has it, asked now: a producer learns of partitions that are added up to 5 minutes later
    (topic.metadata.refresh.interval.ms), and of this one from here on."""
    try:
        found = producer.list_topics(topic, timeout=_METADATA_S).topics.get(topic)
    except KafkaException:
        return False
    return found is not None and partition in found.partitions


def input_record(message: Message) -> InputRecord:
    """What a stage needs of a message."""
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None
    assert partition is not None
    assert offset is not None
    source = Source(topic, partition, offset)
    try:
        headers = cast(Headers, message.headers() or [])
    except SystemError:  # confluent-kafka 2.16: the name of a header is not UTF-8
        flaw = "the name of a header is not UTF-8, so that none of them could be read"
        return InputRecord(source, message.key(), message.value(), [], flaw)
    kind, written_ms = message.timestamp()
    known_ms = None if kind == TIMESTAMP_NOT_AVAILABLE else written_ms
    return InputRecord(source, message.key(), message.value(), headers, None, known_ms)


@contextmanager
def failures(topic: str) -> Iterator[None]:
    """What a client raises, as a WorkerFailure that names the topic."""
    try:
        yield
    except KafkaException as err:
        raise WorkerFailure(f"{topic}: {err.args[0].str()}") from err


@contextmanager
def _user_errors() -> Iterator[None]:
    try:
        yield
    except (KafkaException, ValueError, TypeError) as err:
        reason = err.args[0].str() if isinstance(err, KafkaException) else str(err)
        raise UserError(f"kafka: {reason.strip()}; allowed: librdkafka's CONFIGURATION.md") from err
