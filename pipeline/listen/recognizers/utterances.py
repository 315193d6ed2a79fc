"""Utterances for recognizers that decode speech and leave to others where it begins and ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from pipeline.listen.audio import SAMPLE_RATE, Samples
from pipeline.listen.recognizers.recognizer import Hypothesis

# Of audio, between two partial hypotheses.
PARTIAL_EVERY_MS = 500
# Where nobody pauses. Whisper reads no more at once.
LONGEST_UTTERANCE_MS = 29_000


class Endpointer(Protocol):
    """Tells speech from silence, frame by frame."""

    frame_samples: int
    in_speech: bool
    # Of the utterance that goes on, or of the last one.
    start_ms: int

    def process(self, frame: Samples) -> Samples | None:
        """The speech that is known now to be some: of the first frame of an utterance also what came just before. After
        the last one `in_speech` is false."""
        ...


class Decoder(Protocol):
    """Turns speech into text."""

    def begin(self) -> None:
        """An utterance begins."""
        ...

    def add(self, speech: Samples) -> None:
        """More of it."""
        ...

    def partial(self) -> str:
        """What it says so far."""
        ...

    def final(self) -> str:
        """What it said: it has ended."""
        ...


class UtteranceRecognizer:
    """A `Recognizer` of both. Where decoding is slow, partial hypotheses are as seldom as keeps up with the speech."""

    def __init__(
        self, endpointer: Endpointer, decoder: Decoder, *, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._endpointer = endpointer
        self._decoder = decoder
        self._now_s = now_s
        self._left = np.zeros(0, np.int16)
        self._open = False
        # Whether the last utterance ended in the middle of speech.
        self._cut = False
        self._start_ms = 0
        self._spoken_samples = 0
        self._next_partial_ms = 0.0

    def accept(self, samples: Samples) -> Iterator[Hypothesis]:
        """See Recognizer."""
        self._left = np.concatenate([self._left, samples])
        size = self._endpointer.frame_samples
        while len(self._left) >= size:
            frame, self._left = self._left[:size], self._left[size:]
            speech = self._endpointer.process(frame)
            if speech is not None:
                yield from self._speech(speech)

    def finish(self) -> Iterator[Hypothesis]:
        """See Recognizer. Less than a frame, which is left, is no word."""
        if self._open:
            yield self._final()

    def _speech(self, speech: Samples) -> Iterator[Hypothesis]:
        if not self._open:
            self._open = True
            self._start_ms = self._end_ms if self._cut else self._endpointer.start_ms
            self._spoken_samples = 0
            self._next_partial_ms = PARTIAL_EVERY_MS
            self._decoder.begin()
        self._decoder.add(speech)
        self._spoken_samples += len(speech)
        if not self._endpointer.in_speech or self._spoken_ms >= LONGEST_UTTERANCE_MS:
            yield self._final()
        elif self._spoken_ms >= self._next_partial_ms:
            started_s = self._now_s()
            text = self._decoder.partial()
            took_ms = (self._now_s() - started_s) * 1e3
            self._next_partial_ms = self._spoken_ms + max(PARTIAL_EVERY_MS, 1.5 * took_ms)
            yield Hypothesis(text, False, self._start_ms, self._end_ms)

    def _final(self) -> Hypothesis:
        self._open, self._cut = False, self._endpointer.in_speech
        return Hypothesis(self._decoder.final(), True, self._start_ms, self._end_ms)

    @property
    def _spoken_ms(self) -> int:
        return self._spoken_samples * 1_000 // SAMPLE_RATE

    @property
    def _end_ms(self) -> int:
        return self._start_ms + self._spoken_ms
