"""An engine that can do nothing is told from a text that it can't do."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.rows import PackedRows
from stages.encode import EncodeStage

POISON = 7


class BrokenEngine:
    """Refuses everything, or only batches with a poison token; or answers NaN."""

    def __init__(self, *, always: bool, nan: bool = False) -> None:
        self.widths = {"vector": 2}
        self._always = always
        self._nan = nan

    def run(self, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
        if self._always or (rows.input_ids == POISON).any():
            if self._nan:
                return {"vector": np.full((len(rows.row), 2), np.nan, np.float32)}
            raise EngineError("no")
        return {"vector": np.ones((len(rows.row), 2), np.float32)}

    def close(self) -> None:
        pass


def a_stage(*, always: bool, nan: bool = False) -> EncodeStage:
    return EncodeStage([BrokenEngine(always=always, nan=nan)], row_length=16, max_length=16)


@pytest.mark.parametrize("nan", [False, True])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_where_even_a_harmless_window_fails_no_text_is_blamed(count: int, nan: bool) -> None:
    with pytest.raises(EngineError):
        a_stage(always=True, nan=nan)([np.array([1, 2], np.int32)] * count)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_batch_of_nothing_but_poison_is_the_texts_fault(count: int) -> None:
    encoded = a_stage(always=False)([np.array([1, POISON], np.int32)] * count)
    assert sorted(encoded.failed) == list(range(count))
