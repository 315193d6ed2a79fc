"""How a child process sees that whoever started it has died, by the environment that it was given."""

from __future__ import annotations

import os

PARENT_PID = "PENSTOCK_PARENT_PID"


def child_environment() -> dict[str, str]:
    """This process's environment for a child that watches its parent with `parent_gone`."""
    return os.environ | {PARENT_PID: str(os.getpid())}


def parent_gone() -> bool:
    """Whether the process that started this one has died. False for a process that a person started.

    A supervised worker asks now and then, drains and exits. Whoever gave the environment must be the direct parent:
    a shell between the two counts as its death.
    """
    parent = os.environ.get(PARENT_PID)
    return parent is not None and os.getppid() != int(parent)
