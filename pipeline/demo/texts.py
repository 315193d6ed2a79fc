"""The demo's input: a text a line, read as a stream, and from its start again where more texts are wanted.

`texts.txt.gz` has 20,000 sentences of the State of the Union speeches of presidents of the United States, which are
in the public domain, in random order: 35.5 tokens in the mean, from 3 to several hundred.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path

from pipeline.errors import UserError

SHIPPED_TEXTS = Path(__file__).with_name("texts.txt.gz")

# Twice the largest text that an ensemble takes by default; whoever has a longer line has a file without lines.
MAX_LINE_BYTES = 2 << 20

_GZIP_MAGIC = b"\x1f\x8b"


def count_texts(path: Path, *, at_most: int | None = None) -> int:
    """How many texts the file has, up to `at_most`: those are read and checked.

    Raises UserError: no such file, no text in it, not UTF-8, a line over MAX_LINE_BYTES, broken gzip.
    """
    try:
        # It is read more than once, which a pipe or a terminal can't be.
        if not path.is_file():
            what = "is not a regular file" if path.exists() else "no such file"
            raise UserError(f"{path}: {what}; --texts wants a file with a text a line, gzipped or not")
        count = sum(1 for _ in islice(_texts_once(path), at_most))
    except gzip.BadGzipFile as err:
        raise UserError(f"{path}: broken gzip: {err}") from err
    except (EOFError, zlib.error) as err:
        raise UserError(f"{path}: broken gzip: it ends too early, or its bytes were changed") from err
    except OSError as err:
        raise UserError(f"{path}: {err.strerror or err}") from err
    if not count:
        raise UserError(f"{path}: no text in it; --texts wants a file with a text a line")
    return count


def read_texts(path: Path) -> Iterator[str]:
    """The texts of a file that `count_texts` has found some in, without end: after the last comes the first."""
    while True:
        yield from _texts_once(path)


def _texts_once(path: Path) -> Iterator[str]:
    """Blank lines are no texts."""
    with path.open("rb") as file:
        is_gzip = file.peek(len(_GZIP_MAGIC)).startswith(_GZIP_MAGIC)
        with gzip.GzipFile(fileobj=file) if is_gzip else nullcontext(file) as lines:
            for number, line in enumerate(iter(partial(lines.readline, MAX_LINE_BYTES + 1), b""), start=1):
                if text := _text(path, number, line):
                    yield text


def _text(path: Path, number: int, line: bytes) -> str:
    if len(line) > MAX_LINE_BYTES:
        raise UserError(f"{path}: line {number} has more than {MAX_LINE_BYTES} bytes; a text a line is wanted")
    try:
        # -sig: editors on Windows begin a file with a byte order mark.
        return line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    except UnicodeDecodeError as err:
        raise UserError(f"{path}: line {number} is not UTF-8: {err.reason} at its byte {err.start}") from err
