"""The embedded broker in its own process, and its topics.

Its process creates topics on request, though not through the admin API, which the mock cluster lacks:
`create_topics` writes what it wants to the topic CONTROL_TOPIC, which the process reads.
"""

from __future__ import annotations

import argparse
import logging
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import Self

import msgspec
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from pipeline import clients
from pipeline.clients import ClientSettings
from pipeline.deadline import Deadline
from pipeline.errors import UserError, WorkerFailure
from pipeline.exit_codes import EXIT_USER_ERROR
from pipeline.mock_cluster import CONSUMER_SETTINGS, EmbeddedBroker, check_topic
from pipeline.parent import child_environment, parent_gone

__all__ = [
    "CONSUMER_SETTINGS",
    "CONTROL_TOPIC",
    "BrokerProcess",
    "EmbeddedBroker",
    "create_topics",
    "is_embedded",
    "parse_topic",
    "serve",
    "start_broker_process",
]

log = logging.getLogger("penstock.broker")

CONTROL_TOPIC = "__penstock.create-topics"

_LOOPBACK_NAMES = ("127.0.0.1", "localhost")
# How soon a signal, the parent's death or a request is noticed, against wake-ups of an idle process.
_POLL_S = 0.2
_START_BUDGET_S = 30.0  # importing on a busy machine; the cluster itself takes 2 ms
_STOP_BUDGET_S = 5.0


class _TopicRequest(msgspec.Struct, frozen=True):
    """A record of CONTROL_TOPIC, as JSON."""

    name: str
    partition_count: int


def parse_topic(text: str) -> tuple[str, int]:
    """`NAME:PARTITIONS` of the command line. Raises UserError."""
    name, _, count = text.rpartition(":")
    if not name or not count.isascii() or not count.isdecimal():
        raise UserError(f"topic {text!r}: write it as NAME:PARTITIONS, such as reviews.requests:4")
    check_topic(name, int(count))
    return name, int(count)


def is_embedded(topics: Container[str]) -> bool:
    """Whether these are all the topics of an embedded broker's process, which takes requests of `create_topics`."""
    return CONTROL_TOPIC in topics


def create_topics(bootstrap: str, topics: Mapping[str, int], *, budget_s: float = 10.0) -> list[str]:
    """Create what is missing of `topics` (name -> partitions) in an embedded broker's process; the names created.

    Raises UserError where no embedded broker answers, or where a topic exists with another number of partitions,
    WorkerFailure where it answers but does not create them in time.
    """
    for name, partition_count in topics.items():
        check_topic(name, partition_count)
    deadline = Deadline(budget_s)
    admin = clients.admin({"bootstrap.servers": bootstrap})
    found = _partition_counts(admin, deadline)
    if not is_embedded(found):
        raise UserError(f"{bootstrap} is not an embedded broker's process: create its topics with the admin API")
    missing = [name for name in topics if name not in found]
    if missing:
        producer = clients.producer({"bootstrap.servers": bootstrap}, client_id="penstock-topics")
        for name in missing:
            request = _TopicRequest(name, topics[name])
            producer.produce(CONTROL_TOPIC, msgspec.json.encode(request), partition=0)
        producer.flush(deadline.remaining_s())
    while not topics.keys() <= found.keys():
        if deadline.expired:
            late = ", ".join(sorted(topics.keys() - found.keys()))
            raise WorkerFailure(f"the embedded broker at {bootstrap} did not create {late} within {budget_s:g} s")
        time.sleep(0.01)
        found = _partition_counts(admin, deadline)
    for name, partition_count in topics.items():
        if found[name] != partition_count:
            raise UserError(
                f"topic {name} has {found[name]} partitions, wanted are {partition_count}: "
                "the embedded broker can't change that, start a new one"
            )
    return missing


def _partition_counts(admin: AdminClient, deadline: Deadline) -> dict[str, int]:
    from pipeline.topics import broker_metadata  # with an ensemble's settings, which the broker's process lives without

    metadata = broker_metadata(admin, timeout_s=max(0.1, deadline.remaining_s()))
    return {name: len(topic.partitions) for name, topic in metadata.topics.items()}


# --- The broker in its own process ---


def serve(topics: Mapping[str, int], *, host: str = "127.0.0.1", remarks: bool = True) -> None:
    """Run the embedded broker until SIGINT, SIGTERM or its parent's death.

    Its address is the first and only line on stdout, for programs; `remarks`, for people, go to stderr. Belongs in
    a process's main thread. Raises UserError on a host that is not loopback.
    """
    if host not in _LOOPBACK_NAMES:
        raise UserError(
            f"the embedded broker listens on 127.0.0.1 only, not on {host}: it knows no passwords and keeps "
            "nothing; for other machines run Apache Kafka and name its address with --bootstrap"
        )
    stopped = False

    def handle(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopped  # no Event: a second signal inside of set() would wait for its lock for ever
        stopped = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    _allow_open_files()
    with EmbeddedBroker() as broker:
        for name, partition_count in {CONTROL_TOPIC: 1, **topics}.items():
            broker.create_topic(name, partition_count)
        print(broker.bootstrap, flush=True)  # noqa: T201
        if remarks:
            _say("Kafka in memory, for this machine only: records are gone when it stops.")
            _say("It keeps 5 MiB or 100,000 records a partition. Ctrl-C stops it.")
        _create_on_request(broker, lambda: stopped)


def _allow_open_files() -> None:
    """As many as the system lets: each connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS grants less than its unlimited hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _create_on_request(broker: EmbeddedBroker, stopped: Callable[[], bool]) -> None:
    """Read CONTROL_TOPIC until it is time to stop."""
    settings: ClientSettings = {"bootstrap.servers": broker.bootstrap, "fetch.wait.max.ms": 50}
    consumer = clients.reader(settings, client_id="penstock-broker")
    consumer.assign([TopicPartition(CONTROL_TOPIC, 0, 0)])
    try:
        while not stopped() and not parent_gone():
            message = consumer.poll(_POLL_S)
            value = None if message is None or message.error() else message.value()
            if value is None:
                continue
            try:
                request = msgspec.json.decode(value, type=_TopicRequest)
                broker.create_topic(request.name, request.partition_count)
            except (msgspec.MsgspecError, UserError) as err:
                # Whoever asked sees that the topic is not there; a second request for one that exists is no fault.
                log.warning("topic not created: %s", err)
    finally:
        consumer.close()


class BrokerProcess:
    """An embedded broker in a child process that ends with this one."""

    def __init__(self, process: subprocess.Popen[str], bootstrap: str) -> None:
        self._process = process
        self.bootstrap = bootstrap

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Of the child process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End it, and all records with it."""
        _end(self._process)


def start_broker_process(topics: Mapping[str, int] | None = None) -> BrokerProcess:
    """Start an embedded broker with these topics (name -> partitions) in its own process and wait for its address.

    A process of its own keeps the broker's work off the caller's cores and its records alive while workers come and
    go. Ctrl-C in a terminal does not reach it, so that workers can drain. Raises WorkerFailure if it does not
    start.
    """
    arguments = [f"--topic={name}:{partition_count}" for name, partition_count in (topics or {}).items()]
    process = subprocess.Popen(
        # -P: the current directory may hold a `pipeline` of its own.
        [sys.executable, "-P", "-m", "pipeline.broker", "--quiet", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=child_environment(),
    )
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], _START_BUDGET_S)
    bootstrap = process.stdout.readline().strip() if readable else ""
    if not bootstrap:
        _end(process)
        raise WorkerFailure("the embedded broker did not start: its own lines above say why")
    return BrokerProcess(process, bootstrap)


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_BUDGET_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m pipeline.broker`: what `start_broker_process` starts. People use `penstock broker`."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.broker", description=main.__doc__)
    parser.add_argument("--topic", action="append", default=[], metavar="NAME:PARTITIONS")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--quiet", action="store_true")
    arguments = parser.parse_args(argv)
    try:
        topics = dict(parse_topic(text) for text in arguments.topic)
        serve(topics, host=arguments.host, remarks=not arguments.quiet)
    except UserError as err:
        for line in err.lines:
            _say(line)
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
