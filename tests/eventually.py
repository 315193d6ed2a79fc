"""Waiting for what must come, however slow the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable

# Longer than anything takes; a test that waits for so long has failed.
WAIT_S = 60.0
_POLL_S = 0.02


def eventually(holds: Callable[[], bool], say: Callable[[], object] = lambda: "") -> None:
    """Returns once it does; fails the test, with what `say` says, where it never does."""
    deadline_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline_s, f"it never came true {say()}".rstrip()
        time.sleep(_POLL_S)
