"""Lay windows of tokens end to end into rows, best fit decreasing.

Operations wanted: place N windows (usually 64, mean 35 tokens) into as few rows as possible, in Python, in far less
time than the engine needs for them (100 us against 100 ms on a CPU). Best fit decreasing wastes at most 11/9 of the
optimum plus one row (Johnson 1974, "Worst-case performance bounds for simple one-dimensional packing algorithms");
on natural lengths what is lost is the end of the last row.

A window longer than `row_length` opens a row of the next multiple of it, which short windows then fill. Rows of one
length make one PackedRows. Where nothing reaches the end of its rows, they are shortened to a multiple of
`ROW_QUANTUM`: a text alone costs its own tokens and not a whole row.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engines.rows import SECOND_TYPE, PackedRows
from schemas.packs import SECOND_TEXT

# 8 floats are one AVX vector; finer lengths gain nothing measurable on a CPU.
ROW_QUANTUM = 8

_TYPE_BIT = SECOND_TEXT.bit_length() - 1


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Rows of one length, and which of the windows (by index) lie in them, in the order of `rows.row`."""

    rows: PackedRows
    windows: list[int]


@dataclass(slots=True)
class _Row:
    length: int
    windows: list[int] = field(default_factory=list)
    used: int = 0


def pack_rows(windows: Sequence[NDArray[np.int32]], *, row_length: int) -> list[RowGroup]:
    """Every window in exactly one group, at exactly one place."""
    lengths = [len(window) for window in windows]
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    by_length: dict[int, list[_Row]] = {}
    for row in _tightened(lengths, order, _place(lengths, order, row_length)):
        by_length.setdefault(row.length, []).append(row)
    return [_layout(rows, windows) for _, rows in sorted(by_length.items())]


def _place(lengths: Sequence[int], order: Sequence[int], row_length: int) -> list[_Row]:
    """`order` has the longest first."""
    rows: list[_Row] = []
    free: list[tuple[int, int]] = []  # (tokens left, row number), sorted: the first that is large enough fits best
    for index in order:
        tokens = lengths[index]
        at = bisect_left(free, (tokens, 0))
        if at < len(free):
            left, number = free.pop(at)
        else:
            number = len(rows)
            rows.append(_Row(length=-(-tokens // row_length) * row_length))
            left = rows[number].length
        rows[number].windows.append(index)
        rows[number].used += tokens
        if left > tokens:
            insort(free, (left - tokens, number))
    return rows


def _tightened(lengths: Sequence[int], order: Sequence[int], rows: list[_Row]) -> list[_Row]:
    """The same number of rows, as short as the windows let them be: the unused end of the last row is shared out.

    Only where all rows have one length; among longer ones short windows fill the ends anyway.
    """
    if not rows or any(row.length != rows[0].length for row in rows):
        return rows
    shortest = max(lengths[order[0]], -(-sum(lengths) // len(rows)))
    for length in range(-(-shortest // ROW_QUANTUM) * ROW_QUANTUM, max(row.used for row in rows), ROW_QUANTUM):
        shorter = _place(lengths, order, length)
        if len(shorter) == len(rows):
            return shorter
    return rows


def _layout(rows: list[_Row], windows: Sequence[NDArray[np.int32]]) -> RowGroup:
    used = max(row.used for row in rows)
    length = -(-used // ROW_QUANTUM) * ROW_QUANTUM
    input_ids = np.zeros((len(rows), length), np.int32)
    position_ids = np.zeros((len(rows), length), np.int32)
    segment_ids = np.zeros((len(rows), length), np.int32)
    order: list[int] = []
    row_of: list[int] = []
    slot_of: list[int] = []
    positions = np.arange(length, dtype=np.int32)
    for number, row in enumerate(rows):
        start = 0
        for slot, index in enumerate(row.windows):
            window = windows[index]
            end = start + len(window)
            input_ids[number, start:end] = window
            position_ids[number, start:end] = positions[: len(window)]
            segment_ids[number, start:end] = slot + 1
            order.append(index)
            row_of.append(number)
            slot_of.append(slot)
            start = end
    types = input_ids >> _TYPE_BIT
    if types.any():
        position_ids += types * np.int32(SECOND_TYPE)
        input_ids -= types * np.int32(SECOND_TEXT)
    return RowGroup(
        PackedRows(
            input_ids=input_ids,
            position_ids=position_ids,
            segment_ids=segment_ids,
            row=np.array(row_of, np.int32),
            slot=np.array(slot_of, np.int32),
            slots=max(len(row.windows) for row in rows),
        ),
        order,
    )
