"""What was said and what came of it: the books of a speech feed, for the demo and the benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import numpy as np

from pipeline.demo.summary import Percentiles
from schemas.speech import SpeechEvent

# An utterance and its revision. Utterances' ids are unique over all streams here.
Name = tuple[str, int]


class SpeechSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Latency, in milliseconds, is from the produce call of an event to the arrival of its annotated record.

    `superseded` are partials that were never annotated, since a newer one came; `stale` are records that came after a
    newer one of their utterance, or with another text than their revision's; `transcripts_right` are those with all of
    the stream's finals, in order.
    """

    streams: int
    seconds: float
    events_per_s: float
    partials: int
    superseded: int
    finals: int
    finals_lost: int
    stale: int
    repeated: int
    errors: list[str]
    transcripts_right: int
    partial_ms: Percentiles | None
    final_ms: Percentiles | None
    stopped: str | None = None
    """Why it ended before all had come, if it did."""

    @property
    def good(self) -> bool:
        """Whether all is as promised."""
        right = self.transcripts_right == self.streams and self.stopped is None
        return right and not (self.finals_lost or self.stale or self.errors)

    @property
    def verdict(self) -> str:
        """In a sentence."""
        if self.good:
            return "Every final is annotated, nothing stale was told, and each transcript has all that was said."
        if self.stopped is not None:
            return f"Stopped before all had come: {self.stopped}."
        wrong = {
            "finals not annotated": self.finals_lost,
            "stale records": self.stale,
            "errors": len(self.errors),
            "transcripts not right": self.streams - self.transcripts_right,
        }
        return ", ".join(f"{count} {what}" for what, count in wrong.items() if count)


class SpeechLedger:
    """Not thread-safe."""

    def __init__(self) -> None:
        # Of which it keeps the books.
        self.streams: set[str] = set()
        self.transcripts: dict[str, list[dict[str, Any]]] = {}
        self._sent: dict[Name, tuple[float, SpeechEvent]] = {}
        self._annotated: dict[Name, float] = {}
        self._newest: dict[str, int] = {}
        self._stale = self._repeated = 0
        self._errors: list[str] = []
        self._seconds = 0.0

    def said(self, event: SpeechEvent, now_s: float) -> None:
        """It was sent."""
        self._sent[event.utterance_id, event.revision] = now_s, event
        self._seconds = now_s - next(iter(self._sent.values()))[0]

    def heard(self, record: Mapping[str, Any], now_s: float) -> float | None:
        """A record of the transcripts' topic; of an annotated utterance how long it took, in milliseconds."""
        if record["type"] == "transcript":
            self.transcripts.setdefault(record["stream_id"], []).append(dict(record))
            return None
        name = record["utterance_id"], record["revision"]
        sent_s, event = self._sent[name]
        if "error" in record:
            self._errors.append(record["error"])
        self._stale += record["text"] != event.text or record["revision"] < self._newest.get(name[0], -1)
        self._newest[name[0]] = record["revision"]
        self._repeated += name in self._annotated
        self._annotated.setdefault(name, now_s)
        return (now_s - sent_s) * 1e3

    def summary(self) -> SpeechSummary:
        """So far."""
        finals = {name for name, (_, event) in self._sent.items() if event.is_final}
        partials = self._sent.keys() - finals
        said: dict[str, list[tuple[str, str]]] = {}
        for _, event in self._sent.values():
            texts = said.setdefault(event.stream_id, [])
            if event.is_final:
                texts.append((event.utterance_id, event.text))
        told = {
            stream: [(each["utterance_id"], each["text"]) for part in parts for each in part["utterances"]]
            for stream, parts in self.transcripts.items()
        }
        return SpeechSummary(
            streams=len(said),
            seconds=round(self._seconds, 1),
            events_per_s=round(len(self._sent) / self._seconds, 1) if self._seconds else 0.0,
            partials=len(partials),
            superseded=len(partials - self._annotated.keys()),
            finals=len(finals),
            finals_lost=len(finals - self._annotated.keys()),
            stale=self._stale,
            repeated=self._repeated,
            errors=sorted(set(self._errors)),
            transcripts_right=sum(told.get(stream) == texts for stream, texts in said.items()),
            partial_ms=self._percentiles(partials),
            final_ms=self._percentiles(finals),
        )

    def _percentiles(self, names: Iterable[Name]) -> Percentiles | None:
        ms = [(self._annotated[name] - self._sent[name][0]) * 1e3 for name in names if name in self._annotated]
        if not ms:
            return None
        return Percentiles(*(round(float(each), 1) for each in np.percentile(ms, [50, 95, 99])))
