"""A WAV file as audio for a recognizer: what is read of it, when it is due, and what is refused."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.listen.audio import BLOCK_SAMPLES, Resampler
from pipeline.listen.recording import Pace, Recording
from tests.listen.sounds import RATE, tone, write_wav


class Clock:
    """Nobody waits: time goes on by what they would have waited."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> None:
        self.now_s += seconds


class Stopping(threading.Event):
    """An event that is waited for on the clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def wait(self, timeout: float | None = None) -> bool:
        self._clock.wait(timeout or 0.0)
        return self.is_set()


def read(path: Path, *, speed: float = 1.0) -> tuple[np.ndarray, float]:
    clock = Clock()
    with Recording(path, Pace(speed, now_s=clock)) as recording:
        samples = np.concatenate([each.samples for each in recording.blocks(Stopping(clock))])
    return samples, clock.now_s - 100.0


def test_blocks_are_what_is_in_the_file_and_come_when_they_were_spoken(tmp_path: Path) -> None:
    said = tone(0.25)
    path = write_wav(tmp_path / "call.wav", said.tobytes())
    found, took_s = read(path)
    assert np.array_equal(found, said)
    assert took_s == pytest.approx(0.25)
    assert read(path, speed=5)[1] == pytest.approx(0.05)


def test_who_reads_too_slowly_is_told_by_how_much(tmp_path: Path) -> None:
    clock = Clock()
    path = write_wav(tmp_path / "call.wav", tone(0.4).tobytes())
    behind = []
    with Recording(path, Pace(1.0, now_s=clock)) as recording:
        for each in recording.blocks(Stopping(clock)):
            assert len(each.samples) == BLOCK_SAMPLES
            behind.append(each.behind_s)
            clock.now_s += 0.3
    assert behind == pytest.approx([0.0, 0.2, 0.4, 0.6])


def test_a_stop_ends_it(tmp_path: Path) -> None:
    clock, path = Clock(), write_wav(tmp_path / "call.wav", tone(1).tobytes())
    stopping = Stopping(clock)
    with Recording(path, Pace(1.0, now_s=clock)) as recording:
        blocks = recording.blocks(stopping)
        next(blocks)
        stopping.set()
        assert list(blocks) == []


def test_channels_are_mixed_down(tmp_path: Path) -> None:
    left, right = tone(0.2), tone(0.2, hertz=900)
    path = write_wav(tmp_path / "call.wav", np.stack([left, right], axis=1).tobytes(), channels=2)
    expected = np.rint((left.astype(float) + right) / 2)
    assert np.array_equal(read(path)[0], expected)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_other_rates_are_resampled(tmp_path: Path, rate: int) -> None:
    path = write_wav(tmp_path / "call.wav", tone(0.5, rate=rate).tobytes(), rate=rate)
    found, took_s = read(path)
    assert abs(len(found) - RATE / 2) <= 1
    assert took_s == pytest.approx(0.5, abs=1e-3)
    # Away from both ends, where silence is what was before.
    difference = (found.astype(float) - tone(0.6)[: len(found)])[500:-500]
    assert np.abs(difference).max() < 8_000 * 1e-3


def test_what_16_khz_can_not_hold_is_gone() -> None:
    resampler = Resampler(48_000)
    found = resampler.convert(tone(0.2, hertz=10_000, rate=48_000).astype(np.float32))
    assert np.abs(found[500:]).max() < 8_000 * 1e-3


@pytest.mark.parametrize("size", [1, 7, 100, 5_000])
def test_pieces_are_resampled_as_the_whole(size: int) -> None:
    said = tone(0.1, rate=44_100).astype(np.float32)
    whole, pieces = Resampler(44_100), Resampler(44_100)
    expected = [whole.convert(said), whole.rest()]
    found = [pieces.convert(said[start : start + size]) for start in range(0, len(said), size)]
    assert np.array_equal(np.concatenate([*found, pieces.rest()]), np.concatenate(expected))


def mistake(path: Path) -> str:
    with pytest.raises(UserError) as raised:
        Recording(path, Pace(1.0))
    [line] = raised.value.lines
    start = f"{path}: "
    assert line.startswith(start)
    return line.removeprefix(start)


def test_what_is_no_wav_file_of_16_bit_pcm_is_told_how_to_convert(tmp_path: Path) -> None:
    path = tmp_path / "my call.wav"
    convert = f"convert it with ffmpeg -i '{path}' -ar 16000 -ac 1 -c:a pcm_s16le '{tmp_path / 'my call-16k.wav'}'"
    write_wav(path, bytes(100), width=1)
    assert mistake(path) == f"is PCM of 8 bits: {convert}"
    write_wav(path, bytes(100), rate=1_000)
    assert mistake(path) == f"has 1,000 samples a second: {convert}"
    path.write_bytes(b"ID3" + bytes(100))
    assert mistake(path) == f"is no WAV file of PCM (file does not start with RIFF id): {convert}"
    write_wav(path, bytes(100))
    data = bytearray(path.read_bytes())
    data[20] = 3  # samples are floats
    path.write_bytes(data)
    assert mistake(path) == f"is no WAV file of PCM (unknown format: 3): {convert}"


def test_what_is_not_all_there_is_told(tmp_path: Path) -> None:
    path = tmp_path / "call.wav"
    assert mistake(path) == "No such file: name a WAV file"
    path.touch()
    assert mistake(path) == "is empty: record it again"
    write_wav(path, b"")
    assert mistake(path) == "has no audio in it: record it again"
    whole = write_wav(path, tone(1).tobytes()).read_bytes()
    path.write_bytes(whole[:-2])
    assert mistake(path).startswith("is truncated: it promises 1.0 s of audio and ends before: convert what is there ")
    path.write_bytes(whole[:30])
    assert mistake(path) == "is truncated: it ends within its header: copy or record it again"
    assert mistake(tmp_path) == "is not a file: name a WAV file"
