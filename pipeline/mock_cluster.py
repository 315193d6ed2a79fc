"""The embedded broker: librdkafka's mock cluster, Kafka on loopback with nothing to install.

What it can't do: keep anything after its end, hold transactions, answer the admin API, or use a port of one's choice.
It keeps 5 MiB or 100,000 records a partition, whichever comes first, and drops the oldest without a word. A topic
that somebody only asks for springs up with 4 partitions. What a consumer should know is in CONSUMER_SETTINGS.

It is a test facility of librdkafka (`rdkafka_mock.h`) that promises no ABI: pyproject.toml pins confluent-kafka's
minor, and every function is declared here, so that one that is gone fails at once and by name.
"""

from __future__ import annotations

import ctypes
import re
import resource
import socket
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_int, c_int16, c_int32, c_size_t, c_void_p
from enum import IntEnum
from functools import cache
from typing import Self

from confluent_kafka import cimpl

from pipeline.errors import UserError

# name -> (result, arguments). Handles are opaque pointers; `rd_kafka_resp_err_t` is an enum, hence an int.
_FUNCTIONS: dict[str, tuple[type | None, list[type]]] = {
    "rd_kafka_conf_new": (c_void_p, []),
    "rd_kafka_conf_set": (c_int, [c_void_p, c_char_p, c_char_p, c_char_p, c_size_t]),
    "rd_kafka_new": (c_void_p, [c_int, c_void_p, c_char_p, c_size_t]),
    "rd_kafka_destroy": (None, [c_void_p]),
    "rd_kafka_err2str": (c_char_p, [c_int]),
    "rd_kafka_mock_cluster_new": (c_void_p, [c_void_p, c_int]),
    "rd_kafka_mock_cluster_destroy": (None, [c_void_p]),
    "rd_kafka_mock_cluster_bootstraps": (c_char_p, [c_void_p]),
    "rd_kafka_mock_group_initial_rebalance_delay_ms": (None, [c_void_p, c_int32]),
    "rd_kafka_mock_set_group_consumer_session_timeout_ms": (None, [c_void_p, c_int]),
    "rd_kafka_mock_set_group_consumer_heartbeat_interval_ms": (None, [c_void_p, c_int]),
    "rd_kafka_mock_topic_create": (c_int, [c_void_p, c_char_p, c_int, c_int]),
    "rd_kafka_mock_topic_set_error": (None, [c_void_p, c_char_p, c_int]),
    "rd_kafka_mock_partition_set_leader": (c_int, [c_void_p, c_char_p, c_int32, c_int32]),
    "rd_kafka_mock_push_request_errors_array": (None, [c_void_p, c_int16, c_size_t, POINTER(c_int)]),
    "rd_kafka_mock_clear_request_errors": (None, [c_void_p, c_int16]),
    "rd_kafka_mock_broker_set_rtt": (c_int, [c_void_p, c_int32, c_int]),
    "rd_kafka_mock_broker_set_down": (c_int, [c_void_p, c_int32]),
    "rd_kafka_mock_broker_set_up": (c_int, [c_void_p, c_int32]),
}

# What a consumer of an embedded broker sets, in librdkafka's words.
CONSUMER_SETTINGS: dict[str, str | int] = {
    # A waiting fetch is not woken by a new record: a consumer sees it up to this much later. The default of 500 is
    # 451 ms at the median, 10 is 1.3 ms and costs 1 % of a core.
    "fetch.wait.max.ms": 10,
    # Kafka's new group protocol (KIP-848). Members of the classic one are missed a session timeout after they leave,
    # and a second member gets its partitions after 10 s; here both take 0.2 s, and a killed member is missed for 4 s.
    # librdkafka then takes neither session.timeout.ms nor heartbeat.interval.ms nor partition.assignment.strategy.
    "group.protocol": "consumer",
}
ALL_BROKERS = -1
MAX_PARTITIONS = 1_000

# Of the new group protocol, where the broker decides on them. 3 s: longer than a busy machine keeps a thread waiting.
_SESSION_TIMEOUT_MS = 3_000
_HEARTBEAT_INTERVAL_MS = 100

_TOPIC_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")
# 22 at its start, and two for each client: three workers, who produces and who consumes, and some to spare.
_MIN_OPEN_FILES = 64
_PRODUCER = 0  # rd_kafka_type_t
_ERROR_SIZE_BYTES = 512


class MockClusterError(UserError):
    """Raised when librdkafka lacks its mock cluster or refuses a call: Penstock and confluent-kafka don't fit."""


class ApiKey(IntEnum):
    """Kafka's numbers of the requests that tests make fail."""

    PRODUCE = 0
    FETCH = 1
    LIST_OFFSETS = 2
    METADATA = 3
    OFFSET_COMMIT = 8
    OFFSET_FETCH = 9
    FIND_COORDINATOR = 10
    JOIN_GROUP = 11
    HEARTBEAT = 12
    SYNC_GROUP = 14
    INIT_PRODUCER_ID = 22


class EmbeddedBroker:
    """The broker in this process, and the faults that tests ask of it.

    Error arguments are Kafka's codes (`KafkaError.NOT_LEADER_FOR_PARTITION`). Broker ids count from 1; a fault
    given no id concerns all brokers. Raises MockClusterError where librdkafka refuses.
    """

    def __init__(self, *, broker_count: int = 1) -> None:
        _require_resources()
        self._lib = _library()
        self._client: int | None = _new_client()
        self._cluster = _new_cluster(self._client, broker_count)
        # Kafka waits 3 s for more members before a new classic group's first assignment.
        self._lib.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, 0)
        self._lib.rd_kafka_mock_set_group_consumer_session_timeout_ms(self._cluster, _SESSION_TIMEOUT_MS)
        self._lib.rd_kafka_mock_set_group_consumer_heartbeat_interval_ms(self._cluster, _HEARTBEAT_INTERVAL_MS)
        self.bootstrap: str = self._lib.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening and forget all records."""
        if self._client is not None:
            self._lib.rd_kafka_mock_cluster_destroy(self._cluster)
            self._lib.rd_kafka_destroy(self._client)
            self._client = None

    def create_topic(self, name: str, partition_count: int) -> None:
        """Raises UserError on a name or a number that Kafka would refuse too, MockClusterError if it exists."""
        check_topic(name, partition_count)
        _check(self._lib.rd_kafka_mock_topic_create(self._open(), name.encode(), partition_count, 1))

    def push_request_errors(self, api_key: ApiKey, errors: Sequence[int]) -> None:
        """The next requests of this kind get these errors, one each; KafkaError._TRANSPORT drops the connection."""
        codes = (ctypes.c_int * len(errors))(*errors)
        self._lib.rd_kafka_mock_push_request_errors_array(self._open(), api_key, len(errors), codes)

    def clear_request_errors(self, api_key: ApiKey) -> None:
        """Take back the errors not yet given."""
        self._lib.rd_kafka_mock_clear_request_errors(self._open(), api_key)

    def set_topic_error(self, topic: str, error: int) -> None:
        """Metadata answers for this topic carry the error, until it is set to 0."""
        self._lib.rd_kafka_mock_topic_set_error(self._open(), topic.encode(), error)

    def set_rtt_ms(self, rtt_ms: int, *, broker_id: int = ALL_BROKERS) -> None:
        """Every answer takes this long."""
        _check(self._lib.rd_kafka_mock_broker_set_rtt(self._open(), broker_id, rtt_ms))

    def set_down(self, *, broker_id: int = ALL_BROKERS) -> None:
        """Drop all connections and take no new ones; leaders stay where they are."""
        _check(self._lib.rd_kafka_mock_broker_set_down(self._open(), broker_id))

    def set_up(self, *, broker_id: int = ALL_BROKERS) -> None:
        """Take connections again."""
        _check(self._lib.rd_kafka_mock_broker_set_up(self._open(), broker_id))

    def move_leader(self, topic: str, partition: int, *, broker_id: int) -> None:
        """Make a broker the leader of a partition; -1 leaves it without one."""
        _check(self._lib.rd_kafka_mock_partition_set_leader(self._open(), topic.encode(), partition, broker_id))

    def _open(self) -> int:
        assert self._client is not None, "the embedded broker is closed"
        return self._cluster


def check_topic(name: str, partition_count: int) -> None:
    """Raise UserError on what Kafka would refuse; the mock cluster takes anything."""
    if not _TOPIC_NAME.fullmatch(name) or name in (".", ".."):
        raise UserError(f"topic {name!r}: a name has 1 to 249 of the characters a-z A-Z 0-9 . _ -")
    if not 1 <= partition_count <= MAX_PARTITIONS:
        raise UserError(f"topic {name}: {partition_count} partitions; allowed are 1 to {MAX_PARTITIONS}")


def _require_resources() -> None:
    """Raises UserError where the mock cluster would end in an assertion, or never stop saying that it can't accept."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < _MIN_OPEN_FILES:
        raise UserError(
            f"the embedded broker needs {_MIN_OPEN_FILES} open files, one a connection and more, and may have "
            f"{soft}: ulimit -n {_MIN_OPEN_FILES}"
        )
    try:
        socket.create_server(("127.0.0.1", 0)).close()
    except OSError as err:
        raise UserError(f"the embedded broker can't listen on 127.0.0.1: {err.strerror}") from err


@cache
def _library() -> ctypes.CDLL:
    """The librdkafka that confluent-kafka uses, its functions declared.

    It is reached through the extension module that links to it: the loader looks a name up in a library and in all
    that it needs. So the wheel's own copy is found on Linux and macOS alike, and a system's copy too.
    """
    loaded = ctypes.CDLL(cimpl.__file__)
    for name, (result, arguments) in _FUNCTIONS.items():
        try:
            function = getattr(loaded, name)
        except AttributeError as err:
            raise MockClusterError(
                f"the embedded broker needs librdkafka's {name}, which this confluent-kafka does not have: "
                "install it from its wheel, in the version that requirements/ names"
            ) from err
        function.restype, function.argtypes = result, arguments
    return loaded


def _new_client() -> int:
    """A librdkafka handle for the cluster to belong to. It connects to nothing."""
    lib = _library()
    error = ctypes.create_string_buffer(_ERROR_SIZE_BYTES)
    config = lib.rd_kafka_conf_new()
    # 3: errors only. It would warn that it has no bootstrap.servers.
    if lib.rd_kafka_conf_set(config, b"log_level", b"3", error, len(error)):
        raise MockClusterError(f"the embedded broker: {error.value.decode()}")
    handle: int | None = lib.rd_kafka_new(_PRODUCER, config, error, len(error))
    if handle is None:
        raise MockClusterError(f"the embedded broker: {error.value.decode()}")
    return handle


def _new_cluster(client: int, broker_count: int) -> int:
    """A cluster that listens on loopback, on ports the kernel chooses."""
    handle: int | None = _library().rd_kafka_mock_cluster_new(client, broker_count)
    if handle is None:
        raise MockClusterError("the embedded broker: librdkafka could not listen on 127.0.0.1")
    return handle


def _check(code: int) -> None:
    """Raise what an error code means."""
    if code:
        raise MockClusterError(f"the embedded broker: {_library().rd_kafka_err2str(code).decode()}")
