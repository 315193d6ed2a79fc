"""Lines of text that become requests: what `penstock produce` and `predict` read.

A line that starts with `{` is a request as JSON and passed on as it is, right or wrong; any other line is a text. An
empty line is an empty text. Bytes that are not UTF-8 are passed on too: the pipeline is what judges requests.

Lines are taken in blocks of what is there to be read, so that nobody who types or trickles waits for a full block. One
read takes what a pipe holds, 64 KB on Linux; while more is ready the block grows, up to its bound.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from pipeline.errors import UserError
from schemas.requests import RequestFormat

# Twice a text of 4 MiB, the most that requests.max_text_bytes allows, with each of its bytes as \u00XX of JSON.
MAX_LINE_BYTES = 48 << 20
_READ_BYTES = 1 << 16
_UTF8_MARK = b"\xef\xbb\xbf"


@contextmanager
def opened_lines(source: str) -> Iterator[int]:
    """The descriptor of a file, or of standard input where `source` is `-`. Raises UserError."""
    if source == "-":
        if sys.stdin is None:
            raise UserError("standard input is closed: send lines into it")
        if sys.stdin.isatty():
            print("penstock: a text a line; Ctrl-D ends", file=sys.stderr)
        yield sys.stdin.fileno()
        return
    try:
        file = Path(source).open("rb", buffering=0)  # noqa: SIM115 - closed below; only opening may be the user's mistake
    except (OSError, ValueError) as err:  # ValueError: a null character in the path
        raise UserError(f"{source}: {err.strerror if isinstance(err, OSError) else err}") from err
    with file:
        yield file.fileno()


def line_blocks(descriptor: int, *, max_lines: int) -> Iterator[list[bytes]]:
    """Blocks of at most `max_lines` lines without their ends, LF or CRLF; the last line needs none.

    Never waits while it has a line. Raises UserError, after all lines before it, where one doesn't end within
    MAX_LINE_BYTES.
    """
    lines: list[bytes] = []
    begun: list[bytes] = []  # pieces of the line whose end has not come yet
    begun_bytes = 0
    chunk = _read_start(descriptor)
    while chunk:
        head, *tail = chunk.split(b"\n")
        begun.append(head)
        begun_bytes += len(head)
        if tail:
            lines.append(_line(begun))
            lines.extend(_line([whole]) for whole in tail[:-1])
            begun, begun_bytes = [tail[-1]], len(tail[-1])
        if begun_bytes > MAX_LINE_BYTES:
            while lines:
                yield lines[:max_lines]
                del lines[:max_lines]
            raise UserError(f"the input has no line end in {MAX_LINE_BYTES >> 20} MiB: are these lines of text?")
        while len(lines) >= max_lines or (lines and not _ready(descriptor)):
            yield lines[:max_lines]
            del lines[:max_lines]
        chunk = _read(descriptor)
    if begun_bytes:
        lines.append(_line(begun))
    if lines:
        yield lines


def request_of(line: bytes, format: RequestFormat) -> bytes:
    """The value of a request record from a line of text or JSON."""
    if format == "text" or line.lstrip().startswith(b"{"):
        return line
    try:
        return msgspec.json.encode({"text": line.decode()})
    except UnicodeDecodeError:
        return line


def _line(pieces: list[bytes]) -> bytes:
    return b"".join(pieces).removesuffix(b"\r")


def _ready(descriptor: int) -> bool:
    readable, _, _ = select.select([descriptor], [], [], 0)
    return bool(readable)


def _read_start(descriptor: int) -> bytes:
    """What is there first, without what some programs begin UTF-8 with: it is none of the text.

    It may come in a read of its own, as from PowerShell, or in pieces.
    """
    start = b""
    while _UTF8_MARK.startswith(start) and (more := _read(descriptor)):
        start += more
    return start.removeprefix(_UTF8_MARK)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, _READ_BYTES)
    except OSError as err:
        raise UserError(f"the input can't be read: {err.strerror}") from err
