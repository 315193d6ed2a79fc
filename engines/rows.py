"""Packed rows: the one input layout of every engine.

Texts lie end to end in R rows of S tokens; attention is masked where segment numbers differ, so that nothing is
padded but the ends of rows. A text is addressed by its row and its slot (its place among the row's texts).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRows:
    """One micro-batch. Every array is C-contiguous int32.

    input_ids     (R, S)  token ids, 0 where nothing lies
    position_ids  (R, S)  place of the token in its text, from 0
    segment_ids   (R, S)  slot of the token's text plus 1; 0 where nothing lies
    row, slot     (N,)    where each of the N texts lies
    slots                 P, the most texts in a row
    """

    input_ids: NDArray[np.int32]
    position_ids: NDArray[np.int32]
    segment_ids: NDArray[np.int32]
    row: NDArray[np.int32]
    slot: NDArray[np.int32]
    slots: int

    @property
    def tokens(self) -> int:
        """Real tokens."""
        return int(np.count_nonzero(self.segment_ids))

    @property
    def padded_tokens(self) -> int:
        """R times S: what the engine computes."""
        return self.segment_ids.size


class Engine(Protocol):
    """Computes packed rows. `run` may be called from several threads at once."""

    @property
    def widths(self) -> Mapping[str, int]:
        """Output name -> W."""
        ...

    def run(self, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
        """Output name -> float32 (N, W), in the order of `rows.row`.

        Raises EngineError when the batch can't be computed.
        """
        ...

    def close(self) -> None:
        """Lets go of memory and threads; nothing may be run afterwards."""
        ...
