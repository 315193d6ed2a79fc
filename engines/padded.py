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
from engines.rows import Engine, PackedRows, empty_answers, text_places

# On a processor: the rows' lengths, and how many tokens are computed at a time.
_LENGTH_STEP = 16
PADDED_TOKENS = 4096


def padded_lengths(longest: int) -> list[int]:
    """On a processor, where any length may be computed; texts have at most `longest` tokens."""
    return [*range(_LENGTH_STEP, longest, _LENGTH_STEP), longest]


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

    @property
    def of_tokens(self) -> frozenset[str]:
        return self._engine.of_tokens

    def run(self, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
        answers = empty_answers(rows, self.widths, self.of_tokens)
        for texts, padded, places in self._laid_out(rows):
            for name, answer in self._engine.run(padded).items():
                if name in self.of_tokens:
                    answers[name].reshape(-1, answer.shape[-1])[places] = answer[padded.segment_ids > 0]
                else:
                    answers[name][texts] = answer
        return answers

    def close(self) -> None:
        self._engine.close()

    def _laid_out(self, rows: PackedRows) -> Iterator[tuple[NDArray[np.intp], PackedRows, NDArray[np.intp]]]:
        """Texts, their padded rows, and where their tokens are in all rows end to end."""
        begins, lengths = text_places(rows)
        choices = np.searchsorted(self._lengths, lengths)
        for choice in np.unique(choices):
            length = int(self._lengths[choice])
            alike = np.flatnonzero(choices == choice)
            step = max(1, self._max_tokens // length)
            for first in range(0, alike.size, step):
                texts = alike[first : first + step]
                yield texts, *_padded(rows, begins[texts], lengths[texts], length)


def _padded(
    rows: PackedRows, begins: NDArray[np.intp], lengths: NDArray[np.intp], row_length: int
) -> tuple[PackedRows, NDArray[np.intp]]:
    place = np.arange(row_length)
    real = place < lengths[:, np.newaxis]  # (N, S)
    flat = np.minimum(begins[:, np.newaxis] + place, rows.input_ids.size - 1)
    count = np.arange(len(begins), dtype=np.int32)
    padded = PackedRows(
        input_ids=np.where(real, rows.input_ids.ravel()[flat], 0).astype(np.int32),
        position_ids=np.where(real, rows.position_ids.ravel()[flat], 0).astype(np.int32),
        segment_ids=real.astype(np.int32),
        row=count,
        slot=np.zeros_like(count),
        slots=1,
    )
    return padded, flat[real]
