"""An engine that can do nothing is told from a text that it can't do."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.errors import EngineBusy, EngineError
from engines.rows import PackedRows
from schemas.errors import Reason
from stages.encode import _BUSY_WAITS_S, EncodeStage

POISON = 7


class BrokenEngine:
    """Refuses everything, or only batches with a poison token; or answers NaN."""

    def __init__(self, *, always: bool, nan: bool = False, raises: type[BaseException] = EngineError) -> None:
        self.widths = {"vector": 2}
        self.of_tokens: frozenset[str] = frozenset()
        self._always = always
        self._nan = nan
        self._raises = raises

    def run(self, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
        if self._always or (rows.input_ids == POISON).any():
            if self._nan:
                return {"vector": np.full((len(rows.row), 2), np.nan, np.float32)}
            raise self._raises("no")
        return {"vector": np.ones((len(rows.row), 2), np.float32)}

    def close(self) -> None:
        pass


class BusyEngine(BrokenEngine):
    """Is busy for so many calls; and with a poison token always."""

    def __init__(self, *, calls: float) -> None:
        super().__init__(always=False, raises=EngineBusy)
        self.left = calls

    def run(self, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
        self.left -= 1
        if self.left >= 0:
            raise EngineBusy("the device is full")
        return super().run(rows)


def a_stage(*, always: bool, nan: bool = False, raises: type[BaseException] = EngineError) -> EncodeStage:
    return EncodeStage([BrokenEngine(always=always, nan=nan, raises=raises)], row_length=16, max_length=16)


@pytest.mark.parametrize("nan", [False, True])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_where_even_a_harmless_window_fails_no_text_is_blamed(count: int, nan: bool) -> None:
    with pytest.raises(EngineError):
        a_stage(always=True, nan=nan)([np.array([1, 2], np.int32)] * count)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_batch_of_nothing_but_poison_is_the_texts_fault(count: int) -> None:
    encoded = a_stage(always=False)([np.array([1, POISON], np.int32)] * count)
    assert sorted(encoded.failed) == list(range(count))


def windows(count: int, *poisoned: int) -> list[NDArray[np.int32]]:
    return [np.array([1, POISON if each in poisoned else 2], np.int32) for each in range(count)]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_whatever_an_engine_raises_the_culprit_is_found_and_said(count: int) -> None:
    encoded = a_stage(always=False, raises=KeyError)(windows(count, 0))
    assert list(encoded.failed) == [0]
    assert encoded.failed[0].reason is Reason.STAGE_FAILED
    assert encoded.failed[0].message.startswith("KeyError: 'no' (test_engine_at_fault.py:")


def test_an_engine_that_raises_whatever_the_text_is_told() -> None:
    with pytest.raises(EngineError, match="fails whatever the text: KeyError: 'no'"):
        a_stage(always=True, raises=KeyError)(windows(3))


def test_memory_that_runs_out_and_what_is_no_exception_are_nobody_s_fault() -> None:
    for raises in (MemoryError, KeyboardInterrupt):
        with pytest.raises(raises):
            a_stage(always=False, raises=raises)(windows(3, 1))


def test_an_engine_that_dies_during_the_search_makes_nobody_guilty() -> None:
    class Dying(BrokenEngine):
        def run(self, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
            try:
                return super().run(rows)
            except EngineError:
                self._always = True
                raise

    with pytest.raises(EngineError):
        EncodeStage([Dying(always=False)], row_length=16, max_length=16)(windows(5, 0))


def test_a_busy_engine_is_waited_for() -> None:
    waited_s: list[float] = []
    engine = BusyEngine(calls=3)
    encoded = EncodeStage([engine], row_length=16, max_length=16, sleep=waited_s.append)(windows(5))
    assert not encoded.failed
    assert waited_s == list(_BUSY_WAITS_S[:3])


def test_one_that_stays_busy_is_at_fault_and_was_waited_for_once_for_all_halves() -> None:
    waited_s: list[float] = []
    with pytest.raises(EngineBusy):
        EncodeStage([BusyEngine(calls=np.inf)], row_length=16, max_length=16, sleep=waited_s.append)(windows(64))
    assert waited_s == list(_BUSY_WAITS_S)


@pytest.mark.parametrize("more", range(9))
def test_an_engine_that_was_busy_for_long_makes_nobody_guilty(more: int) -> None:
    """Free again when all waits are used, at whatever call of the search."""
    engine = BusyEngine(calls=1 + len(_BUSY_WAITS_S) + more)
    stage = EncodeStage([engine], row_length=16, max_length=16, sleep=lambda _: None)
    assert not stage(windows(5)).failed


def test_a_text_for_which_an_engine_is_always_busy_is_the_culprit() -> None:
    encoded = EncodeStage([BusyEngine(calls=0)], row_length=16, max_length=16, sleep=lambda _: None)(windows(5, 3))
    assert list(encoded.failed) == [3]
    assert encoded.failed[3].reason is Reason.ENGINE_FAILED
