"""Standard output and standard error, as whoever starts a command has left them: of ASCII, closed, full."""

from __future__ import annotations

import io
import sys


def prepare_outputs() -> None:
    """Let them take any text: a character that their encoding lacks is written as its escape.

    JSON lines are bytes, UTF-8 always, and pass them by.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
