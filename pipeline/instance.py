"""A worker's name among those of its group: the same after a restart, so that the group gives it its partitions back.

Kafka calls it static membership (KIP-345): a member of the same name takes over at once, where a new one waits until
the session of the one that was killed has ended. Names are places on this machine, 0 and up: a worker takes the first
that is free, and holds it by a file lock, which ends with its process however that ends.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import UserError
from pipeline.file_lock import FileLock, FileLocked

log = logging.getLogger("penstock.instance")

# More workers of one stage on one machine than anyone runs.
_MOST_PLACES = 1024
# How soon a standby sees that the one before it is gone.
_LOOK_S = 0.02
# Kafka's rule for an instance's name, which is that of topics.
_NAME = re.compile(r"[a-zA-Z0-9._-]{1,100}")


class Instance:
    """A name that this process holds until `release`; None where it has to do without."""

    def __init__(self, name: str | None, lock: FileLock | None = None) -> None:
        self.name = name
        self._lock = lock

    def release(self) -> None:
        """Let another process have the name."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def claim_instance(group: str, *, wanted: str | None = None, folder: Path | None = None) -> Instance:
    """`wanted` (where it is empty: none), or the first free place of `group` on this machine. `folder` is where the
    locks are.

    Raises UserError: not a name, or another worker on this machine has it.
    """
    if wanted == "":
        return Instance(None)
    if wanted is not None and not _NAME.fullmatch(wanted):
        raise UserError(
            f"--instance: {wanted!r} is not allowed; allowed: letters, digits, '.', '_' and '-', at most 100"
        )
    folder = folder or _folder()
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        for name in [wanted] if wanted is not None else (f"{host_name()}-{place}" for place in range(_MOST_PLACES)):
            try:
                return Instance(name, FileLock(folder / f"{group}.{name}.lock"))
            except FileLocked as err:
                if wanted is not None:
                    raise UserError(
                        f"--instance: {name} of {group} is process {err.owner or 'unknown'}: choose another name"
                    ) from err
    except OSError as err:
        log.warning("no place for locks, so that a restart waits for the session to end: %s", err)
        return Instance(wanted)
    return Instance(None)


def await_instance(
    group: str, name: str, stopped: Callable[[], bool], *, folder: Path | None = None
) -> Instance | None:
    """The name as soon as nobody on this machine holds it any more; None once `stopped`.

    Raises UserError: where there is no place for locks nobody can tell who holds it.
    """
    folder = folder or _folder()
    while not stopped():
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            return Instance(name, FileLock(folder / f"{group}.{name}.lock"))
        except FileLocked:
            time.sleep(_LOOK_S)
        except OSError as err:
            raise UserError(f"{folder}: no place for the lock that --standby waits for: {err.strerror}") from err
    return None


def host_name() -> str:
    """This machine's, as far as Kafka takes it."""
    return re.sub(r"[^a-zA-Z0-9._-]", "-", socket.gethostname())[:80] or "host"


def _folder() -> Path:
    return Path(tempfile.gettempdir()) / f"penstock-{os.getuid()}"
