"""Where speech begins and ends, by its energy: louder than what is heard when nobody speaks."""

from __future__ import annotations

from collections import deque

import numpy as np

from pipeline.listen.audio import SAMPLE_RATE, Samples

_FRAME_MS = 30
# Of frames that are loud: so many begin an utterance; so many that are not, one after the other (0.6 s), end it.
_BEGIN_FRAMES = 4
_END_FRAMES = 20
# Before it is loud: the breath and the consonant of the first word.
_BEFORE_FRAMES = 10
# Loud is 10 dB above the noise, and never what is under -50 dB of full scale.
_ABOVE_NOISE = 10 ** (10 / 20)
_LEAST_RMS = 32_768 * 10 ** (-50 / 20)
# The noise is the quietest frame of so many (3 s): in a sentence there are gaps.
_NOISE_FRAMES = 100


class EnergyEndpointer:
    """An `Endpointer`. Music is speech to it."""

    frame_samples = SAMPLE_RATE * _FRAME_MS // 1_000

    def __init__(self) -> None:
        self.in_speech = False
        self.start_ms = 0
        self._frames = 0
        self._before: deque[Samples] = deque(maxlen=_BEFORE_FRAMES + _BEGIN_FRAMES)
        # Before anything is heard it is still: who speaks at once is heard.
        self._noise = deque([0.0], maxlen=_NOISE_FRAMES)
        self._loud = 0
        self._quiet = 0

    def process(self, frame: Samples) -> Samples | None:
        """See Endpointer."""
        self._frames += 1
        rms = float(np.sqrt(np.mean(np.square(frame.astype(np.float64)))))
        self._noise.append(rms)
        is_loud = rms > max(_LEAST_RMS, _ABOVE_NOISE * min(self._noise))
        if self.in_speech:
            self._quiet = 0 if is_loud else self._quiet + 1
            self.in_speech = self._quiet < _END_FRAMES
            return frame
        self._before.append(frame)
        self._loud = self._loud + 1 if is_loud else 0
        if self._loud < _BEGIN_FRAMES:
            return None
        speech = np.concatenate(self._before)
        self.start_ms = (self._frames - len(self._before)) * _FRAME_MS
        self._before.clear()
        self.in_speech, self._loud, self._quiet = True, 0, 0
        return speech
