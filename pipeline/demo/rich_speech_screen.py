"""Speech on a terminal: a table with a row for each stream, that changes where it stands."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.demo.rich_screen import RichScreen
from pipeline.demo.speech_ledger import SpeechSummary
from pipeline.demo.speech_screen import Heard, summary_rows

# Rows of a table that is drawn anew several times a second.
_MOST_STREAMS = 12
_DRAWN_PER_S = 8
# On a terminal of fewer columns what the models say is below the transcript and not beside it.
_WIDE_COLUMNS = 72
# Of what was said in a stream before.
_SAID_CHARACTERS = 400


def rich_speech_screen() -> RichSpeechScreen | None:
    """None where the terminal can't move its cursor."""
    console = Console(highlight=False, markup=False, emoji=False)
    return None if console.is_dumb_terminal else RichSpeechScreen(console)


class RichSpeechScreen(RichScreen):
    """The first streams; what is final is bright, revised words are marked."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._said: dict[str, Text] = {}
        self._now: dict[str, Heard] = {}
        self._others: set[str] = set()
        self._live: Live | None = None

    def heard(self, heard: Heard) -> None:
        if heard.stream_id not in self._now and len(self._now) >= _MOST_STREAMS:
            self._others.add(heard.stream_id)
            return
        self._now[heard.stream_id] = heard
        if heard.is_final:
            said = self._said.setdefault(heard.stream_id, Text())
            said.append(" ".join(word for word, _ in heard.words) + " ")
            if len(said) > _SAID_CHARACTERS:
                self._said[heard.stream_id] = said[len(said) - _SAID_CHARACTERS :]
        if self._live is None:
            self._still()
            self._live = self._alive.enter_context(
                Live(console=self._console, get_renderable=self._table, refresh_per_second=_DRAWN_PER_S)
            )

    def speech_summary(self, summary: SpeechSummary) -> None:
        self._still()
        self._live = None
        headline = Table.grid(padding=(0, 2))
        headline.add_column(style="bold")
        for row in summary_rows(summary):
            headline.add_row(*row)
        self._console.print()
        self._console.print(headline)
        self._console.print(summary.verdict, style="bold green" if summary.good else "bold red")

    def _table(self) -> Table:
        is_wide = self._console.width >= _WIDE_COLUMNS
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
        table.add_column("stream", no_wrap=True, style="bold")
        table.add_column("transcript", ratio=1)
        if is_wide:
            table.add_column("models", style="cyan", no_wrap=True, max_width=44)
        table.add_column("ms", justify="right", no_wrap=True)
        for stream, heard in self._now.items():
            text = self._said.get(stream, Text()).copy()
            if not heard.is_final:
                for word, is_revised in heard.words:
                    text.append(word, "bold yellow" if is_revised else "dim")
                    text.append(" ")
            outputs = Text(heard.outputs, "cyan")
            told = [text, outputs] if is_wide else [Text("\n").join([text, outputs])]
            table.add_row(stream, *told, f"{heard.ms:.0f}")
        if self._others:
            table.caption = f"and {len(self._others)} other streams"
        return table
