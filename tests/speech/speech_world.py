"""A feed, an ensemble and a Kafka that are lists, around the desk of a process that may die at any moment.

The desk is driven as `pipeline.speech.worker` does on an embedded broker: of a batch first what follows is sent, then
state is kept, then the records' offsets are committed. Or, `atomic`, as it does on a Kafka with transactions: all of it
or nothing. `crash_after` says how many of these steps a process still takes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from pipeline.settings import EnsembleSettings
from pipeline.speech.desk import Desk
from pipeline.speech.outgoing import Outgoing, without_superseded
from schemas.errors import BadRecord, Reason
from schemas.headers import dead_letter_headers
from schemas.records import Headers, InputRecord, Source
from schemas.urgency import FINAL, REVISION, UTTERANCE


class Crash(Exception):
    """Raised in place of a SIGKILL."""


def make_settings(**speech: Any) -> EnsembleSettings:
    data = {"name": "talk", "models": [{"name": "m", "source": "unused"}], "speech": speech}
    return EnsembleSettings.model_validate(data)


def event(stream_id: str, utterance_id: str, revision: int, text: str, *, final: bool = False, **more: Any) -> bytes:
    place = {"stream_id": stream_id, "utterance_id": utterance_id, "revision": revision}
    return json.dumps(place | {"is_final": final, "text": text} | more).encode()


def end(stream_id: str) -> bytes:
    return json.dumps({"stream_id": stream_id, "end_of_stream": True}).encode()


Answers = Callable[[str, dict[str, bytes | None]], dict[str, Any] | BadRecord | None]


def answer(text: str, _headers: object = None) -> dict[str, Any]:
    """As a model would whose label is the text itself: so one sees of what text an annotation is."""
    return {"outputs": {"m": [{"label": text, "score": len(text) / 7}]}}


class World:
    """One partition of each topic. `answers` says what the ensemble makes of a request, None: nothing at all."""

    def __init__(self, settings: EnsembleSettings, *, answers: Answers = answer, atomic: bool = False) -> None:
        self.settings = settings
        self.now_s = 0.0
        self.logs: dict[str, list[InputRecord]] = {"speech": [], "result": [], "dead_letter": []}
        self.committed = dict.fromkeys(self.logs, 0)
        self.transcripts: list[dict[str, Any]] = []
        self.raw: list[bytes] = []
        self.requests: list[tuple[str, dict[str, bytes | None]]] = []
        self.kept: dict[bytes, bytes] = {}
        self.crash_after: int | None = None
        self._answers = answers
        self._atomic = atomic
        self.start()

    def start(self) -> None:
        """A new process: what it knows is what was kept."""
        self.crash_after = None
        self.desk = Desk(self.settings)
        self.desk.load(self.kept.items(), self.now_s)
        self._keep()

    def say(self, *values: bytes | None, key: bytes | None = b"", headers: Headers | None = None) -> None:
        """Records of the feed, by the stream that they name."""
        for value in values:
            stream = json.loads(value)["stream_id"].encode() if key == b"" and value is not None else key
            self._append("speech", stream, value, headers or [])

    def read(self, kind: str, count: int = 1_000) -> None:
        """One batch."""
        start = self.committed[kind]
        batch = self.logs[kind][start : start + count]
        outgoing: list[Outgoing] = []
        for record in batch:
            outgoing += getattr(self.desk, kind)(record, now_s=self.now_s, now_ms=self.now_s * 1e3)
        self._do(outgoing, lambda: self.committed.update({kind: start + len(batch)}))

    def tick(self, seconds: float = 0.0) -> None:
        """Time passes, with nothing to read."""
        self.now_s += seconds
        self._do(self.desk.tick(now_s=self.now_s, now_ms=self.now_s * 1e3, quiet=lambda _: True))

    def settle(self) -> None:
        """All is read, until nothing more follows from it."""
        while any(self.committed[kind] < len(log) for kind, log in self.logs.items()):
            for kind in self.logs:
                self.read(kind)

    def whole(self) -> dict[str, list[bytes]]:
        """The whole transcripts that were told of each stream."""
        found: dict[str, list[bytes]] = {}
        for value, record in zip(self.raw, self.transcripts, strict=True):
            if record["type"] == "transcript":
                found.setdefault(record["stream_id"], []).append(value)
        return found

    @property
    def letters(self) -> list[InputRecord]:
        """Bad records of the feed."""
        return [each for each in self.logs["dead_letter"] if UTTERANCE not in dict(each.headers)]

    def _do(self, outgoing: Iterable[Outgoing], commit: Callable[[], None] = lambda: None) -> None:
        sends = [partial(self._send, each) for each in without_superseded([*outgoing])]
        self._take([*sends, *self._writes(), commit])

    def _keep(self) -> None:
        self._take(self._writes())

    def _take(self, steps: Sequence[Callable[[], None]]) -> None:
        if self._atomic:
            for _ in steps:
                self._step()
        for step in steps:
            if not self._atomic:
                self._step()
            step()

    def _writes(self) -> list[Callable[[], None]]:
        return [partial(self._write, each) for each in self.desk.writes()]

    def _write(self, write: Outgoing) -> None:
        assert write.record.key is not None
        if write.record.value is None:
            self.kept.pop(write.record.key, None)
        else:
            self.kept[write.record.key] = write.record.value

    def _step(self) -> None:
        if self.crash_after is not None:
            if not self.crash_after:
                raise Crash
            self.crash_after -= 1

    def _append(self, kind: str, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        log = self.logs[kind]
        log.append(InputRecord(Source(f"talk.{kind}", 0, len(log)), key, value, headers))

    def _send(self, outgoing: Outgoing) -> None:
        record = outgoing.record
        names = self.settings.topic_names
        if record.topic == names.requests:
            assert record.value is not None
            text, headers = json.loads(record.value)["text"], dict(record.headers)
            assert {UTTERANCE, REVISION, FINAL} <= headers.keys()
            self.requests.append((text, headers))
            match self._answers(text, headers):
                case BadRecord() as err:
                    said = dead_letter_headers(err, source=Source(names.requests, 0, 0), stage="encode", group="g")
                    self._append("dead_letter", record.key, record.value, [*record.headers, *said])
                case dict() as result:
                    self._append("result", record.key, json.dumps(result).encode(), record.headers)
        elif record.topic == names.dead_letters:
            self._append("dead_letter", record.key, record.value, record.headers)
        else:
            assert record.topic == "talk.transcripts"
            assert record.value is not None
            self.raw.append(record.value)
            self.transcripts.append(json.loads(record.value))


def failed(message: str = "boom") -> BadRecord:
    return BadRecord(Reason.ENGINE_FAILED, message)
