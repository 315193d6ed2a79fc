"""PocketSphinx: small, and its package brings a model of American English. It mishears a good deal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.listen.audio import SAMPLE_RATE, Samples
from pipeline.listen.recognizers.utterances import UtteranceRecognizer


def open_pocketsphinx(model: str | None) -> UtteranceRecognizer:
    """With the package's own model, or a folder laid out like it. Raises UserError where that can't be used."""
    import pocketsphinx

    options: dict[str, Any] = {"samprate": SAMPLE_RATE, "loglevel": "FATAL"}
    if model is not None:
        options |= _files_of(Path(model))
    try:
        decoder = pocketsphinx.Decoder(**options)
    except (RuntimeError, ValueError) as err:
        where = model or "its own model"
        raise UserError(f"--model: pocketsphinx can't use {where}: {err}") from err
    return UtteranceRecognizer(_Endpointer(pocketsphinx.Endpointer(sample_rate=SAMPLE_RATE)), _Decoder(decoder))


def _files_of(folder: Path) -> dict[str, Any]:
    """The acoustic model's folder, the language model and the dictionary in a folder like the package's `en-us`."""
    found: dict[str, Any] = {}
    for option, pattern in (("hmm", "*/mdef"), ("lm", "*.lm.bin"), ("dict", "*.dict")):
        matches = sorted(folder.glob(pattern))
        if len(matches) != 1:
            raise UserError(
                f"--model: {folder} has {len(matches)} of {pattern}: pocketsphinx needs a folder with one each of "
                "*/mdef (the acoustic model), *.lm.bin and *.dict"
            )
        found[option] = str(matches[0].parent if option == "hmm" else matches[0])
    return found


class _Endpointer:
    """An `Endpointer`, by the package's voice activity detection: 0.3 s decide."""

    def __init__(self, endpointer: Any) -> None:
        self._endpointer = endpointer
        self.frame_samples: int = endpointer.frame_bytes // 2
        self.in_speech = False
        self.start_ms = 0

    def process(self, frame: Samples) -> Samples | None:
        speech = self._endpointer.process(frame.tobytes())
        self.in_speech = self._endpointer.in_speech
        if self.in_speech:
            self.start_ms = round(self._endpointer.speech_start * 1e3)
        return None if speech is None else np.frombuffer(speech, np.int16)


class _Decoder:
    """A `Decoder`: it decodes as speech comes in."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder

    def begin(self) -> None:
        self._decoder.start_utt()

    def add(self, speech: Samples) -> None:
        self._decoder.process_raw(speech.tobytes(), False, False)

    def partial(self) -> str:
        hypothesis = self._decoder.hyp()
        return hypothesis.hypstr if hypothesis is not None else ""

    def final(self) -> str:
        self._decoder.end_utt()
        return self.partial()
