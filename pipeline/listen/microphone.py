"""The microphone as a source of audio. Needs sounddevice, and PortAudio under it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.listen.audio import BLOCK_SAMPLES, RATES, SAMPLE_RATE, Heard, Resampler

# Of audio that waits for its reader. What would be more is lost, and told.
_MOST_WAITING_S = 60
# How late a stop is noticed.
_LOOK_S = 0.1


class Microphone:
    """The system's default one, at 16 kHz, or resampled from the rate that it has."""

    name = "microphone"

    def __init__(self) -> None:
        """Raises UserError where there is none."""
        self._sound = _sounddevice()
        # Of the blocks that nobody had room for.
        self.lost_s = 0.0
        self._waiting: queue.Queue[tuple[bytes, float]] = queue.Queue(_MOST_WAITING_S * SAMPLE_RATE // BLOCK_SAMPLES)
        try:
            self._rate = self._supported_rate()
        except (self._sound.PortAudioError, ValueError) as err:
            raise UserError(f"listen: no microphone is found ({err}): connect one, or name a WAV file") from err

    def blocks(self, stopping: threading.Event) -> Iterator[Heard]:
        """What is said from now on."""
        resampler = None if self._rate == SAMPLE_RATE else Resampler(self._rate)
        try:
            stream = self._sound.RawInputStream(
                samplerate=self._rate, channels=1, dtype="int16", blocksize=self._rate // 10, callback=self._take
            )
        except self._sound.PortAudioError as err:
            raise UserError(f"listen: the microphone can't be opened ({err})") from err
        with stream:
            while not stopping.is_set():
                try:
                    data, taken_s = self._waiting.get(timeout=_LOOK_S)
                except queue.Empty:
                    continue
                samples = np.frombuffer(data, np.int16)
                if resampler is not None:
                    samples = resampler.convert(samples.astype(np.float32))
                yield Heard(samples, time.monotonic() - taken_s)

    def _take(self, data: Any, frames: int, _time: object, _status: object) -> None:
        """Called by PortAudio on a thread of its own, which must not wait."""
        try:
            self._waiting.put_nowait((bytes(data), time.monotonic()))
        except queue.Full:
            self.lost_s += frames / self._rate

    def _supported_rate(self) -> int:
        try:
            self._sound.check_input_settings(samplerate=SAMPLE_RATE, channels=1, dtype="int16")
        except self._sound.PortAudioError:
            rate: int = round(self._sound.query_devices(kind="input")["default_samplerate"])
            return min(max(rate, RATES[0]), RATES[1])
        return SAMPLE_RATE


def _sounddevice() -> ModuleType:
    try:
        import sounddevice
    except ImportError as err:
        raise UserError("listen: the microphone needs sounddevice: pip install sounddevice") from err
    except OSError as err:
        raise UserError(
            f"listen: the microphone needs PortAudio ({err}); on Debian and Ubuntu: apt install libportaudio2"
        ) from err
    found: ModuleType = sounddevice
    return found
