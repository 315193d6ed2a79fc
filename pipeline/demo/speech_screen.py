"""What a person sees of speech: transcripts that grow, revised words marked, what the models say beside them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, TextIO

import msgspec

from pipeline.demo.screen import PlainScreen, Screen, outputs_line, printable
from pipeline.demo.speech_ledger import SpeechSummary
from schemas.results import Label

# A word, and whether the revision before had another one there.
Words = list[tuple[str, bool]]


class Heard(NamedTuple):
    """An annotated utterance as it is shown."""

    stream_id: str
    utterance_id: str
    is_final: bool
    words: Words
    outputs: str
    ms: float


class SpeechScreen(Screen, Protocol):
    """A screen that shows speech too."""

    def heard(self, heard: Heard) -> None:
        """An utterance as it is now."""
        ...

    def speech_summary(self, summary: SpeechSummary) -> None:
        """The end."""
        ...


class Revisions:
    """Remembers what each utterance said, to mark what is revised."""

    def __init__(self) -> None:
        self._before: dict[str, list[str]] = {}

    def heard(self, record: Mapping[str, Any], ms: float) -> Heard:
        """A record of an annotated utterance."""
        words = printable(record["text"]).split()
        utterance = record["utterance_id"]
        marked = revised(self._before.get(utterance, []), words)
        self._before[utterance] = words
        if record["is_final"]:
            del self._before[utterance]
        told = record.get("error") or outputs_line(_outputs(record.get("outputs", {})))
        return Heard(record["stream_id"], utterance, record["is_final"], marked, told, ms)


def revised(before: Sequence[str], now: Sequence[str]) -> Words:
    """The words of `now`; marked are those in place of others. What is added at the end is new, and not revised."""
    marked: Words = []
    for kind, start, end, new_start, new_end in SequenceMatcher(None, before, now, autojunk=False).get_opcodes():
        # Recognizers end each hypothesis with a full stop: what grows is no revision of its last word.
        grown = kind == "replace" and end == len(before) and _is_begun(before[start:end], now[new_start:new_end])
        is_revised = kind in ("replace", "insert") and start < len(before) and not grown
        marked += [(word, is_revised) for word in now[new_start:new_end]]
    return marked


def _is_begun(before: Sequence[str], now: Sequence[str]) -> bool:
    return len(before) == 1 and now[0].rstrip(".,?!").startswith(before[0].rstrip(".,?!"))


def _outputs(outputs: Mapping[str, Any]) -> dict[str, Sequence[Label | float]]:
    """Those that fit a line."""
    found: dict[str, Sequence[Label | float]] = {}
    for name, output in outputs.items():
        if isinstance(output, list) and output and all(isinstance(each, dict) and "label" in each for each in output):
            found[name] = msgspec.convert(output, list[Label])
        elif isinstance(output, list) and output and isinstance(output[0], float):
            found[name] = output
    return found


def summary_rows(summary: SpeechSummary) -> list[tuple[str, str]]:
    """Name and value of what was measured."""
    share = summary.superseded / summary.partials if summary.partials else 0.0
    streams = f"{summary.streams:,} stream{'' if summary.streams == 1 else 's'}"
    rows = [
        ("speech", f"{streams}, {summary.events_per_s:,.0f} events/s for {summary.seconds:,.0f} s"),
        ("partials", f"{summary.partials:,}, of which {share:.1%} were superseded while they waited"),
        ("finals", f"{summary.finals:,}, {summary.finals_lost:,} lost"),
    ]
    for name, percentiles in (("to partial", summary.partial_ms), ("to final", summary.final_ms)):
        if percentiles is not None:
            told = "   ".join(f"{each} {value:,.0f} ms" for each, value in msgspec.structs.asdict(percentiles).items())
            rows.append((name, f"{told}   from the event to the annotated transcript"))
    return rows


class PlainSpeechScreen(PlainScreen):
    """A line for each annotated utterance, revised words between asterisks."""

    def __init__(self, out: TextIO, *, with_results: bool = True) -> None:
        super().__init__(out, with_results=with_results)
        self._shows = with_results

    def heard(self, heard: Heard) -> None:
        if self._shows:
            mark = "final" if heard.is_final else ""
            self.say(
                f"{heard.utterance_id:<14} {mark:<6}{starred(heard.words)}   [{heard.outputs}]   {heard.ms:.0f} ms"
            )

    def speech_summary(self, summary: SpeechSummary) -> None:
        if not self._shows:
            return
        self.say("")
        for name, value in summary_rows(summary):
            self.say(f"{name:<12}{value}")
        self.say("")
        self.say(summary.verdict)


def starred(words: Words) -> str:
    """Runs of revised words between asterisks."""
    told: list[str] = []
    ends = [(("", False), words[0]), *pairwise(words), (words[-1], ("", False))] if words else []
    for (before, (word, is_revised)), (_, after) in pairwise(ends):
        told.append(f"{'*' if is_revised and not before[1] else ''}{word}{'*' if is_revised and not after[1] else ''}")
    return " ".join(told)


def open_speech_screen(*, as_json: bool) -> SpeechScreen:
    """What fits standard output."""
    if as_json:
        return PlainSpeechScreen(sys.stderr, with_results=False)
    if sys.stdout.isatty():
        try:
            from pipeline.demo.rich_speech_screen import rich_speech_screen
        except ImportError:
            return PlainSpeechScreen(sys.stdout)
        return rich_speech_screen() or PlainSpeechScreen(sys.stdout)
    return PlainSpeechScreen(sys.stdout)
