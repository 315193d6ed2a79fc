"""From a source to events: what is said, in which revision, and what the thread that hears tells of itself."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pipeline.demo.recorded_speech import Said
from pipeline.errors import UserError
from pipeline.listen import microphone
from pipeline.listen.audio import Heard
from pipeline.listen.hearing import Behind, Ended, Hearing
from pipeline.listen.microphone import Microphone
from pipeline.listen.recognizers.recognizer import Hypothesis
from pipeline.listen.utterance_events import UtteranceEvents
from schemas.speech import EndOfStream, SpeechEvent
from tests.eventually import eventually
from tests.listen.sounds import tone


def test_revisions_count_up_and_what_is_unchanged_is_not_said_again() -> None:
    events = UtteranceEvents("call", max_utterances=10)
    said: list[Said] = []
    for text, is_final in (
        ("", False),
        ("good", False),
        (" good ", False),
        ("good morning", False),
        ("good morning", True),
        ("", True),  # a noise
        ("hm", False),
        ("", True),  # it was one
    ):
        said += events.heard(Hypothesis(text, is_final, 100, 900), now_ms=7)
    found = [each.event for each in said]
    assert all(isinstance(each, SpeechEvent) for each in found)
    assert [(each.utterance_id, each.revision, each.is_final, each.text) for each in found] == [
        ("call/0", 0, False, "good"),
        ("call/0", 1, False, "good morning"),
        ("call/0", 2, True, "good morning"),
        ("call/1", 0, False, "hm"),
        ("call/1", 1, True, ""),
    ]
    assert (found[0].stream_id, found[0].start_ms, found[0].end_ms, found[0].emitted_ms) == ("call", 100, 900, 7)
    assert events.last == said[-1]
    assert [each.event for each in events.end(9)] == [EndOfStream(end_of_stream=True, stream_id="call", emitted_ms=9)]
    assert [*events.end(9)] == []


def test_a_stream_that_is_full_is_followed_by_another() -> None:
    events = UtteranceEvents("call", max_utterances=2)
    said = [each for number in range(5) for each in events.heard(Hypothesis(f"{number}", True), now_ms=number)]
    assert events.streams == ["call", "call-1", "call-2"]
    assert [(each.stream_id, isinstance(each.event, EndOfStream)) for each in said] == [
        *[("call", False)] * 2,
        ("call", True),
        *[("call-1", False)] * 2,
        ("call-1", True),
        ("call-2", False),
    ]


class Blocks:
    """A source of blocks that are so much behind."""

    name = "blocks"

    def __init__(self, *behind_s: float, endless: bool = False) -> None:
        self._behind_s = behind_s
        self._endless = endless

    def blocks(self, stopping: threading.Event) -> Iterator[Heard]:
        for each in self._behind_s:
            yield Heard(tone(0.1), each)
        if self._endless:
            stopping.wait(30)


class Counts:
    """A recognizer that tells how many blocks it has heard."""

    def __init__(self, error: Exception | None = None) -> None:
        self._count = 0
        self._error = error

    def accept(self, samples: np.ndarray) -> list[Hypothesis]:
        self._count += 1
        if self._error is not None:
            raise self._error
        return [Hypothesis(f"{self._count}", False)]

    def finish(self) -> list[Hypothesis]:
        return [Hypothesis("all", True)]


def all_of(hearing: Hearing) -> list[Any]:
    found: list[Any] = []
    eventually(lambda: found.extend(hearing.found()) or (bool(found) and isinstance(found[-1], Ended)))
    return found


def test_that_a_recognizer_is_behind_is_told_once() -> None:
    hearing = Hearing(Blocks(0.0, 0.9, 1.5, 2.5), Counts())
    hearing.start()
    partials = [Hypothesis(f"{number}", False) for number in (1, 2, 3, 4)]
    assert all_of(hearing) == [*partials[:2], Behind(1.5), *partials[2:], Hypothesis("all", True), Ended()]


def test_stopped_it_ends_what_was_said() -> None:
    hearing = Hearing(Blocks(0.0, endless=True), Counts())
    hearing.start()
    hearing.stop()
    assert all_of(hearing) == [Hypothesis("1", False), Hypothesis("all", True), Ended()]


def test_a_recognizer_that_fails_ends_it() -> None:
    error = RuntimeError("no such phone")
    hearing = Hearing(Blocks(0.0), Counts(error))
    hearing.start()
    assert all_of(hearing) == [Ended(error)]


class PortAudioError(Exception):
    pass


class FakeSound(ModuleType):
    """sounddevice with a microphone of one rate, into which 0.2 s are said."""

    PortAudioError = PortAudioError

    def __init__(self, rate: int | None) -> None:
        super().__init__("sounddevice")
        self._rate = rate

    def check_input_settings(self, *, samplerate: int, channels: int, dtype: str) -> None:
        if samplerate != self._rate:
            raise PortAudioError("Invalid sample rate")

    def query_devices(self, *, kind: str) -> dict[str, float]:
        if self._rate is None:
            raise PortAudioError("Error querying device -1")
        return {"default_samplerate": float(self._rate)}

    def RawInputStream(self, *, samplerate: int, blocksize: int, callback: Any, **_: Any) -> Any:  # noqa: N802
        for block in np.split(tone(0.2, rate=samplerate), 2):
            assert len(block) == blocksize
            callback(memoryview(block.tobytes()), blocksize, None, None)
        return threading.Lock()  # a context


@pytest.fixture
def sound(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> FakeSound:
    fake = FakeSound(request.param)
    monkeypatch.setattr(microphone, "_sounddevice", lambda: fake)
    return fake


@pytest.mark.parametrize("sound", [16_000, 44_100], indirect=True)
def test_a_microphone_is_heard_at_16_khz(sound: FakeSound) -> None:
    stopping = threading.Event()
    blocks = Microphone().blocks(stopping)
    said = np.concatenate([next(blocks).samples, next(blocks).samples])
    stopping.set()
    assert [*blocks] == []
    difference = said.astype(float) - tone(0.2)[: len(said)]
    assert len(said) >= 3_180
    assert np.abs(difference[300:]).max() < 100


@pytest.mark.parametrize("sound", [16_000], indirect=True)
def test_what_nobody_has_room_for_is_counted(sound: FakeSound) -> None:
    heard = Microphone()
    heard._waiting = queue.Queue(1)
    stopping = threading.Event()
    assert len(next(heard.blocks(stopping)).samples) == 1_600
    assert heard.lost_s == pytest.approx(0.1)


@pytest.mark.parametrize("sound", [None], indirect=True)
def test_no_microphone_is_a_line(sound: FakeSound) -> None:
    with pytest.raises(UserError, match=r"^listen: no microphone is found \(Error querying device -1\): connect one"):
        Microphone()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ImportError("no"), "the microphone needs sounddevice: pip install sounddevice"),
        (OSError("PortAudio library not found"), r"needs PortAudio \(PortAudio library not found\); on Debian"),
    ],
)
def test_what_a_microphone_needs_is_told(monkeypatch: pytest.MonkeyPatch, error: Exception, says: str) -> None:
    class Finder:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "sounddevice":
                raise error

    monkeypatch.setattr("sys.meta_path", [Finder()])
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    with pytest.raises(UserError, match=says):
        Microphone()
