"""Lines from a pipe: every one of them once, in order, as soon as it is there, however its bytes arrive."""

from __future__ import annotations

import fcntl
import itertools
import os
import struct
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import lines_of_text
from pipeline.errors import UserError
from pipeline.lines_of_text import line_blocks, opened_lines

MARK = b"\xef\xbb\xbf"

# Mostly what line ends and the mark are made of: the places where a split hurts.
inputs = st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r\n", b"\r", MARK, MARK[:1], MARK[1:], b"\xff"]), max_size=12)
max_lines = st.integers(1, 4)


def expected(data: bytes) -> list[bytes]:
    lines = data.removeprefix(MARK).split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix(b"\r") for line in lines]


@st.composite
def chunks(draw: st.DrawFn) -> list[bytes]:
    """An input, cut anywhere."""
    data = b"".join(draw(inputs))
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(data) - 1)), max_size=8)))
    return [chunk for chunk in (data[a:b] for a, b in itertools.pairwise([0, *cuts, len(data)])) if chunk]


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    try:
        yield reader, writer
    finally:
        os.close(reader)


def unread_bytes(descriptor: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, b"\0\0\0\0"))[0])


def write_each_for_itself(descriptor: int, chunks: Sequence[bytes]) -> None:
    """Each chunk is read before the next is written, so that it makes a read of its own."""
    for chunk in chunks:
        os.write(descriptor, chunk)
        while unread_bytes(descriptor):
            time.sleep(0)
    os.close(descriptor)


@given(chunks(), max_lines)
def test_every_line_once_and_in_order_whatever_the_chunks(chunks: list[bytes], max_lines: int) -> None:
    with pipe() as (reader, writer):
        thread = threading.Thread(target=write_each_for_itself, args=(writer, chunks))
        thread.start()
        blocks = list(line_blocks(reader, max_lines=max_lines))
        thread.join()
    assert [line for block in blocks for line in block] == expected(b"".join(chunks))
    assert all(1 <= len(block) <= max_lines for block in blocks)


@given(st.lists(st.integers(1, 9), max_size=6), max_lines)
def test_it_waits_for_more_only_when_it_has_no_line(counts: list[int], max_lines: int) -> None:
    with pipe() as (reader, writer):
        blocks = line_blocks(reader, max_lines=max_lines)
        written = 0
        for count in counts:
            lines = [b"%d" % number for number in range(written, written + count)]
            # The line that is begun is no reason to wait either.
            os.write(writer, b"\n".join(lines) + b"\n" + b" ")
            got: list[bytes] = []
            while len(got) < count:
                got += next(blocks)  # would hang, where it waited
            assert [line.strip() for line in got] == lines
            written += count
        os.close(writer)
        assert list(blocks) == ([[b" "]] if counts else [])


@given(chunks(), max_lines)
def test_a_file_gives_the_same_in_full_blocks(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes], max_lines: int
) -> None:
    data = b"".join(chunks)
    file = tmp_path_factory.getbasetemp() / "lines.txt"
    file.write_bytes(data)
    with opened_lines(str(file)) as descriptor:
        blocks = list(line_blocks(descriptor, max_lines=max_lines))
    assert [line for block in blocks for line in block] == expected(data)
    assert all(len(block) == max_lines for block in blocks[:-1])


def test_a_mark_that_comes_before_the_text_does_costs_no_text() -> None:
    with pipe() as (reader, writer):
        thread = threading.Thread(target=write_each_for_itself, args=(writer, [MARK, b"a\n", b"b"]))
        thread.start()
        assert [line for block in line_blocks(reader, max_lines=9) for line in block] == [b"a", b"b"]
        thread.join()


def test_lines_of_many_reads() -> None:
    lines = [b"x" * size for size in (1 << 16, 0, (1 << 16) - 1, 200_000, 1)]
    with pipe() as (reader, writer):
        thread = threading.Thread(target=write_all, args=(writer, b"\n".join(lines)))
        thread.start()
        assert [line for block in line_blocks(reader, max_lines=2) for line in block] == lines
        thread.join()


def test_what_has_no_line_ends_is_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_of_text, "MAX_LINE_BYTES", 1 << 20)
    with open("/dev/zero", "rb", buffering=0) as zeros, pytest.raises(UserError, match="no line end in 1 MiB"):
        list(line_blocks(zeros.fileno(), max_lines=9))


def test_lines_before_what_is_none_are_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lines_of_text, "MAX_LINE_BYTES", 1 << 20)
    file = tmp_path / "lines.txt"
    file.write_bytes(b"one\ntwo\nthree\n" + bytes(2 << 20))
    read: list[list[bytes]] = []
    with opened_lines(str(file)) as descriptor, pytest.raises(UserError, match="no line end"):
        read.extend(line_blocks(descriptor, max_lines=2))
    assert read == [[b"one", b"two"], [b"three"]]


def write_all(descriptor: int, data: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
