"""Recognizers behind one protocol: which one hears, and what each makes of its library's answers."""

from __future__ import annotations

import importlib.util
import json
import sys
import wave
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.listen.recognizers import choice
from pipeline.listen.recognizers.choice import choose_recognizer
from pipeline.listen.recognizers.energy_endpointer import EnergyEndpointer
from pipeline.listen.recognizers.recognizer import Hypothesis, Recognizer
from pipeline.listen.recognizers.utterances import UtteranceRecognizer
from tests.listen.sounds import RATE, silence, tone

SPEECH = Path(__file__).with_name("coffee.wav")


def hear(recognizer: Recognizer, samples: np.ndarray, *, block: int = 1_600) -> list[Hypothesis]:
    found: list[Hypothesis] = []
    for start in range(0, len(samples), block):
        found += recognizer.accept(samples[start : start + block])
    return [*found, *recognizer.finish()]


def install(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> None:
    module = ModuleType(name)
    module.__dict__.update(contents)
    module.__spec__ = importlib.util.spec_from_loader(name, None)
    monkeypatch.setitem(sys.modules, name, module)


class TestChoice:
    @pytest.fixture
    def installed(self, monkeypatch: pytest.MonkeyPatch) -> set[str]:
        names: set[str] = set()
        monkeypatch.setattr(choice, "_is_installed", names.__contains__)
        return names

    def test_the_first_that_is_installed(self, installed: set[str]) -> None:
        installed |= {"faster-whisper", "vosk"}
        assert choose_recognizer(None, None)[0] == "vosk"
        assert choose_recognizer("faster-whisper", None)[0] == "faster-whisper"

    def test_none_is_installed(self, installed: set[str]) -> None:
        with pytest.raises(UserError) as raised:
            choose_recognizer(None, None)
        assert raised.value.lines == (
            "listen: no speech recognizer is installed: pip install pocketsphinx, pip install vosk, "
            "pip install faster-whisper (the first brings its own model)",
        )
        with pytest.raises(UserError, match=r"^listen: vosk is not installed: pip install vosk$"):
            choose_recognizer("vosk", None)

    def test_what_it_needs_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "vosk", None)
        monkeypatch.setattr(choice, "_is_installed", lambda name: True)
        with pytest.raises(UserError, match=r"^listen: vosk can't be loaded \(.+\): pip install vosk$"):
            choose_recognizer("vosk", None)[1]()


class Letters:
    """A decoder to which 0.1 s of speech is a letter; the last pass writes them large. `took_s` of time each."""

    def __init__(self, took_s: float = 0.0) -> None:
        self.now_s = 0.0
        self._took_s = took_s
        self._samples = 0

    def begin(self) -> None:
        self._samples = 0

    def add(self, speech: np.ndarray) -> None:
        self._samples += len(speech)

    def partial(self) -> str:
        self.now_s += self._took_s
        return "abcdefghijklmnopqrstuvwxyz"[: self._samples * 10 // RATE]

    def final(self) -> str:
        return self.partial().upper()


class TestUtterances:
    def recognizer(self, decoder: Letters) -> UtteranceRecognizer:
        return UtteranceRecognizer(EnergyEndpointer(), decoder, now_s=lambda: decoder.now_s)

    @pytest.mark.parametrize("block", [100, 1_600, 100_000])
    def test_a_partial_every_half_second_and_a_final_after_silence(self, block: int) -> None:
        said = [silence(1), tone(1.2), silence(1), tone(0.3), silence(0.2)]
        found = hear(self.recognizer(Letters()), np.concatenate(said), block=block)
        assert [each.is_final for each in found] == [False, False, False, False, True, False, True]
        first, second = found[4], found[6]
        assert found[1].text == "abcdefghij"
        # 0.3 s before it was loud belong to it, and 0.6 s until it was known to be over.
        assert first.start_ms is not None
        assert first.end_ms is not None
        assert 650 <= first.start_ms <= 750
        assert first.end_ms == pytest.approx(1_000 + 1_200 + 600, abs=60)
        assert second.start_ms == pytest.approx(1_000 + 1_200 + 1_000 - 300, abs=60)
        assert all(each.start_ms == first.start_ms for each in found[:5])

    def test_slow_decoding_makes_partials_rarer_and_keeps_up(self) -> None:
        decoder = Letters(took_s=1.0)
        found = hear(self.recognizer(decoder), np.concatenate([silence(0.5), tone(6), silence(1)]))
        assert decoder.now_s <= 7.5
        assert [each.is_final for each in found] == [False] * (len(found) - 1) + [True]
        assert 4 <= len(found) <= 6

    def test_who_never_pauses_is_cut(self) -> None:
        found = hear(self.recognizer(Letters()), np.tile(np.concatenate([tone(0.2), silence(0.05)]), 280))
        finals = [each for each in found if each.is_final]
        assert len(finals) == 3
        assert [each.start_ms for each in finals[1:]] == [each.end_ms for each in finals[:-1]]

    def test_noise_is_no_speech(self) -> None:
        hum = np.concatenate([silence(0.1), tone(3, hertz=50, level=40)])
        assert hear(self.recognizer(Letters()), hum) == []


class FakeKaldi:
    """Says a word for each block that is loud, and ends the utterance at one that isn't."""

    def __init__(self, model: Any, rate: int) -> None:
        assert (model.model_path, rate) == (model.model_path, RATE)
        self._words: list[str] = []
        self._seconds = 0.0

    def SetWords(self, wanted: bool) -> None:  # noqa: N802 - Vosk's
        assert wanted

    SetPartialWords = SetWords

    def AcceptWaveform(self, data: bytes) -> bool:  # noqa: N802
        samples = np.frombuffer(data, np.int16)
        self._seconds += len(samples) / RATE
        if samples.any():
            self._words.append(f"w{len(self._words)}")
        return not samples.any()

    def PartialResult(self) -> str:  # noqa: N802
        return json.dumps({"partial": " ".join(self._words)})

    def Result(self) -> str:  # noqa: N802
        words, self._words = self._words, []
        if not words:
            return json.dumps({"text": ""})
        times = [{"word": each, "start": self._seconds - 0.3, "end": self._seconds - 0.1} for each in words]
        return json.dumps({"text": " ".join(words), "result": times})

    FinalResult = Result


class TestVosk:
    def test_partials_then_finals_with_their_times(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        model = SimpleNamespace(model_path=str(tmp_path))
        install(
            monkeypatch,
            "vosk",
            SetLogLevel=lambda level: None,
            Model=lambda model_path: model,
            KaldiRecognizer=FakeKaldi,
        )
        _, opened = choose_recognizer("vosk", str(tmp_path))
        found = hear(opened(), np.concatenate([silence(0.1), tone(0.2), silence(0.2), tone(0.1)]))
        assert found == [
            Hypothesis("w0", False),
            Hypothesis("w0 w1", False),
            Hypothesis("w0 w1", True, 100, 300),
            Hypothesis("w0", False),
            Hypothesis("w0", True, 300, 500),
        ]

    def test_a_model_is_needed_and_must_be_one(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def refuse(model_path: str) -> None:
            raise Exception("Failed to create a model")

        install(monkeypatch, "vosk", SetLogLevel=lambda level: None, Model=refuse, KaldiRecognizer=FakeKaldi)
        for model, says in (
            (None, "vosk needs one: a folder from https"),
            ("no-such", "no-such is not a folder: unpack"),
            (str(tmp_path), f"vosk can't use {tmp_path}: Failed to create a model"),
        ):
            with pytest.raises(UserError, match=f"^--model: {says}"):
                choose_recognizer("vosk", model)[1]()


class TestWhisper:
    def test_the_utterance_so_far_is_decoded_anew(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[tuple[int, int]] = []

        class WhisperModel:
            def __init__(self, name: str, *, device: str, compute_type: str) -> None:
                assert name == "tiny.en"

            def transcribe(self, audio: np.ndarray, *, beam_size: int, **_: Any) -> tuple[Iterable[Any], None]:
                assert audio.dtype == np.float32
                assert np.abs(audio).max() <= 1
                calls.append((len(audio), beam_size))
                return iter([SimpleNamespace(text=" Hello"), SimpleNamespace(text=" there.")]), None

        install(monkeypatch, "faster_whisper", WhisperModel=WhisperModel)
        found = hear(choose_recognizer("faster-whisper", "tiny.en")[1](), np.concatenate([tone(1), silence(1)]))
        assert {each.text for each in found} == {"Hello there."}
        assert [each.is_final for each in found] == [False] * (len(found) - 1) + [True]
        assert [beams for _, beams in calls] == [1] * (len(calls) - 1) + [5]
        assert [size for size, _ in calls] == sorted(size for size, _ in calls)

    def test_a_model_is_needed_and_must_be_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(name: str, **_: str) -> None:
            raise ValueError("Invalid model size 'big'\nexpected one of: ...")

        install(monkeypatch, "faster_whisper", WhisperModel=refuse)
        for model, says in ((None, "faster-whisper needs one: a name"), ("big", "faster-whisper can't use big: Inv")):
            with pytest.raises(UserError, match=f"^--model: {says}") as raised:
                choose_recognizer("faster-whisper", model)[1]()
            assert "\n" not in str(raised.value)


class FakePocketsphinx:
    """Its endpointer and its decoder in one: loud frames are speech, a word each."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.frame_bytes = 960
        self.in_speech = False
        self.speech_start = 0.0
        self._seconds = 0.0
        self._words = 0

    def process(self, frame: bytes) -> bytes | None:
        loud, was = any(frame), self.in_speech
        if loud and not was:
            self.speech_start = self._seconds
        self._seconds += 0.03
        self.in_speech = loud
        return frame if loud or was else None

    def start_utt(self) -> None:
        self._words = 0

    def process_raw(self, data: bytes, no_search: bool, full_utt: bool) -> None:
        self._words += len(data) // 960

    def hyp(self) -> Any:
        return SimpleNamespace(hypstr=f"{self._words} words") if self._words else None

    def end_utt(self) -> None:
        pass


class TestPocketsphinx:
    def test_as_its_library_answers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        install(monkeypatch, "pocketsphinx", Endpointer=FakePocketsphinx, Decoder=FakePocketsphinx)
        said = np.concatenate([silence(0.3), tone(0.9), silence(0.3)])
        found = hear(choose_recognizer("pocketsphinx", None)[1](), said)
        assert found == [Hypothesis("17 words", False, 300, 810), Hypothesis("31 words", True, 300, 1230)]

    def test_a_folder_is_a_model_where_it_has_what_one_has(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        made: list[FakePocketsphinx] = []

        def decoder(**options: Any) -> FakePocketsphinx:
            made.append(FakePocketsphinx(**options))
            return made[-1]

        install(monkeypatch, "pocketsphinx", Endpointer=FakePocketsphinx, Decoder=decoder)
        opened = choose_recognizer("pocketsphinx", str(tmp_path))[1]
        with pytest.raises(UserError, match=r"has 0 of \*/mdef: pocketsphinx needs a folder with one each of"):
            opened()
        (tmp_path / "acoustic").mkdir()
        for name in ("acoustic/mdef", "german.lm.bin", "german.dict"):
            (tmp_path / name).touch()
        opened()
        assert made[0].options["hmm"] == str(tmp_path / "acoustic")
        assert made[0].options["dict"] == str(tmp_path / "german.dict")

    def test_the_real_one_hears_words(self) -> None:
        pytest.importorskip("pocketsphinx")
        with wave.open(str(SPEECH)) as file:
            said = np.frombuffer(file.readframes(file.getnframes()), np.int16)
        found = hear(choose_recognizer("pocketsphinx", None)[1](), said)
        assert [each.is_final for each in found] == [False] * (len(found) - 1) + [True]
        assert "coffee machine" in found[-1].text
