"""Vosk: Kaldi's models of many languages, each a folder. It finds utterances itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.listen.audio import SAMPLE_RATE, Samples
from pipeline.listen.recognizers.recognizer import Hypothesis


def open_vosk(model: str | None) -> VoskRecognizer:
    """Raises UserError where `model` is no folder with a model."""
    import vosk

    if model is None:
        raise UserError("--model: vosk needs one: a folder from https://alphacephei.com/vosk/models, unpacked")
    if not Path(model).is_dir():
        raise UserError(f"--model: {model} is not a folder: unpack a model from https://alphacephei.com/vosk/models")
    vosk.SetLogLevel(-1)
    try:
        recognizer = vosk.KaldiRecognizer(vosk.Model(model_path=model), SAMPLE_RATE)
    except Exception as err:
        raise UserError(f"--model: vosk can't use {model}: {err}") from err
    recognizer.SetWords(True)
    recognizer.SetPartialWords(True)
    return VoskRecognizer(recognizer)


class VoskRecognizer:
    """A `Recognizer` around a `KaldiRecognizer`."""

    def __init__(self, recognizer: Any) -> None:
        self._recognizer = recognizer
        self._said = False

    def accept(self, samples: Samples) -> Iterator[Hypothesis]:
        """See Recognizer."""
        if self._recognizer.AcceptWaveform(samples.tobytes()):
            yield from self._final(self._recognizer.Result())
            return
        found = json.loads(self._recognizer.PartialResult())
        if text := found.get("partial", ""):
            self._said = True
            yield Hypothesis(text, False, *_times(found.get("partial_result")))

    def finish(self) -> Iterator[Hypothesis]:
        """See Recognizer."""
        yield from self._final(self._recognizer.FinalResult())

    def _final(self, result: str) -> Iterator[Hypothesis]:
        found = json.loads(result)
        text = found.get("text", "")
        # Silence has results too; but where something was said, it ends.
        if text or self._said:
            self._said = False
            yield Hypothesis(text, True, *_times(found.get("result")))


def _times(words: list[dict[str, Any]] | None) -> tuple[int | None, int | None]:
    return (round(words[0]["start"] * 1e3), round(words[-1]["end"] * 1e3)) if words else (None, None)
