"""Apache Kafka's jars: from Maven Central by `pom.xml`, once, into the user's cache folder.

The folder is named after the pom's digest, so that another version of Kafka is another folder, and it is there as a
whole or not at all. Maven's own settings (mirrors, proxies, its local repository) apply.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipeline.apache_kafka.java import java_environment
from pipeline.errors import UserError
from pipeline.file_lock import FileLock, FileLocked
from pipeline.user_cache import cache_folder

log = logging.getLogger("penstock.broker")

KAFKA_VERSION = "4.3.1"

_POM = Path(__file__).with_name("pom.xml")
_PARTIAL = "partial-"
# 44 MB in 48 files over a slow line; 10 s over a fast one.
_FETCH_BUDGET_S = 600.0
# The jars, the archive of their classes, and as much again in Maven's own repository.
_ROOM_BYTES = 200 * 1024 * 1024
_LONGEST_REASON = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Jars:
    """The folder with all of them, and nothing else but archives of their classes."""

    folder: Path

    @property
    def classpath(self) -> str:
        """Sorted: an archive of classes fits only the classpath that it was made with."""
        return os.pathsep.join(sorted(map(str, self.folder.glob("*.jar"))))


def find_jars() -> Jars:
    """From the cache, else by Maven. Raises UserError: no Maven, no network, no room."""
    root = cache_folder() / "apache-kafka"
    folder = root / hashlib.sha256(_POM.read_bytes()).hexdigest()[:16]
    if not folder.is_dir():
        try:
            _fetch(root, folder)
        except OSError as err:
            raise UserError(
                f"{root}: {err.strerror}: Apache Kafka's jars go there; XDG_CACHE_HOME names another place"
            ) from err
    return Jars(folder=folder)


def preparation_lock(root: Path) -> FileLock:
    """Whoever fetches jars, or makes an archive of their classes, holds it: Maven's repository knows no locks."""
    try:
        return FileLock(root / "lock", wait_s=_FETCH_BUDGET_S)
    except FileLocked as err:
        raise UserError(f"{err}, which has been fetching Apache Kafka for {_FETCH_BUDGET_S:g} s: end it") from err


def _fetch(root: Path, folder: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise UserError(
            f"Apache Kafka {KAFKA_VERSION} is not in {root}, and there is no Maven to fetch it: install Maven "
            "(its command mvn on PATH); once fetched, it needs neither Maven nor a network"
        )
    root.mkdir(parents=True, exist_ok=True)
    with preparation_lock(root):
        if folder.is_dir():  # somebody else was faster
            return
        for left in root.glob(f"{_PARTIAL}*"):  # of somebody who was killed
            shutil.rmtree(left, ignore_errors=True)
        if shutil.disk_usage(root).free < _ROOM_BYTES:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({_ROOM_BYTES >> 20} MiB are needed)")
        log.info("fetching Apache Kafka %s by Maven (44 MB, once) into %s", KAFKA_VERSION, root)
        partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=root))
        try:
            _copy_dependencies(maven, partial)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _copy_dependencies(maven: str, folder: Path) -> None:
    command = [
        *(maven, "--batch-mode", "--quiet", "--strict-checksums", "--file", str(_POM)),
        *("dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={folder}"),
    ]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=java_environment(),
            timeout=_FETCH_BUDGET_S,
        )
    except subprocess.TimeoutExpired as err:
        raise UserError(f"Maven did not fetch Apache Kafka within {_FETCH_BUDGET_S:g} s: is the network up?") from err
    if done.returncode == 0 and any(folder.glob("kafka_*.jar")):
        return
    if os.strerror(errno.ENOSPC) in done.stdout:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    lines = [line.removeprefix("[ERROR]").strip() for line in done.stdout.splitlines()]
    reason = next(filter(None, lines), f"it exited with {done.returncode}")[:_LONGEST_REASON]
    raise UserError(f"Maven could not fetch Apache Kafka {KAFKA_VERSION}: {reason}")
