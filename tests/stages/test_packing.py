"""Rows: every window lies in exactly one place, nothing overlaps, and next to nothing is padded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stages.packing import ROW_QUANTUM, RowGroup, pack_rows

Window = NDArray[np.int32]


def windows_of(lengths: Sequence[int]) -> list[Window]:
    """Windows whose tokens are all different, so that a token says where it belongs."""
    starts = np.cumsum([1, *lengths])
    return [np.arange(start, start + length, dtype=np.int32) for start, length in zip(starts, lengths, strict=False)]


def natural_lengths(seed: int, count: int = 64) -> list[int]:
    """Sentences: log-normal, mean 27 tokens, the shortest [CLS] word [SEP], the longest as long as a row."""
    sigma = 0.6
    lengths = np.random.default_rng(seed).lognormal(np.log(27) - sigma**2 / 2, sigma, count)
    return [int(length) for length in np.clip(lengths.round(), 3, 128)]


lengths = st.lists(st.integers(1, 40) | st.integers(1, 300), min_size=1, max_size=30)
row_lengths = st.sampled_from([8, 32, 128, 100])


def lies_at(group: RowGroup, place: int) -> tuple[NDArray[np.bool_], int]:
    """Which tokens of which row belong to the group's text number `place`."""
    row = int(group.rows.row[place])
    return group.rows.segment_ids[row] == group.rows.slot[place] + 1, row


@given(lengths=lengths, row_length=row_lengths)
def test_every_window_lies_in_exactly_one_place(lengths: list[int], row_length: int) -> None:
    groups = pack_rows(windows_of(lengths), row_length=row_length)
    assert sorted(index for group in groups for index in group.windows) == list(range(len(lengths)))
    for group in groups:
        places = list(zip(group.rows.row.tolist(), group.rows.slot.tolist(), strict=True))
        assert len(set(places)) == len(places) == len(group.windows)


@given(lengths=lengths, row_length=row_lengths)
def test_its_tokens_lie_there_in_order_numbered_from_zero(lengths: list[int], row_length: int) -> None:
    windows = windows_of(lengths)
    for group in pack_rows(windows, row_length=row_length):
        for place, index in enumerate(group.windows):
            mine, row = lies_at(group, place)
            assert group.rows.input_ids[row][mine].tolist() == windows[index].tolist()
            assert group.rows.position_ids[row][mine].tolist() == list(range(lengths[index]))
            assert np.ptp(np.flatnonzero(mine)) == lengths[index] - 1, "end to end"


@given(lengths=lengths, row_length=row_lengths)
def test_nothing_lies_anywhere_else(lengths: list[int], row_length: int) -> None:
    groups = pack_rows(windows_of(lengths), row_length=row_length)
    assert sum(group.rows.tokens for group in groups) == sum(lengths)
    for group in groups:
        empty = group.rows.segment_ids == 0
        assert not group.rows.input_ids[empty].any()
        assert not group.rows.position_ids[empty].any()
        for segments in group.rows.segment_ids:
            used = int((segments > 0).sum())
            assert segments[:used].all(), "what is empty is the end of a row"
            assert segments[:used].tolist() == sorted(segments[:used]), "slots from left to right"


@given(lengths=lengths, row_length=row_lengths)
def test_slots_of_a_row_are_counted_from_zero_without_a_gap(lengths: list[int], row_length: int) -> None:
    for group in pack_rows(windows_of(lengths), row_length=row_length):
        texts_of_row = Counter(group.rows.row.tolist())
        assert sorted(texts_of_row) == list(range(len(group.rows.input_ids)))
        for row, texts in texts_of_row.items():
            assert sorted(group.rows.slot[group.rows.row == row].tolist()) == list(range(texts))
        assert group.rows.slots == max(texts_of_row.values())


@given(lengths=lengths, row_length=row_lengths)
def test_a_row_is_no_longer_than_its_windows_need(lengths: list[int], row_length: int) -> None:
    for group in pack_rows(windows_of(lengths), row_length=row_length):
        longest = max(lengths[index] for index in group.windows)
        multiple = -(-longest // row_length) * row_length
        _, length = group.rows.input_ids.shape
        assert length <= -(-multiple // ROW_QUANTUM) * ROW_QUANTUM
        assert length % ROW_QUANTUM == 0
        used = int((group.rows.segment_ids > 0).sum(axis=1).max())
        assert length - used < ROW_QUANTUM, "rows end where the fullest of them does"


@given(lengths=lengths, row_length=row_lengths)
def test_engines_get_contiguous_int32(lengths: list[int], row_length: int) -> None:
    for group in pack_rows(windows_of(lengths), row_length=row_length):
        rows = group.rows
        assert rows.input_ids.shape == rows.position_ids.shape == rows.segment_ids.shape
        assert rows.row.shape == rows.slot.shape == (len(group.windows),)
        for array in (rows.input_ids, rows.position_ids, rows.segment_ids, rows.row, rows.slot):
            assert array.dtype == np.int32
            assert array.flags.c_contiguous


@given(lengths=lengths, row_length=row_lengths)
def test_no_two_rows_would_fit_into_one(lengths: list[int], row_length: int) -> None:
    """What best fit promises: a row is opened only where no open one has room."""
    for group in pack_rows(windows_of(lengths), row_length=row_length):
        multiple = -(-max(lengths[index] for index in group.windows) // row_length) * row_length
        used = sorted((group.rows.segment_ids > 0).sum(axis=1).tolist())
        assert len(used) < 2 or used[0] + used[1] > multiple


@given(lengths=lengths, row_length=row_lengths)
def test_the_same_windows_are_laid_the_same_way(lengths: list[int], row_length: int) -> None:
    once, again = (pack_rows(windows_of(lengths), row_length=row_length) for _ in range(2))
    assert [group.windows for group in once] == [group.windows for group in again]
    for one, other in zip(once, again, strict=True):
        np.testing.assert_array_equal(one.rows.input_ids, other.rows.input_ids)
        np.testing.assert_array_equal(one.rows.segment_ids, other.rows.segment_ids)


def test_a_text_alone_costs_its_own_tokens_and_not_a_row() -> None:
    [group] = pack_rows(windows_of([11]), row_length=128)
    assert group.rows.input_ids.shape == (1, 16)


def test_windows_longer_than_a_row_lie_in_rows_of_the_next_multiple_and_short_ones_fill_them() -> None:
    [short, long] = pack_rows(windows_of([130, 120, 128, 5]), row_length=128)
    assert short.rows.input_ids.shape == (1, 128)
    assert short.windows == [2]
    assert long.rows.input_ids.shape == (1, 256)
    assert long.windows == [0, 1, 3]


def test_no_windows_are_no_rows() -> None:
    assert pack_rows([], row_length=128) == []


@pytest.mark.parametrize("row_length", [64, 128])
def test_natural_lengths_are_padded_by_less_than_five_percent(row_length: int) -> None:
    tokens = padded_tokens = 0
    for seed in range(200):
        for group in pack_rows(windows_of(natural_lengths(seed)), row_length=row_length):
            tokens += group.rows.tokens
            padded_tokens += group.rows.padded_tokens
    assert 1 - tokens / padded_tokens < 0.05
