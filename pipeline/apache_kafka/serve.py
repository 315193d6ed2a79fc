"""`penstock broker --apache`: Apache Kafka until somebody stops it."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from pipeline import clients
from pipeline.apache_kafka.broker import ApacheBroker
from pipeline.apache_kafka.jars import KAFKA_VERSION
from pipeline.errors import UserError
from pipeline.parent import parent_gone
from pipeline.topics import WantedTopic, broker_metadata, create_topics

DEFAULT_PORT = 9092  # where people look for Kafka

_LOOPBACK_NAMES = ("127.0.0.1", "localhost")
# How soon the broker's end or the parent's is noticed; a signal is at once.
_POLL_S = 0.2


class _Stop(BaseException):
    """Raised in the main thread by a signal that asks it to stop, wherever it is: fetching takes longest."""


def serve_apache(topics: Mapping[str, int], *, data: Path | None, port: int, host: str = "127.0.0.1") -> None:
    """Run Apache Kafka until SIGINT, SIGTERM, SIGHUP or its parent's death.

    Without `data` its records are in a temporary folder and go with it. Its address is the first and only line on
    stdout; remarks go to stderr. Belongs in a process's main thread. Raises UserError on what a person must mend,
    WorkerFailure where Kafka fails or ends by itself.
    """
    if host not in _LOOPBACK_NAMES:
        raise UserError(f"this broker listens on 127.0.0.1 only, not on {host}: it asks nobody for a password")
    with _stopped_by_signals():
        if data is not None:
            _serve(topics, data, port, f"Its records stay in {data}")
            return
        with tempfile.TemporaryDirectory(prefix="penstock-broker-") as folder:
            _serve(topics, Path(folder), port, "Its records are gone when it stops; --data DIR keeps them")


def _serve(topics: Mapping[str, int], data: Path, port: int, remark: str) -> None:
    with ApacheBroker(data, port=port) as broker:
        _make_topics(broker.bootstrap, topics)
        for line in (f"Apache Kafka {KAFKA_VERSION}, for this machine only.", f"{remark}. Ctrl-C stops it."):
            print(line, file=sys.stderr, flush=True)  # noqa: T201
        # Last: who reads it may stop this at once, and has been told the rest.
        print(broker.bootstrap, flush=True)  # noqa: T201
        while broker.alive:
            if parent_gone():
                return
            time.sleep(_POLL_S)
        raise broker.failure()


def _make_topics(bootstrap: str, topics: Mapping[str, int]) -> None:
    """What is missing. Raises UserError where one is there with another number of partitions."""
    admin = clients.admin({"bootstrap.servers": bootstrap})
    wanted = [
        WantedTopic(name=name, partitions=partition_count, replication_factor=1, config={})
        for name, partition_count in topics.items()
    ]
    create_topics(admin, wanted)
    found = broker_metadata(admin).topics
    for topic in wanted:
        partition_count = len(found[topic.name].partitions)
        if partition_count != topic.partitions:
            raise UserError(f"topic {topic.name} has {partition_count} partitions, wanted are {topic.partitions}")


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """The block ends, without an error, at the first signal; later ones are ignored, for stopping is bounded."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        numbers.append(signal.SIGHUP)

    def stop(_signal: int, _frame: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise _Stop

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except _Stop:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
