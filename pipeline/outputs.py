"""Standard output and standard error, as whoever starts a command has left them: of ASCII, closed, full."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

from pipeline.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Buffer  # of collections.abc from Python 3.12 on

# Standard input, output and error.
_STANDARD_DESCRIPTORS = 3
_OUTPUT, _ERROR = 1, 2


def prepare_outputs() -> None:
    """Let them take any text: a character that their encoding lacks is written as its escape.

    JSON lines are bytes, UTF-8 always, and pass that by. What is closed stays closed for who asks `sys.stdout`; what
    goes to a standard error that is closed or full goes nowhere. A standard output that is full, or whose reader has
    gone, raises OSError with its name, once. Whoever has put other streams in their place keeps those.
    """
    _occupy_standard_descriptors()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout is sys.__stdout__:
        sys.stdout = _text(_StandardOutput(_raw(sys.stdout)), sys.stdout)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - open to the end of the process
    elif isinstance(sys.stderr, io.TextIOWrapper) and sys.stderr is sys.__stderr__:
        sys.stderr = _text(_StandardError(_raw(sys.stderr)), sys.stderr)


def require_standard_output() -> None:
    """Raises UserError where it is closed."""
    if sys.stdout is None:
        raise UserError("standard output is closed: there is nowhere to write to")


@contextmanager
def results_alone() -> Iterator[TextIO]:
    """Standard output for a command's results, and nothing else.

    What classes of the user's own and libraries print, C code too, goes to standard error: from here to the end of the
    process, for what C code prints may leave its buffer as late as that.
    """
    results = sys.stdout
    results.flush()
    if isinstance(results, io.TextIOWrapper):
        results = _text(_StandardOutput(io.FileIO(os.dup(results.fileno()), "wb")), results)
    os.dup2(_ERROR, _OUTPUT)
    sys.stdout = sys.stderr
    try:
        yield results
    finally:
        results.flush()


# Not of FileIO: a signal's handler may raise between a write and its return, and then what is written would count as
# not written yet. A BufferedWriter has noted it by then.
class _StandardOutput(io.BufferedWriter):
    """Says its name where it can't be written to. After that all goes nowhere: nobody complains a second time."""

    _failed = False

    def write(self, data: Buffer, /) -> int:
        with self._named():
            return len(memoryview(data)) if self._failed else super().write(data)

    def flush(self) -> None:
        with self._named():
            if not self._failed:
                super().flush()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            self._failed = True
            raise OSError(err.errno, err.strerror, "standard output") from err


class _StandardError(io.BufferedWriter):
    """Takes all: what can't be told changes neither what a command does nor its exit code."""

    def write(self, data: Buffer, /) -> int:
        with suppress(OSError):
            return super().write(data)
        return len(memoryview(data))

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def _raw(stream: io.TextIOWrapper) -> io.FileIO:
    return io.FileIO(stream.fileno(), "wb", closefd=False)


def _text(buffer: io.BufferedWriter, like: io.TextIOWrapper) -> io.TextIOWrapper:
    # PYTHONUNBUFFERED, which images of containers set, shows as write_through, and not as line_buffering.
    unbuffered = like.line_buffering or like.write_through
    return io.TextIOWrapper(buffer, like.encoding, errors="backslashreplace", line_buffering=unbuffered)


def _occupy_standard_descriptors() -> None:
    """The next socket would get the number of one that is closed, and with it what libraries and children write."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < _STANDARD_DESCRIPTORS:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
