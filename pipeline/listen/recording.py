"""A WAV file as a source of audio: read block by block, at its real pace or a multiple of it."""

from __future__ import annotations

import shlex
import threading
import time
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.listen.audio import RATES, SAMPLE_RATE, Heard, Resampler, Samples

_MOST_CHANNELS = 32


class Pace:
    """When audio is due that is played `speed` times as fast as it was spoken. The first call begins it."""

    def __init__(self, speed: float, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._speed = speed
        self._now_s = now_s
        self._started_s: float | None = None

    def wait_until(self, audio_s: float, wait: Callable[[float], object]) -> float:
        """`wait` until so much has been spoken; by how many seconds that is late, or 0."""
        now_s = self._now_s()
        if self._started_s is None:
            self._started_s = now_s
        early_s = self._started_s + audio_s / self._speed - now_s
        if early_s > 0:
            wait(early_s)
        return max(0.0, -early_s)


class Recording:
    """A WAV file of 16-bit PCM, any channels mixed down, any usual rate. Use as a context manager."""

    def __init__(self, path: Path, pace: Pace) -> None:
        """Raises UserError where it is something else."""
        self.name = path.stem
        self._pace = pace
        self._wave = _open(path)
        try:
            self._check(path)
        except UserError:
            self._wave.close()
            raise

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self._wave.getnframes() / self._wave.getframerate()

    def blocks(self, stopping: threading.Event) -> Iterator[Heard]:
        """A block once all of it has been spoken."""
        done = 0
        for samples in self._read():
            done += len(samples)
            behind_s = self._pace.wait_until(done / SAMPLE_RATE, stopping.wait)
            if stopping.is_set():
                return
            yield Heard(samples, behind_s)

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self._wave.close()

    def _read(self) -> Iterator[Samples]:
        rate, channels = self._wave.getframerate(), self._wave.getnchannels()
        resampler = None if rate == SAMPLE_RATE else Resampler(rate)
        while data := self._wave.readframes(rate // 10):
            frames = np.frombuffer(data, "<i2").reshape(-1, channels)  # (frames, channels)
            mono = frames[:, 0] if channels == 1 else np.rint(frames.mean(axis=1))
            yield mono.astype(np.int16) if resampler is None else resampler.convert(mono.astype(np.float32))
        if resampler is not None:
            yield resampler.rest()

    def _check(self, path: Path) -> None:
        found = self._wave
        if found.getsampwidth() != 2:
            raise _other(path, f"is PCM of {8 * found.getsampwidth()} bits")
        if not RATES[0] <= found.getframerate() <= RATES[1]:
            raise _other(path, f"has {found.getframerate():,} samples a second")
        if not 1 <= found.getnchannels() <= _MOST_CHANNELS:
            raise _other(path, f"has {found.getnchannels()} channels")
        if not found.getnframes():
            raise UserError(f"{path}: has no audio in it: record it again")
        # Where the header promises more than there is: `wave` would read what is there, and say nothing.
        found.setpos(found.getnframes() - 1)
        if len(found.readframes(1)) < 2 * found.getnchannels():
            raise _other(
                path, f"is truncated: it promises {self.seconds:,.1f} s of audio and ends before", "what is there"
            )
        found.rewind()


def _open(path: Path) -> wave.Wave_read:
    try:
        if not path.is_file():
            raise UserError(f"{path}: {'is not a file' if path.exists() else 'No such file'}: name a WAV file")
        if not path.stat().st_size:
            raise UserError(f"{path}: is empty: record it again")
        return wave.open(str(path), "rb")
    except EOFError as err:
        raise UserError(f"{path}: is truncated: it ends within its header: copy or record it again") from err
    except wave.Error as err:
        raise _other(path, f"is no WAV file of PCM ({err})") from err
    except OSError as err:
        raise UserError(f"{path}: can't be read: {err.strerror}") from err


def _other(path: Path, what: str, convert_what: str = "it") -> UserError:
    name = str(path)
    into = str(path.with_name(f"{path.stem}-16k.wav"))
    convert = shlex.join(["ffmpeg", "-i", name, "-ar", "16000", "-ac", "1", "-c:a", "pcm_s16le", into])
    return UserError(f"{path}: {what}: convert {convert_what} with {convert}")
