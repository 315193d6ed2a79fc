"""The demo on a terminal: a spinner while something is awaited, a bar below the predictions, tables at the end.

Needs rich, which comes with typer and with the extra `demo`; without it the screen is plain lines.
"""

from __future__ import annotations

import sys
import termios
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.status import Status
from rich.table import Table
from rich.text import Text

from pipeline.demo.screen import COLUMNS, Outputs, headline_rows, outputs_line, printable, time_rows
from pipeline.demo.summary import Summary


def rich_screen() -> RichScreen | None:
    """None where the terminal can't move its cursor."""
    console = Console(highlight=False, markup=False, emoji=False)
    return None if console.is_dumb_terminal else RichScreen(console)


class RichScreen:
    """A spinner while something is awaited, then a bar below the predictions, then tables."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._alive = ExitStack()
        self._terminal = ExitStack()
        self._spinner: AbstractContextManager[object] | None = None
        self._bar: tuple[Progress, TaskID] | None = None

    def say(self, line: str) -> None:
        self._still()
        self._console.print(line)

    def wait_for(self, what: str) -> None:
        if isinstance(self._spinner, Status):
            self._spinner.update(what)
        else:
            self._still()
            self._spinner = self._alive.enter_context(self._console.status(what))

    def warn(self, line: str, details: Sequence[str] = ()) -> None:
        self._console.print(f"penstock: {line}", style="bold red")
        for detail in details:
            self._console.print(f"    {detail}", style="red")

    def progress(self, done: int, count: int) -> None:
        if self._bar is None:
            self._still()
            bar = Progress(
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("texts"),
                TimeElapsedColumn(),
                console=self._console,
                expand=True,
            )
            self._bar = self._alive.enter_context(bar), bar.add_task("", total=count)
        bar, task = self._bar
        bar.update(task, completed=done)

    def prediction(self, text: str, outputs: Outputs) -> None:
        for line, style in ((f"  {printable(text)}", ""), (f"    {outputs_line(outputs)}", "cyan")):
            self._console.print(Text(line, style), no_wrap=True, overflow="ellipsis")

    def summary(self, summary: Summary) -> None:
        self._still()
        headline = Table.grid(padding=(0, 2))
        headline.add_column(style="bold")
        for row in headline_rows(summary):
            headline.add_row(*row)
        times = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        times.add_column(COLUMNS[0], style="bold")
        for name in COLUMNS[1:]:
            times.add_column(name, justify="right")
        for cells in time_rows(summary):
            times.add_row(*cells)
        self._console.print()
        self._console.print(headline)
        self._console.print(times)
        self._console.print(summary.verdict, style="bold green" if summary.good else "bold red")

    def __enter__(self) -> Self:
        self._terminal.enter_context(_control_characters_unseen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._still()
        self._terminal.close()

    def _still(self) -> None:
        """End what moves, and give the cursor back."""
        self._spinner = self._bar = None
        self._alive.close()


@contextmanager
def _control_characters_unseen() -> Iterator[None]:
    """A ^C behind the bar would begin another line, and leave a bar behind that nobody erases."""
    if not sys.stdin.isatty():
        yield
        return
    attributes = termios.tcgetattr(sys.stdin)
    unseen = [*attributes]
    unseen[3] &= ~termios.ECHOCTL
    termios.tcsetattr(sys.stdin, termios.TCSANOW, unseen)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, attributes)
