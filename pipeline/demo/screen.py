"""What a person sees of the demo: plain lines, or, on a terminal with rich, a progress bar and tables.

With `--json` the plain lines go to stderr, without predictions and summary: stdout has the object alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self, TextIO

import msgspec

from pipeline.demo.summary import StageTime, Summary
from schemas.results import Label

# A result's outputs by model, in either shape.
Outputs = Mapping[str, Sequence[Label | float]]

COLUMNS = ("", "queue ms", "compute ms", "in all ms", "share", "peak MiB")
_PLAIN_WIDTH = 100
# Plain lines are read later, in a log: one now and then says that it goes on.
_PLAIN_PROGRESS_S = 5.0


class Screen(Protocol):
    """Where the demo tells what it does. Opened and closed around all of it."""

    def say(self, line: str) -> None:
        """A step is done."""
        ...

    def wait_for(self, what: str) -> None:
        """A step takes its time; called again as that goes on, ended by `say`."""
        ...

    def warn(self, line: str, details: Sequence[str] = ()) -> None:
        """Something went wrong."""
        ...

    def progress(self, done: int, count: int) -> None:
        """So many are answered."""
        ...

    def prediction(self, text: str, outputs: Outputs) -> None:
        """One result."""
        ...

    def summary(self, summary: Summary) -> None:
        """The end."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_screen(*, as_json: bool) -> Screen:
    """What fits standard output."""
    if as_json:
        return PlainScreen(sys.stderr, with_results=False)
    if sys.stdout.isatty():
        try:
            from pipeline.demo.rich_screen import rich_screen
        except ImportError:
            return PlainScreen(sys.stdout)
        return rich_screen() or PlainScreen(sys.stdout)
    return PlainScreen(sys.stdout)


class PlainScreen:
    """Lines."""

    def __init__(self, out: TextIO, *, with_results: bool = True) -> None:
        self._out = out
        self._with_results = with_results
        self._waits_for = ""
        self._progress_s = time.monotonic()

    def say(self, line: str) -> None:
        print(line, file=self._out, flush=True)
        self._progress_s = time.monotonic()

    def wait_for(self, what: str) -> None:
        if what != self._waits_for:
            self._waits_for = what
            self.say(f"{what} ...")

    def warn(self, line: str, details: Sequence[str] = ()) -> None:
        for each in (f"penstock: {line}", *(f"    {detail}" for detail in details)):
            print(each, file=sys.stderr, flush=True)

    def progress(self, done: int, count: int) -> None:
        if time.monotonic() - self._progress_s >= _PLAIN_PROGRESS_S:
            self.say(f"{done:,} of {count:,} answered")

    def prediction(self, text: str, outputs: Outputs) -> None:
        if self._with_results:
            clean = printable(text)
            self.say(f"  {clean if len(clean) <= _PLAIN_WIDTH else clean[: _PLAIN_WIDTH - 3] + '...'}")
            self.say(f"    {outputs_line(outputs)}")

    def summary(self, summary: Summary) -> None:
        if not self._with_results:
            return
        self.say("")
        for name, value in headline_rows(summary):
            self.say(f"{name:<12}{value}")
        self.say("")
        for row in (COLUMNS, *time_rows(summary)):
            self.say(f"{row[0]:<12}{''.join(f'{cell:>12}' for cell in row[1:])}".rstrip())
        self.say("")
        self.say(summary.verdict)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def headline_rows(summary: Summary) -> list[tuple[str, str]]:
    """Name and value of what was measured of the whole."""
    rows = [
        ("texts", f"{summary.results:,} of {summary.requests:,} in {summary.seconds:,.1f} s"),
        ("throughput", f"{summary.texts_per_s:,.0f} texts/s, {summary.tokens_per_s:,.0f} real tokens/s"),
    ]
    if summary.padding_share is not None:
        rows.append(("padding", f"{summary.padding_share:.1%} of the tokens computed"))
    if summary.mean_batch_texts is not None:
        rows.append(("mean batch", f"{summary.mean_batch_texts:,.1f} texts"))
    if (latency := summary.latency_ms) is not None:
        told = "   ".join(f"{name} {value:,.0f} ms" for name, value in msgspec.structs.asdict(latency).items())
        rows.append(("latency", f"{told}   topic to topic"))
    return rows


def time_rows(summary: Summary) -> list[tuple[str, ...]]:
    """The table of where the time went, and of what memory each process took."""
    totals = {
        name: spent.queue + spent.compute if isinstance(spent, StageTime) else spent
        for name, spent in summary.time_ms.items()
    }
    whole = sum(totals.values()) or 1.0
    rows: list[tuple[str, ...]] = []
    for name in [*summary.time_ms, *(other for other in summary.memory_mib if other not in summary.time_ms)]:
        spent, memory = summary.time_ms.get(name), summary.memory_mib.get(name)
        parts = (f"{spent.queue:,.1f}", f"{spent.compute:,.1f}") if isinstance(spent, StageTime) else ("", "")
        in_all = ("", "") if spent is None else (f"{totals[name]:,.1f}", f"{totals[name] / whole:.1%}")
        rows.append((name, *parts, *in_all, "" if memory is None else f"{memory.peak:,.0f}"))
    return rows


def outputs_line(outputs: Outputs) -> str:
    """Each model's best labels, or its vector's first numbers."""
    # Labels first: they are what a reader looks for, and short.
    by_length = sorted(outputs.items(), key=lambda output: len(output[1]))
    return "   ".join(f"{name} {_output(values)}" for name, values in by_length)


def _output(values: Sequence[Label | float]) -> str:
    labels = [f"{each.label} {each.score:.2f}" for each in values if isinstance(each, Label)]
    if labels:
        return printable(", ".join(labels[:2]))
    numbers = " ".join(f"{each:.3f}" for each in values[:3] if not isinstance(each, Label))
    return f"[{numbers} ... {len(values)} numbers]"


def printable(text: str) -> str:
    """Nothing that a terminal would obey."""
    return "".join(each if each.isprintable() else " " for each in text)
