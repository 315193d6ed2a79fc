"""The speech demo: what it says aloud, how its books are kept, what it marks."""

from __future__ import annotations

import io
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from rich.console import Console

from pipeline.demo import speech_run
from pipeline.demo.processes import DemoStopped
from pipeline.demo.recorded_speech import read_recording, speech
from pipeline.demo.rich_speech_screen import RichSpeechScreen
from pipeline.demo.speech_ledger import SpeechLedger
from pipeline.demo.speech_run import announced
from pipeline.demo.speech_screen import Heard, Revisions, revised, starred
from schemas.speech import EndOfStream, SpeechEvent


def test_each_speaker_says_whole_utterances_and_then_ends() -> None:
    plan = speech(read_recording(), speakers=7, seconds=12)
    assert [said.due_ms for said in plan] == sorted(said.due_ms for said in plan)
    for number in range(7):
        stream = f"speaker-{number}"
        events = [said.event for said in plan if said.stream_id == stream]
        assert isinstance(events[-1], EndOfStream)
        spoken = [event for event in events if isinstance(event, SpeechEvent)]
        assert len(spoken) == len(events) - 1
        utterances = list(dict.fromkeys(event.utterance_id for event in spoken))
        assert len(utterances) >= 2
        for utterance in utterances:
            own = [event for event in spoken if event.utterance_id == utterance]
            assert [event.revision for event in own] == list(range(len(own)))
            assert [event.is_final for event in own] == [False] * (len(own) - 1) + [True]


@pytest.mark.parametrize("width", [50, 100])
def test_on_a_narrow_terminal_what_models_say_is_below(width: int) -> None:
    out = io.StringIO()
    screen = RichSpeechScreen(Console(file=out, width=width, force_terminal=True, color_system=None))
    words = [(word, False) for word in ["Had", "he", "married", "a", "more", "amiable", "woman."]]
    screen.heard(Heard("speaker-3", "0", False, words, "sentiment NEGATIVE 0.61", 21.4))
    screen.__exit__(None, None, None)
    lines = out.getvalue().splitlines()
    assert any("Had he married a more" in line for line in lines)
    assert any("21" in line and "speaker-3" in line for line in lines)
    (told,) = {line.strip() for line in lines if "sentiment NEGATIVE 0.61" in line}
    assert told.startswith("speaker-3   Had he married") == (width == 100)


def test_one_person_is_no_people() -> None:
    assert announced(1, 12.4, 1.0) == "1 person reads aloud for 12 s, x1\n"
    assert announced(2, 12.4, 0.5) == "2 people read aloud for 12 s, x0.5\n"


def test_a_speaker_of_no_seconds_says_one_utterance() -> None:
    events = [said.event for said in speech(read_recording(), speakers=1, seconds=0)]
    assert len({event.utterance_id for event in events if isinstance(event, SpeechEvent)}) == 1


def test_no_seconds_are_not_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def stop(_: object, *, seconds: float, **__: object) -> None:
        asked.append(seconds)
        raise DemoStopped(0, "")

    def run(show: Callable[[Any], None], **_: object) -> int:
        with pytest.raises(DemoStopped):
            show(SimpleNamespace(start=lambda *_, **__: None))
        return 0

    monkeypatch.setattr(speech_run, "speech", stop)
    monkeypatch.setattr(speech_run, "run_speech_session", run)
    for seconds in (0.0, None):
        speech_run.run_speech_demo(seconds=seconds)
    assert asked == [0.0, 15.0]


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ("", "And this", "And this"),
        ("And this", "And Mr. John.", "And *Mr. John.*"),
        ("And Mr. John.", "And Mr. John Dashwood", "And Mr. John Dashwood"),
        ("He was...", "He was not.", "He was not."),
        ("a b c d", "a x c d e", "a *x* c d e"),
        ("a b c", "a c", "a c"),
        ("a c", "a b c", "a *b* c"),
        ("a", "", ""),
    ],
)
def test_words_in_place_of_others_are_marked_and_not_what_is_added(before: str, now: str, told: str) -> None:
    assert starred(revised(before.split(), now.split())) == told


def event(revision: int, text: str, *, final: bool = False) -> SpeechEvent:
    return SpeechEvent(stream_id="s", utterance_id="s/0", revision=revision, is_final=final, text=text)


def record(revision: int, text: str, **more: Any) -> dict[str, Any]:
    return {
        "type": "utterance",
        "stream_id": "s",
        "utterance_id": "s/0",
        "revision": revision,
        "is_final": False,
        "text": text,
    } | more


def transcript(*texts: str) -> dict[str, Any]:
    utterances = [{"utterance_id": "s/0", "text": text} for text in texts]
    return {"type": "transcript", "stream_id": "s", "utterances": utterances}


def test_the_books_of_a_good_feed() -> None:
    ledger = SpeechLedger()
    for number, text in enumerate(("a", "b", "c")):
        ledger.said(event(number, text, final=number == 2), float(number))
    assert ledger.heard(record(0, "a"), 0.25) == 250
    assert ledger.heard(record(2, "c"), 2.5) == 500
    assert ledger.heard(transcript("c"), 3.0) is None
    summary = ledger.summary()
    assert summary.good
    assert (summary.partials, summary.superseded, summary.finals, summary.finals_lost) == (2, 1, 1, 0)
    assert summary.final_ms is not None
    assert summary.final_ms.p50 == 500


@pytest.mark.parametrize(
    ("records", "wrong"),
    [
        ([record(0, "a")], "1 finals not annotated, 1 transcripts not right"),
        ([record(2, "c"), record(0, "a"), transcript("c")], "1 stale records"),
        ([record(2, "x"), transcript("c")], "1 stale records"),
        ([record(2, "c", error="engine_failed"), transcript("c")], "1 errors"),
        ([record(2, "c"), transcript("c", "c")], "1 transcripts not right"),
    ],
)
def test_the_books_of_a_bad_feed(records: list[dict[str, Any]], wrong: str) -> None:
    ledger = SpeechLedger()
    for number, text in enumerate(("a", "b", "c")):
        ledger.said(event(number, text, final=number == 2), float(number))
    for each in records:
        ledger.heard(each, 9.0)
    assert not ledger.summary().good
    assert ledger.summary().verdict == wrong


def test_what_was_stopped_is_not_judged() -> None:
    summary = msgspec.structs.replace(SpeechLedger().summary(), stopped="interrupted")
    assert not summary.good
    assert summary.verdict == "Stopped before all had come: interrupted."


def test_what_is_shown_of_outputs() -> None:
    outputs = {"v": [0.5, 0.25], "s": [{"label": "A", "score": 0.75}], "q": {"answer": "x"}, "n": []}
    heard = Revisions().heard(record(0, "a\x1b[31m b", outputs=outputs), 3.0)
    assert heard.words == [("a", False), ("[31m", False), ("b", False)]
    assert heard.outputs == "s A 0.75   v [0.500 0.250 ... 2 numbers]"
    assert Revisions().heard(record(0, "a", error="gone"), 3.0).outputs == "gone"
