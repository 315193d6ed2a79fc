"""Time goes by while somebody always speaks: the app's batches, with a clock of the test's own and no broker."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from pipeline.speech.app import TranscriptsApp
from pipeline.speech.desk import Outgoing
from tests.speech.speech_world import end, event, make_settings

TOPIC = "talk.speech"


class Offline:
    """The app with a consumer that is told where it stands. Partition 0 is this member's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **speech: Any) -> None:
        self.app = TranscriptsApp(make_settings(**speech), instance=None, embedded=False, stopped=asyncio.Event())
        self.desk = self.app.desk
        self.sent: list[Outgoing] = []
        self.offset = 0
        self.behind = 0
        place = TP(TOPIC, 0)

        async def position(_place: object) -> int:
            return self.offset

        async def send(outgoing: Sequence[Outgoing]) -> None:
            self.sent += outgoing

        async def keep(_writes: object) -> None:
            return None

        consumer = SimpleNamespace(
            assignment=lambda: {place}, highwater=lambda _: self.offset + self.behind, position=position
        )
        monkeypatch.setattr(self.app, "_app", SimpleNamespace(consumer=consumer))
        monkeypatch.setattr(self.app, "_send", send)
        monkeypatch.setattr(self.app, "_keep", keep)

    def read(self, stream_id: str, value: bytes) -> tuple[Any, Any]:
        """As an agent reads it: counted until it is handled."""
        message = SimpleNamespace(
            topic=TOPIC, partition=0, offset=self.offset, key=stream_id.encode(), value=value, headers=[]
        )
        self.offset += 1
        self.app._unheard[0] += 1
        return "speech", SimpleNamespace(message=message)

    def do(self, now_s: float, *batch: tuple[Any, Any]) -> None:
        asyncio.run(self.app._do([*batch], now_s=now_s, now_ms=now_s * 1e3))


def test_a_stream_ends_by_silence_while_another_one_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    offline = Offline(monkeypatch, silence_ms=1_000, remember_ms=2_000, resend_after_ms=1_000)
    offline.do(0, offline.read("gone", event("gone", "0", 0, "hm")), offline.read("over", end("over")))
    for tenth in range(1, 31):
        offline.do(tenth / 10, offline.read("busy", event("busy", "0", tenth, f"word {tenth}")))
    streams = offline.desk.streams
    assert (streams["gone"].head.ended_by, streams["busy"].head.ended_by) == ("silence", None)
    assert "over" not in streams, "forgotten"
    assert offline.desk.counts["asked_again"] == 1


def test_silence_is_no_silence_while_records_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    offline = Offline(monkeypatch, silence_ms=1_000)
    offline.do(0, offline.read("a", event("a", "0", 0, "hm")))
    waits = offline.read("a", event("a", "0", 1, "hm hm"))
    offline.do(5)
    offline.do(6, waits)
    offline.behind = 1
    offline.do(12)
    assert offline.desk.streams["a"].head.ended_by is None
    offline.behind = 0
    offline.do(13)
    assert offline.desk.streams["a"].head.ended_by == "silence"
