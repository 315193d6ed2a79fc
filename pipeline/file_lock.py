"""A lock on a file that the operating system takes back when its owner dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Self

from pipeline.deadline import Deadline

_POLL_S = 0.05


class FileLocked(Exception):
    """Raised when somebody else holds the lock for longer than one is ready to wait; `owner` is what they wrote."""

    def __init__(self, path: Path, owner: str) -> None:
        super().__init__(f"{path} is locked by process {owner or 'unknown'}")
        self.owner = owner


class FileLock:
    """Held from its making until `release`. Children don't inherit it. Raises FileLocked, OSError."""

    def __init__(self, path: Path, *, wait_s: float = 0.0) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        deadline = Deadline(wait_s)
        while not self._take():
            if deadline.expired:
                owner = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip()
                self.release()
                raise FileLocked(path, owner)
            time.sleep(_POLL_S)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let others have it. The file stays: removing it would let two hold a lock of that name."""
        os.close(self._descriptor)

    def _take(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
