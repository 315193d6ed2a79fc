"""Whisper, by faster-whisper: the utterance so far is decoded anew for each hypothesis, which so revises its words."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.listen.audio import Samples
from pipeline.listen.recognizers.energy_endpointer import EnergyEndpointer
from pipeline.listen.recognizers.utterances import UtteranceRecognizer


def open_whisper(model: str | None) -> UtteranceRecognizer:
    """`model` is a name that faster-whisper fetches from its hub once, or a folder. Raises UserError where it can't be
    used."""
    import faster_whisper

    if model is None:
        raise UserError("--model: faster-whisper needs one: a name such as tiny.en, base or small, or a folder")
    try:
        whisper = faster_whisper.WhisperModel(model, device="auto", compute_type="default")
    except Exception as err:
        raise UserError(f"--model: faster-whisper can't use {model}: {' '.join(str(err).split())}") from err
    return UtteranceRecognizer(EnergyEndpointer(), _Decoder(whisper))


class _Decoder:
    """A `Decoder`: greedy for partial hypotheses, with beams for the final one."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._speech: list[Samples] = []

    def begin(self) -> None:
        self._speech = []

    def add(self, speech: Samples) -> None:
        self._speech.append(speech)

    def partial(self) -> str:
        return self._decode(beam_size=1)

    def final(self) -> str:
        return self._decode(beam_size=5)

    def _decode(self, *, beam_size: int) -> str:
        audio = np.concatenate(self._speech).astype(np.float32) / 32_768
        segments, _ = self._model.transcribe(
            audio, beam_size=beam_size, condition_on_previous_text=False, without_timestamps=True
        )
        return "".join(segment.text for segment in segments).strip()
