"""Built plans, by what they depend on.

DIR/KEY.plan                what TensorRT loads
DIR/KEY.json                what it is of, for people
DIR/KEY.lock                held by whoever builds it
DIR/timings-VERSION-CHIP    what builders have measured on this chip: the next build of a like layer is quick
DIR/channels-KEY.json       how large each channel of a model's activations gets

A key is a digest of the graph with its weights, of TensorRT's version, the chip and what the builder was asked for: a
plan is never stale, only unused. Files appear whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from pipeline.errors import UserError, WorkerFailure
from pipeline.file_lock import FileLock, FileLocked
from pipeline.user_cache import cache_folder

# Somebody else builds the same plan: minutes, where the model is large.
_BUILD_PATIENCE_S = 3600.0
_KEY_DIGITS = 32
_PARTIAL = "partial-"
_DAY_S = 86_400


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan is of. `parity` is each output's, in words."""

    model: str
    precision: str
    shape: str
    tensorrt: str
    gpu: str
    chip: str
    bytes: int
    seconds: float
    parity: dict[str, str]


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A plan in the cache. `used_s` is when it was last loaded or written, in seconds since 1970."""

    key: str
    about: About
    used_s: float


def digest(*parts: bytes | str) -> str:
    """A key of these, in this order."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()[:_KEY_DIGITS]


class PlanCache:
    """Raises UserError where the folder can't be used; it need not be writable for what is there."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder() / "plans"
        with self._usable():
            self.folder.mkdir(parents=True, exist_ok=True)

    def plan(self, key: str) -> bytes | None:
        """The plan, which is in use from now on."""
        return self._read(self._plan(key)) or None

    def keep(self, key: str, plan: bytes, about: About) -> None:
        """A plan that was found to be the model."""
        self._write(self.folder / f"{key}.json", msgspec.json.format(msgspec.json.encode(about)))
        self._write(self._plan(key), plan)

    @contextmanager
    def building(self, key: str) -> Iterator[None]:
        """Nobody else builds it meanwhile; they find it when it is kept."""
        try:
            with self._usable():
                lock = FileLock(self.folder / f"{key}.lock", wait_s=_BUILD_PATIENCE_S)
        except FileLocked as err:
            raise WorkerFailure(
                f"{self.folder}: process {err.owner or 'unknown'} builds the same plan and does not end"
            ) from err
        with lock:
            yield

    def timings(self, version: str, chip: str) -> bytes:
        """Empty where nothing was built yet."""
        return self._read(self._timings(version, chip)) or b""

    def keep_timings(self, version: str, chip: str, timings: bytes) -> None:
        """The newest win: they hold what was known before."""
        self._write(self._timings(version, chip), timings)

    def channels(self, key: str) -> dict[str, list[float]] | None:
        """Of a model's activations, where they were measured."""
        found = self._read(self.folder / f"channels-{key}.json")
        return None if found is None else msgspec.json.decode(found, type=dict[str, list[float]])

    def keep_channels(self, key: str, channels: Mapping[str, list[float]]) -> None:
        self._write(self.folder / f"channels-{key}.json", msgspec.json.encode(channels))

    def plans(self) -> list[Kept]:
        """All of them, the last used first. One that lacks its description was being removed."""
        found: list[Kept] = []
        with self._usable():
            for path in self.folder.glob("*.plan"):
                try:
                    about = msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=About)
                    found.append(Kept(key=path.stem, about=about, used_s=path.stat().st_mtime))
                except (FileNotFoundError, msgspec.DecodeError):
                    continue
        return sorted(found, key=lambda kept: -kept.used_s)

    def remove(self, key: str) -> None:
        """Its lock stays, see FileLock."""
        with self._usable():
            self._plan(key).unlink(missing_ok=True)
            (self.folder / f"{key}.json").unlink(missing_ok=True)

    def remove_aids(self, *, unused_days: float) -> None:
        """What nobody needs who has the plans: timings and channels that no build has read for so long, and what
        builders that were killed had begun to write."""
        with self._usable():
            for pattern, days in (("timings-*", unused_days), ("channels-*.json", unused_days), (f"{_PARTIAL}*", 1)):
                for path in self.folder.glob(pattern):
                    with suppress(FileNotFoundError):
                        if time.time() - path.stat().st_mtime > days * _DAY_S:
                            path.unlink()

    def _plan(self, key: str) -> Path:
        return self.folder / f"{key}.plan"

    def _timings(self, version: str, chip: str) -> Path:
        return self.folder / f"timings-{version}-{chip}"

    def _read(self, path: Path) -> bytes | None:
        """What is there, which is in use from now on."""
        with self._usable():
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                return None
            with suppress(OSError):  # of a folder that others write
                os.utime(path)
            return data

    def _write(self, path: Path, data: bytes) -> None:
        with self._usable():
            descriptor, partial = tempfile.mkstemp(dir=self.folder, prefix=_PARTIAL)
            try:
                with open(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(descriptor)
                os.chmod(partial, 0o644)  # mkstemp's are its user's alone
                os.replace(partial, path)
            except BaseException:
                Path(partial).unlink(missing_ok=True)
                raise

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            raise UserError(
                f"{self.folder}: {err.strerror or err}: plans go there; engine.plan_cache names another folder"
            ) from err


def days_unused(kept: Kept) -> float:
    """Since it was last loaded or written."""
    return (time.time() - kept.used_s) / _DAY_S
