"""A broker's folder: its records, its settings, its log, and who uses it.

DIR/kafka/             Kafka's own: meta.properties (cluster id), a folder for each partition
DIR/server.properties  written at each start
DIR/broker.log         warnings and errors
DIR/penstock.lock      held by whoever runs the broker
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.apache_kafka.java import java_environment
from pipeline.apache_kafka.runtime import Runtime
from pipeline.deadline import Deadline
from pipeline.errors import UserError, WorkerFailure
from pipeline.file_lock import FileLock, FileLocked

_LOCK = "penstock.lock"
_ROOM_BYTES = 100 * 1024 * 1024
_FORMAT_BUDGET_S = 60.0  # 0.5 s
# A broker whose starter was killed is being stopped; on little data that takes 0.5 s.
_RELEASE_BUDGET_S = 10.0
_POLL_S = 0.05
_ANOTHER = "stop it, or name another folder"


class DataDirectory:
    """Used by one broker at a time, between `open` and `close`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.kafka = self.folder / "kafka"
        self._meta = self.kafka / "meta.properties"
        self.properties = self.folder / "server.properties"
        self.log = self.folder / "broker.log"
        self._lock: FileLock | None = None

    def open(self) -> None:
        """Make it where it is missing, and keep others out.

        Raises UserError: in use, not writable, no room, other things in it, damaged.
        """
        assert self._lock is None
        if "," in str(self.folder):
            raise UserError(f"{self.folder}: Kafka takes a comma for the end of a folder's name: choose another")
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder}: is no folder: a broker's data goes there; name a folder")
        with self.user_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / _LOCK).exists() and any(self.folder.iterdir()):
                raise UserError(f"{self.folder}: holds other files and no broker's data: name an empty or a new folder")
            try:
                self._lock = FileLock(self.folder / _LOCK)
            except FileLocked as err:
                raise UserError(
                    f"{self.folder}: in use by another broker (process {err.owner or 'unknown'}): {_ANOTHER}"
                ) from err
            try:
                self._check()
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Let others have it."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @property
    def cluster_id(self) -> str:
        """Given by `format`."""
        return self._meta_properties()["cluster.id"]

    @property
    def killed(self) -> bool:
        """Whether its last broker ended without leaving in order."""
        started = (self.kafka / "__cluster_metadata-0").exists()
        return started and not (self.kafka / ".kafka_cleanshutdown").exists()

    def write_properties(self, text: str) -> None:
        """Kafka's settings for this start."""
        with self.user_errors():
            self.properties.write_text(text)

    def format(self, runtime: Runtime) -> None:
        """Give it a cluster id, unless it has one. Done in a folder beside it: one that is killed leaves no half."""
        if self.kafka.exists():
            return
        new = self.folder / "kafka.new"
        with self.user_errors():
            shutil.rmtree(new, ignore_errors=True)
            settings = self.properties.read_text()
            properties = self.folder / "format.properties"
            properties.write_text(f"{settings}log.dirs={new.name}\n")  # of two lines for one name, the last counts
            arguments = ["format", "--cluster-id", _new_cluster_id(), "--config", str(properties)]
            done = subprocess.run(
                runtime.command("kafka.tools.StorageTool", *arguments, log_file=self.log),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                cwd=self.folder,
                env=java_environment(),
                timeout=_FORMAT_BUDGET_S,
            )
            if done.returncode != 0:
                lines = done.stdout.splitlines() or [f"exit code {done.returncode}"]
                reason = next((line for line in lines if "Exception" in line), lines[-1])
                raise WorkerFailure(f"{self.folder}: Kafka could not format it: {reason}")
            new.rename(self.kafka)
            properties.unlink()

    @contextmanager
    def user_errors(self) -> Iterator[None]:
        """What the file system refuses here, a person must mend."""
        try:
            yield
        except subprocess.TimeoutExpired as err:
            raise WorkerFailure(f"{self.folder}: Kafka did not format it within {err.timeout:g} s") from err
        except OSError as err:
            raise UserError(f"{self.folder}: {err.strerror}: a broker's data goes there; name another folder") from err

    def _check(self) -> None:
        if shutil.disk_usage(self.folder).free < _ROOM_BYTES:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({_ROOM_BYTES >> 20} MiB are needed)")
        if not self.kafka.exists():
            return
        found = self._meta_properties()
        for name in ("cluster.id", "node.id", "version"):
            if not found.get(name):
                raise UserError(f"{self._meta}: damaged ({name} is missing): restore it, or name another folder")
        self._wait_for_kafka()

    def _meta_properties(self) -> dict[str, str]:
        """As far as they can be read."""
        text = self._meta.read_text(errors="replace") if self._meta.exists() else ""
        return {name: value for name, _, value in (line.partition("=") for line in text.splitlines())}

    def _wait_for_kafka(self) -> None:
        """Until no Kafka has these records open.

        One whose starter was killed may be ending still. Kafka itself looks too late: a second one has by then written
        to the first one's metadata.
        """
        deadline = Deadline(_RELEASE_BUDGET_S)
        with (self.kafka / ".lock").open("ab") as lock:
            while True:
                # As Java locks files, which is not as FileLock does.
                with contextlib.suppress(BlockingIOError):
                    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                if deadline.expired:
                    raise UserError(f"{self.folder}: in use by another Kafka: {_ANOTHER}")
                time.sleep(_POLL_S)


def _new_cluster_id() -> str:
    """22 characters, none of them a dash at the beginning: Kafka's command line would take it for an option."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes)[:22].decode()
        if not text.startswith("-"):
            return text
