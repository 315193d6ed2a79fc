"""The demo's input: what is shipped, and files that people give."""

from __future__ import annotations

import gzip
import os
from itertools import islice
from pathlib import Path

import pytest

from pipeline.demo import texts
from pipeline.demo.texts import SHIPPED_TEXTS, count_texts, read_texts
from pipeline.errors import UserError


def test_the_shipped_texts_are_sentences() -> None:
    assert count_texts(SHIPPED_TEXTS) == 20_000
    assert all(" " in text or len(text) > 3 for text in islice(read_texts(SHIPPED_TEXTS), 1_000))


@pytest.mark.parametrize("packed", [False, True])
def test_a_text_a_line_and_again_from_the_start(tmp_path: Path, packed: bool) -> None:
    content = "\ufeffone\r\n\n  two \n\t\nthree \N{PILE OF POO}".encode()
    # Not the name tells what it is.
    path = tmp_path / "texts"
    path.write_bytes(gzip.compress(content) if packed else content)
    assert count_texts(path) == 3
    assert list(islice(read_texts(path), 5)) == ["one", "two", "three \N{PILE OF POO}", "one", "two"]


def test_only_as_many_as_are_wanted_are_read(tmp_path: Path) -> None:
    path = tmp_path / "texts"
    path.write_bytes(b"one\ntwo\n\xff\n")
    assert count_texts(path, at_most=2) == 2
    with pytest.raises(UserError, match="line 3 is not UTF-8: invalid start byte at its byte 0"):
        count_texts(path)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "no text in it"),
        (b"\n  \n", "no text in it"),
        (gzip.compress(b""), "no text in it"),
        (gzip.compress(b"one\n" * 99)[:-12], "broken gzip: it ends too early"),
        (b"\x1f\x8bno gzip", "broken gzip"),
        ("one\nna\xefve\n".encode("latin-1"), "line 2 is not UTF-8"),
        ("\n".join(["one", "two"]).encode("utf-16"), "line 1 is not UTF-8"),
    ],
)
def test_a_bad_file_gives_one_line(tmp_path: Path, content: bytes, line: str) -> None:
    path = tmp_path / "texts.gz"
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        count_texts(path)
    [told] = raised.value.lines
    assert told.startswith(f"{path}: ")
    assert line in told


def test_what_is_no_file_gives_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        count_texts(tmp_path / "missing")
    with pytest.raises(UserError, match="not a regular file"):
        count_texts(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a regular file"):
        count_texts(tmp_path / "pipe")


def test_a_line_without_end_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "MAX_LINE_BYTES", 10)
    path = tmp_path / "texts"
    path.write_bytes(b"short\n" + b"x" * 11)
    with pytest.raises(UserError, match="line 2 has more than 10 bytes"):
        count_texts(path)
