"""Standard output and standard error, as whoever starts a command has left them: of ASCII, closed, full."""

from __future__ import annotations

import io
import os
import sys

from pipeline.errors import UserError

# Standard input, output and error.
_STANDARD_DESCRIPTORS = 3


def prepare_outputs() -> None:
    """Let them take any text: a character that their encoding lacks is written as its escape.

    JSON lines are bytes, UTF-8 always, and pass them by. What is closed stays closed for who asks `sys.stdout`; what
    goes to a standard error that is closed goes nowhere.
    """
    _occupy_standard_descriptors()
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - open to the end of the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def require_standard_output() -> None:
    """Raises UserError where it is closed."""
    if sys.stdout is None:
        raise UserError("standard output is closed: there is nowhere to write to")


def _occupy_standard_descriptors() -> None:
    """The next socket would get the number of one that is closed, and with it what libraries and children write."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < _STANDARD_DESCRIPTORS:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
