"""Audio as recognizers take it: 16 kHz, mono, int16, in blocks of 100 ms; and how other audio becomes that."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from math import ceil, gcd
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
BLOCK_SAMPLES = SAMPLE_RATE // 10
# From telephones to studios. At other rates the table of `Resampler` would be large.
RATES = (4_000, 192_000)

# Of a low-pass filter, to either side: 16 zero crossings keep what is above half the rate 60 dB down.
_ZERO_CROSSINGS = 16

Samples = NDArray[np.int16]


class Heard(NamedTuple):
    """Audio, and how many seconds ago it was due: how far its reader is behind."""

    samples: Samples
    behind_s: float


class Source(Protocol):
    """A recording that is played, or a microphone."""

    name: str

    def blocks(self, stopping: threading.Event) -> Iterator[Heard]:
        """The audio when it is due, until its end or `stopping`."""
        ...


class Resampler:
    """Mono audio of any rate in `RATES` to 16 kHz, piece by piece: the pieces together are what the whole would be.

    Band-limited interpolation (J. O. Smith, "Digital Audio Resampling"): a sinc under a Hann window, its cutoff at
    half the lower of both rates, from a table with a row for each phase.
    """

    def __init__(self, rate: int) -> None:
        assert RATES[0] <= rate <= RATES[1]
        divisor = gcd(rate, SAMPLE_RATE)
        # Output n lies at the input's sample n * step / phases.
        self._step, self._phases = rate // divisor, SAMPLE_RATE // divisor
        cutoff = min(1.0, SAMPLE_RATE / rate)
        self._half = ceil(_ZERO_CROSSINGS / cutoff)
        # Of input samples from what lies at the output; (phases, 2 * half).
        distance = (np.arange(self._phases) / self._phases)[:, None] - np.arange(1 - self._half, self._half + 1)
        window = np.cos(np.pi / 2 * np.clip(distance / self._half, -1, 1)) ** 2
        kernel = np.sinc(distance * cutoff) * window
        self._kernel = (kernel / kernel.sum(axis=1, keepdims=True)).astype(np.float32)
        # Silence before the first sample, as many as its filter reads.
        self._kept = np.zeros(self._half - 1, np.float32)
        self._kept_from = 1 - self._half
        self._read = 0
        self._given = 0

    def convert(self, samples: NDArray[np.float32]) -> Samples:
        """The output for the next piece, as far as it depends on nothing that is still to come."""
        self._read += len(samples)
        self._kept = np.concatenate([self._kept, samples])
        last = (self._read - 1 - self._half) * self._phases // self._step
        return self._until(last + 1)

    def rest(self) -> Samples:
        """What is left, at the end."""
        self._kept = np.concatenate([self._kept, np.zeros(self._half + 1, np.float32)])
        return self._until(ceil(self._read * self._phases / self._step))

    def _until(self, end: int) -> Samples:
        if end <= self._given:
            return np.zeros(0, np.int16)
        places = np.arange(self._given, end, dtype=np.int64) * self._step
        first = places // self._phases + 1 - self._half - self._kept_from
        taps = self._kept[first[:, None] + np.arange(2 * self._half)]  # (outputs, 2 * half)
        found = np.einsum("ot,ot->o", taps, self._kernel[places % self._phases])
        self._given = end
        needed_from = end * self._step // self._phases + 1 - self._half
        self._kept = self._kept[needed_from - self._kept_from :]
        self._kept_from = needed_from
        samples: Samples = np.clip(np.rint(found), -32_768, 32_767).astype(np.int16)
        return samples
