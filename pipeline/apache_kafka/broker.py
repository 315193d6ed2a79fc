"""Apache Kafka on this machine: one node, started in a second, for tests, benchmarks and trying things out.

    with ApacheBroker(folder) as broker:
        Producer({"bootstrap.servers": broker.bootstrap})

It is the real thing: transactions, the admin API, retention, records that are there again after a restart. It listens
on 127.0.0.1 only, asks nobody for a password, and has one copy of everything.
"""

from __future__ import annotations

import contextlib
import logging
import random
import re
import socket
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from confluent_kafka import KafkaException

from pipeline import clients
from pipeline.apache_kafka import fencing
from pipeline.apache_kafka.data_directory import DataDirectory
from pipeline.apache_kafka.jars import find_jars, preparation_lock
from pipeline.apache_kafka.java import find_java, java_environment
from pipeline.apache_kafka.runtime import Runtime
from pipeline.apache_kafka.server_properties import server_properties
from pipeline.apache_kafka.watched_process import WatchedProcess
from pipeline.deadline import Deadline
from pipeline.errors import UserError, WorkerFailure

log = logging.getLogger("penstock.broker")

# 1 s on an empty folder; 15 s were seen on 4 GB in 540 partitions after SIGKILL.
_START_BUDGET_S = 120.0
# 0.3 s on an empty folder; it writes all that is only in memory.
_STOP_BUDGET_S = 30.0
_ARCHIVE_STOP_BUDGET_S = 120.0  # 3 s, of which writing the archive is most
_POLL_S = 0.02
_METADATA_TIMEOUT_S = 0.2
# Somebody else may take a port between the choice and Kafka's use of it.
_PORT_TRIES = 3
# Below the ports that clients connect from (32768 up on Linux): a client that tries a stopped broker's address again
# and again would otherwise by chance connect to itself, and then hold the port.
_FREE_PORTS = range(20_000, 32_768)

_PORT_TAKEN = "Address already in use"
_DAMAGED = "Corruption found"
_NO_ROOM = "No space left on device"
_LOG_LINE = re.compile(r"^\d{4}-\d\d-\d\d [\d:,]+ (INFO|WARN|ERROR|FATAL) +")
_EXCEPTION = re.compile(r"^(?:\w+\.)*(\w+(?:Exception|Error): .*)")


def find_runtime() -> Runtime:
    """A Java and Kafka's jars, fetched and prepared where they are not there yet. Raises UserError."""
    runtime = Runtime(java=find_java(), jars=find_jars())
    if not runtime.archive.exists():
        try:
            _make_archive(runtime)
        except (OSError, UserError, WorkerFailure) as err:
            log.warning("no archive of Kafka's classes, it will start in 2 s instead of 1: %s", err)
    return runtime


class ApacheBroker:
    """A broker and its data directory. One thread starts, stops and kills it.

    `start` after `stop` or `kill` brings it back with the same address and the same records. Without a `port` a free
    one is chosen at the first start. `settings` are Kafka's own and win over `server_properties`.
    """

    def __init__(
        self,
        data: Path,
        *,
        port: int = 0,
        settings: Mapping[str, str] | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        self._data = DataDirectory(data)
        self._port = port
        self._settings = dict(settings or {})
        self._runtime = runtime
        self._process: WatchedProcess | None = None
        self._log_start_bytes = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def bootstrap(self) -> str:
        """The address for clients; known from the first start on."""
        assert self._port, "not started yet"
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Java's."""
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.exit_code is None

    @property
    def log_file(self) -> Path:
        """Where its warnings and errors are."""
        return self._data.log

    def start(self, *, archive_option: str | None = None) -> None:
        """Start it and wait until it answers a client.

        Raises UserError on what a person must mend (Java, Maven, the port, the folder), WorkerFailure if Kafka fails.
        """
        assert self._process is None, "started already"
        self._runtime = self._runtime or find_runtime()
        self._data.open()
        try:
            for tries_left in reversed(range(_PORT_TRIES)):
                if self._start_once(self._runtime, archive_option):
                    return
                if not tries_left:
                    raise UserError(f"ports are taken as soon as they are free; Kafka's own words: {self.log_file}")
        except BaseException:
            self.kill()
            raise

    def stop(self, budget_s: float = _STOP_BUDGET_S) -> None:
        """SIGTERM, and SIGKILL if it does not end in time; no records are lost either way."""
        if self._process is not None and not self._process.terminate(budget_s):
            log.warning("Apache Kafka did not end within %g s: killed", budget_s)
        self._ended()

    def kill(self) -> None:
        """SIGKILL: what tests do to it."""
        if self._process is not None:
            self._process.kill()
        self._ended()

    def failure(self) -> UserError | WorkerFailure:
        """Why it ended by itself, in Kafka's own first word since the last start."""
        assert self._process is not None
        said = self._log_since_start()
        if _NO_ROOM in said:
            return UserError(f"{self._data.folder}: {_NO_ROOM}: make room, or name another folder")
        how = self._process.how_it_ended()
        return WorkerFailure(f"Apache Kafka {how}: {_first_error(said) or f'it has not said why in {self.log_file}'}")

    def _ended(self) -> None:
        self._process = None
        self._data.close()

    def _start_once(self, runtime: Runtime, archive_option: str | None) -> bool:
        """Whether it answers; False where somebody else took a port, so that another try may help."""
        port_is_ours_to_choose = not self._port
        if port_is_ours_to_choose:
            self._port = _free_port()
        else:
            _check_port(self._port)
        if self._data.killed and not self._fence_predecessor(runtime):
            return False
        self._write_properties(self._port, self._settings)
        self._data.format(runtime)
        self._process = self._run(runtime, archive_option)
        answers = self._wait_until_it_answers()
        said = self._log_since_start()
        if _DAMAGED in said:
            log.warning("%s: Kafka cut off records that were damaged, see %s", self._data.folder, self.log_file)
        if answers:
            return True
        if _PORT_TAKEN not in said:
            raise self.failure()
        self._process.kill()
        if port_is_ours_to_choose:
            self._port = 0
        return False

    def _fence_predecessor(self, runtime: Runtime) -> bool:
        """Let a controller alone take the killed broker out; False where another try may help."""
        self._write_properties(None, {**self._settings, **fencing.SETTINGS})
        controller = self._process = self._run(runtime)
        if fencing.fence(controller, self._log_since_start):
            return True
        if _PORT_TAKEN not in self._log_since_start():
            raise self.failure()
        return False

    def _write_properties(self, port: int | None, settings: Mapping[str, str]) -> None:
        self._data.write_properties(
            server_properties(
                port=port, controller_port=_free_port(but=self._port), log_dir=self._data.kafka, more=settings
            )
        )

    def _run(self, runtime: Runtime, archive_option: str | None = None) -> WatchedProcess:
        command = runtime.command(
            "kafka.Kafka", str(self._data.properties), log_file=self.log_file, archive_option=archive_option
        )
        self._log_start_bytes = self._log_size_bytes()
        with self._data.user_errors():
            return WatchedProcess(
                command, folder=self._data.folder, output=self.log_file, environment=java_environment()
            )

    def _wait_until_it_answers(self) -> bool:
        """False where it ended instead. Raises WorkerFailure where it takes too long."""
        assert self._process is not None
        deadline = Deadline(_START_BUDGET_S)
        # A client made before there is a listener would wait before it tries again.
        while not _listens(self._port):
            if self._process.exit_code is not None:
                return False
            _sleep_until(deadline)
        admin = clients.admin({"bootstrap.servers": self.bootstrap})
        while self._process.exit_code is None:
            with contextlib.suppress(KafkaException):
                metadata = admin.list_topics(timeout=_METADATA_TIMEOUT_S)
                # Another Kafka may have taken the port: then this one is about to end.
                if metadata.brokers and metadata.cluster_id == self._data.cluster_id:
                    return True
            _sleep_until(deadline)
        return False

    def _log_size_bytes(self) -> int:
        return self.log_file.stat().st_size if self.log_file.exists() else 0

    def _log_since_start(self) -> str:
        if self._log_size_bytes() < self._log_start_bytes:  # it has grown too large and was begun anew
            self._log_start_bytes = 0
        with self.log_file.open("rb") as file:
            file.seek(self._log_start_bytes)
            return file.read().decode(errors="replace")


def _make_archive(runtime: Runtime) -> None:
    """Of the classes that a broker loads until it answers, by Java itself, when such a broker ends."""
    with preparation_lock(runtime.jars.folder.parent):
        if runtime.archive.exists():  # somebody else was faster
            return
        log.info("preparing Apache Kafka for quick starts (50 MB, once)")
        with tempfile.TemporaryDirectory(prefix="archive-", dir=runtime.jars.folder) as folder:
            made = Path(folder, "classes.jsa")
            broker = ApacheBroker(Path(folder, "data"), runtime=runtime)
            try:
                broker.start(archive_option=f"-XX:ArchiveClassesAtExit={made}")
                broker.stop(_ARCHIVE_STOP_BUDGET_S)
            finally:
                broker.kill()
            if not made.exists():
                raise WorkerFailure(f"{runtime.java.path} made none")
            made.rename(runtime.archive)


def _first_error(said: str) -> str | None:
    """Of a log: the first error's exception, which follows its line, or else that line; else what Java itself says."""
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith("\t")]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if (found := _LOG_LINE.match(line)) and found[1] in ("ERROR", "FATAL"):
            exception = _EXCEPTION.match(following)
            return exception[1] if exception else line[found.end() :]
    return next((line for line in lines if not _LOG_LINE.match(line)), None)


def _check_port(port: int) -> None:
    try:
        _bind(port)
    except OSError as err:
        raise UserError(f"port {port}: {err.strerror}: choose another one with --port; 0 is any free one") from err


def _free_port(but: int = 0) -> int:
    for port in random.sample(_FREE_PORTS, 100):
        with contextlib.suppress(OSError):
            if port != but:
                _bind(port)
                return port
    raise UserError(f"no port from {_FREE_PORTS.start} to {_FREE_PORTS.stop - 1} is free")


def _bind(port: int) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Java does: old connections don't count
        listener.bind(("127.0.0.1", port))


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _sleep_until(deadline: Deadline) -> None:
    if deadline.expired:
        raise WorkerFailure(f"Apache Kafka did not answer within {_START_BUDGET_S:g} s")
    time.sleep(_POLL_S)
