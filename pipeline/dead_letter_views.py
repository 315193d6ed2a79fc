"""`penstock dead-letters list` and `show`: dead letters for people, as a table or line by line, and for programs."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Iterator
from itertools import count as counting
from itertools import islice

import msgspec

from pipeline.dead_letter_box import DeadLetter, Wanted, letters, letters_at, open_box
from pipeline.errors import UserError
from pipeline.settings import EnsembleSettings
from pipeline.times import shown_time
from schemas.headers import Cause
from schemas.records import Source

# A table's columns are as wide as what is in them, so its rows are held in memory: this many, then comes another table.
_TABLE_ROWS = 1000
# What 80 columns have room for; where the original is, is shown with the rest of it.
_TABLE_COLUMNS = ("place", "written", "stage", "reason", "message")
# Of a value that is shown to a person.
_SHOWN_BYTES = 2000


class _Row(msgspec.Struct, frozen=True):
    """A dead letter as `list --json` prints it. All but the place, `value_bytes` and `attempt` may be null."""

    partition: int
    offset: int
    written: str | None
    stage: str | None
    reason: str | None
    message: str | None
    original: Source | None
    group: str | None
    attempt: int
    header_style: str | None
    key: str | None
    value_bytes: int | None

    def cells(self) -> dict[str, str]:
        """What a line of text says, by column."""
        cells = {
            "place": f"{self.partition}/{self.offset}",
            "written": self.written,
            "stage": self.stage,
            "reason": self.reason,
            "original": self.original,
            "message": self.message,
        }
        return {name: "-" if cell is None else _one_line(str(cell)) for name, cell in cells.items()}


class _Shown(msgspec.Struct, frozen=True):
    """A dead letter as `show --json` prints it. Headers are pairs: a name may come more than once."""

    dead_letter: _Row
    headers: list[tuple[str, str | None]]
    value: str | None


def list_dead_letters(settings: EnsembleSettings, wanted: Wanted, *, count: int | None, as_json: bool) -> None:
    """Print those that match, partition by partition, or the newest `count` of them, oldest first.

    Raises UserError, WorkerFailure.
    """
    output = sys.stdout.buffer
    with open_box(settings) as reader:
        bounds = reader.bounds()
        found = (
            _row(letter)
            for partition, (low, high) in bounds.items()
            for block in letters(reader, partition, low, high)
            for letter in block
            if wanted.matches(letter)
        )
        rows = found if count is None else iter(_newest(found, count))
        if not as_json and sys.stdout.isatty():
            printed = _print_table(rows)
        else:
            printed = 0
            for row in rows:
                output.write(
                    (msgspec.json.encode(row) if as_json else "\t".join(row.cells().values()).encode()) + b"\n"
                )
                printed += 1
    if not printed:
        held = sum(high - low for low, high in bounds.values())
        what = "no dead letters" if not held or wanted.all else "no dead letter matches"
        sys.stderr.write(f"penstock: {reader.topic}: {what}\n")


def show_dead_letter(settings: EnsembleSettings, place: str, *, as_json: bool, value: bool) -> None:
    """Print the dead letter at PARTITION/OFFSET, or its value alone, byte by byte. Raises UserError, WorkerFailure."""
    output = sys.stdout.buffer
    with open_box(settings) as reader:
        [letter] = letters_at(reader, [place])
    record = letter.record
    if value:
        if record.value is None:
            raise UserError(f"{reader.topic}/{letter.place}: it has no value")
        output.write(record.value)
    elif as_json:
        headers = [(name, _readable(said)) for name, said in letter.original_headers]
        output.write(msgspec.json.encode(_Shown(_row(letter), headers, _readable(record.value))) + b"\n")
    else:
        output.write("".join(line + "\n" for line in _shown_lines(reader.topic, letter)).encode())


def _newest(rows: Iterator[_Row], count: int) -> list[_Row]:
    """The last written, in memory no more than so many."""
    number = counting()
    newest = heapq.nlargest(count, ((row.written or "", next(number), row) for row in rows), key=lambda each: each[:2])
    return [row for _, _, row in reversed(newest)]


def _print_table(rows: Iterator[_Row]) -> int:
    """Print the rows; how many they were."""
    from rich.console import Console  # typer needs rich, so it is always there
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False)
    printed = 0
    while some := list(islice(rows, _TABLE_ROWS)):
        table = Table(box=None, pad_edge=False)
        for name in _TABLE_COLUMNS:
            table.add_column(name, no_wrap=name != "message", overflow="fold")
        for row in some:
            cells = row.cells()
            cells["written"] = cells["written"][: len("2026-11-25T14:00:00")].replace("T", " ")
            table.add_row(*(Text(cells[name]) for name in _TABLE_COLUMNS))
        console.print(table)
        printed += len(some)
    return printed


def _row(letter: DeadLetter) -> _Row:
    record = letter.record
    cause = letter.cause or Cause(style="kafka")
    return _Row(
        partition=record.source.partition,
        offset=record.source.offset,
        written=None if letter.written_ms is None else shown_time(letter.written_ms),
        stage=cause.stage,
        reason=cause.reason,
        message=cause.message,
        original=cause.source,
        group=cause.group,
        attempt=letter.attempt,
        header_style=letter.cause.style if letter.cause else None,
        key=_readable(record.key),
        value_bytes=None if record.value is None else len(record.value),
    )


def _shown_lines(topic: str, letter: DeadLetter) -> Iterator[str]:
    row, value = _row(letter), letter.record.value
    yield f"{topic}/{letter.place}, written {row.written or '-'}"
    if letter.cause is None:
        yield "no header says why it is here: another program has written it"
    else:
        facts = {"stage": row.stage, "reason": row.reason, "message": row.message, "original": row.original}
        for name, fact in (facts | {"group": row.group, "attempt": row.attempt}).items():
            yield f"{name + ':':<10}{'-' if fact is None else _one_line(str(fact))}"
    if letter.record.flaw is not None:
        yield f"{'headers:':<10}{letter.record.flaw}"
    yield f"{'key:':<10}{'none' if row.key is None else _one_line(row.key)}"
    for name, said in letter.original_headers:
        yield f"{'header:':<10}{_one_line(name)} = {_one_line(_readable(said) or '') if said is not None else 'null'}"
    if value is None:
        yield f"{'value:':<10}none"
        return
    cut = f", of which the first {_SHOWN_BYTES:,} are" if len(value) > _SHOWN_BYTES else ""
    yield f"{'value:':<10}{len(value):,} bytes{cut}"
    yield _one_line(_readable(value[:_SHOWN_BYTES]) or "")


def _readable(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="backslashreplace")


def _one_line(text: str) -> str:
    """Nothing in it moves a terminal's cursor or begins a line: anybody may have written it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
