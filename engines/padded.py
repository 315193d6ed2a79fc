"""Rows of one text each, for a graph whose attention knows no segments: padded, in a few lengths.

What is packed is laid out anew: texts of about one length together, each at the beginning of a row of the next length
that there is. The work is that of padding, as with any engine that does not pack.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from engines.plan_shapes import PlanShape
from engines.rows import Engine, PackedRows


class PaddedEngine:
    """Implements `engines.rows.Engine` over one that wants rows of one text.

    `lengths` are the rows' (S), sorted; a text fits at least the last. At most `max_tokens` (R times S) are computed at
    a time.
    """

    def __init__(self, engine: Engine, *, lengths: Sequence[int], max_tokens: int) -> None:
        self._engine = engine
        self._lengths = np.array(lengths)
        self._max_tokens = max_tokens

    @classmethod
    def of_shapes(cls, engine: Engine, shapes: Collection[PlanShape]) -> Self:
        """For an engine whose plans have these shapes."""
        lengths = sorted({shape.row_length for shape in shapes})
        return cls(engine, lengths=lengths, max_tokens=max(shape.tokens for shape in shapes))

    @property
    def widths(self) -> Mapping[str, int]:
        return self._engine.widths

    def run(self, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
        answers = {name: np.empty((rows.row.size, width), np.float32) for name, width in self.widths.items()}
        for texts, padded in self._laid_out(rows):
            for name, answer in self._engine.run(padded).items():
                answers[name][texts] = answer
        return answers

    def close(self) -> None:
        self._engine.close()

    def _laid_out(self, rows: PackedRows) -> Iterator[tuple[NDArray[np.intp], PackedRows]]:
        begins, lengths = _places(rows)
        choices = np.searchsorted(self._lengths, lengths)
        for choice in np.unique(choices):
            length = int(self._lengths[choice])
            alike = np.flatnonzero(choices == choice)
            step = max(1, self._max_tokens // length)
            for first in range(0, alike.size, step):
                texts = alike[first : first + step]
                yield texts, _padded(rows, begins[texts], lengths[texts], length)


def _places(rows: PackedRows) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where each text begins, in all rows end to end, and how many tokens it has, both (N,)."""
    inside = rows.segment_ids[rows.row] == (rows.slot + 1)[:, np.newaxis]  # (N, S)
    row_length = rows.segment_ids.shape[1]
    return rows.row * row_length + inside.argmax(axis=1), inside.sum(axis=1)


def _padded(rows: PackedRows, begins: NDArray[np.intp], lengths: NDArray[np.intp], row_length: int) -> PackedRows:
    place = np.arange(row_length)
    real = place < lengths[:, np.newaxis]  # (N, S)
    flat = np.minimum(begins[:, np.newaxis] + place, rows.input_ids.size - 1)
    count = np.arange(len(begins), dtype=np.int32)
    return PackedRows(
        input_ids=np.where(real, rows.input_ids.ravel()[flat], 0).astype(np.int32),
        position_ids=np.where(real, rows.position_ids.ravel()[flat], 0).astype(np.int32),
        segment_ids=real.astype(np.int32),
        row=count,
        slot=np.zeros_like(count),
        slots=1,
    )
