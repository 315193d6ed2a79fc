"""What a speech recognizer is to Penstock: audio in, hypotheses out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from pipeline.listen.audio import Samples


class Hypothesis(NamedTuple):
    """Of the utterance that is being said, or, final, of one that was; the next one is of the next utterance. Times
    are of the audio, in milliseconds, where the recognizer knows them."""

    text: str
    is_final: bool
    start_ms: int | None = None
    end_ms: int | None = None


class Recognizer(Protocol):
    """Hears one stream of audio. All of its methods are called on one thread."""

    def accept(self, samples: Samples) -> Iterable[Hypothesis]:
        """What is heard once these samples (16 kHz, int16) are."""
        ...

    def finish(self) -> Iterable[Hypothesis]:
        """What is still open when the audio has ended."""
        ...
