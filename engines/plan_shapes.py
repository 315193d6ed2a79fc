"""The fixed shapes that a model's plans are built for, and which of them a micro-batch takes.

A plan of fixed shapes is the fastest, and each takes seconds to minutes to build, so there are few: rows of the usual
length in three counts, from one text alone to a full micro-batch, and longer ones where texts may be longer than a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from engines.rows import PackedRows

# Texts are 27 tokens long in the mean, and no text that is worth a model's time is shorter than 8: where more of them
# fill the rows than this allows for, the rows are computed in parts.
_TOKENS_PER_TEXT = 8
# Below it fewer tokens take no less time on an H100, so that a batch is not cut into smaller ones.
_KNEE_TOKENS = 2048
# Of padded rows.
_SHORTEST = 32
# Between a full micro-batch and one row: what a batch that is not full takes, instead of the time of a full one.
_SMALLER = 8


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class PlanShape:
    """`rows` rows of `row_length` tokens. Ordered by what they cost."""

    row_length: int
    rows: int

    @property
    def tokens(self) -> int:
        return self.rows * self.row_length

    @property
    def texts(self) -> int:
        """How many may lie in them together. One row may be full of texts of one token."""
        return max(self.row_length, self.tokens // _TOKENS_PER_TEXT)

    def inputs(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the graph's inputs, by name."""
        tokens = (self.rows, self.row_length)
        return {
            "input_ids": tokens,
            "position_ids": tokens,
            "segment_ids": tokens,
            "slots": (self.row_length,),
            "texts": (self.texts,),
        }

    def __str__(self) -> str:
        return f"{self.rows}x{self.row_length}"


def plan_shapes(*, row_length: int, max_length: int, max_batch_tokens: int) -> list[PlanShape]:
    """For micro-batches of at most so many tokens, in rows of `row_length`; texts up to `max_length` tokens."""
    full = max(1, max_batch_tokens // row_length)
    shapes = {PlanShape(row_length=row_length, rows=rows) for rows in (1, -(-full // _SMALLER), full)}
    if max_length > row_length:
        long = -(-max_length // row_length) * row_length
        few = max(1, max_batch_tokens // long // 2)
        shapes |= {PlanShape(row_length=long, rows=rows) for rows in (1, few)}
    return sorted(shapes)


def padded_shapes(*, max_length: int, max_batch_tokens: int) -> list[PlanShape]:
    """For rows of one text each, up to `max_length` tokens: lengths that double, so that a text is padded to less than
    twice its own; of each a full micro-batch, and an eighth of one."""
    return sorted(
        PlanShape(row_length=length, rows=rows)
        for length in padded_lengths(max_length)
        for rows in row_counts(length, max_batch_tokens)
    )


def padded_lengths(max_length: int) -> list[int]:
    """Of padded rows, sorted."""
    lengths = [min(_SHORTEST, max_length)]
    while lengths[-1] < max_length:
        lengths.append(min(2 * lengths[-1], max_length))
    return lengths


def row_counts(row_length: int, max_batch_tokens: int) -> list[int]:
    """Of padded rows of so many tokens, sorted."""
    full = max(1, max_batch_tokens // row_length)
    return sorted({-(-full // _SMALLER), full})


def parts(rows: PackedRows, shapes: Sequence[PlanShape]) -> Iterator[tuple[PlanShape, PackedRows, NDArray[np.intp]]]:
    """Rows cut into what fits a shape: the shape, its rows, and which of the texts they are.

    At least one of the sorted shapes has rows long enough.
    """
    longest = rows.input_ids.shape[1]
    fitting = [shape for shape in shapes if shape.row_length >= longest]
    row_length = fitting[0].row_length
    fitting = [shape for shape in fitting if shape.row_length == row_length]
    everything = np.arange(rows.row.size)
    yield from _cut(rows, everything, fitting)


def _cut(
    rows: PackedRows, texts: NDArray[np.intp], shapes: Sequence[PlanShape]
) -> Iterator[tuple[PlanShape, PackedRows, NDArray[np.intp]]]:
    count = len(rows.input_ids)
    fitting = next((shape for shape in shapes if count <= shape.rows and len(texts) <= shape.texts), None)
    middle = _cut_at(count, fitting, shapes)
    if fitting is not None and middle is None:
        yield fitting, rows, texts
        return
    # A single row's texts always fit.
    middle = middle or count // 2
    for first, last in ((0, middle), (middle, count)):
        mine = (rows.row >= first) & (rows.row < last)
        smaller = replace(
            rows,
            input_ids=rows.input_ids[first:last],
            position_ids=rows.position_ids[first:last],
            segment_ids=rows.segment_ids[first:last],
            row=rows.row[mine] - np.int32(first),
            slot=rows.slot[mine],
        )
        if mine.any():
            yield from _cut(smaller, texts[mine], shapes)


def _cut_at(count: int, fitting: PlanShape | None, shapes: Sequence[PlanShape]) -> int | None:
    """How many of the rows go alone, where that is better: a full plan's, or a smaller plan's again and again."""
    if count > shapes[-1].rows:
        return shapes[-1].rows
    for smaller in reversed(shapes):
        if fitting is None or smaller >= fitting or smaller.tokens < _KNEE_TOKENS:
            continue
        if -(-count // smaller.rows) * smaller.tokens <= fitting.tokens // 2:
            return smaller.rows
    return None
