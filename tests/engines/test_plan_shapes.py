"""Which plans there are, and how a micro-batch is cut into what fits them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.plan_shapes import PlanShape, parts, plan_shapes
from stages.packing import pack_rows


def test_from_one_text_to_a_full_micro_batch() -> None:
    shapes = plan_shapes(row_length=128, max_length=128, max_batch_tokens=16_384)
    assert [str(shape) for shape in shapes] == ["1x128", "16x128", "128x128"]


def test_texts_longer_than_a_row_have_rows_of_their_own() -> None:
    shapes = plan_shapes(row_length=128, max_length=300, max_batch_tokens=16_384)
    assert [str(shape) for shape in shapes] == ["1x128", "16x128", "128x128", "1x384", "21x384"]


def test_a_small_micro_batch_has_one_shape() -> None:
    assert [str(shape) for shape in plan_shapes(row_length=64, max_length=32, max_batch_tokens=64)] == ["1x64"]


@given(
    lengths=st.lists(st.integers(1, 96), min_size=1, max_size=120),
    rows=st.sampled_from([1, 2, 5]),
    long_rows=st.sampled_from([1, 2]),
)
def test_every_text_is_in_one_part_that_fits(lengths: list[int], rows: int, long_rows: int) -> None:
    shapes = [
        PlanShape(row_length=32, rows=1),
        PlanShape(row_length=32, rows=rows),
        PlanShape(row_length=96, rows=long_rows),
    ]
    windows = [np.full(length, 1 + index % 40, np.int32) for index, length in enumerate(lengths)]
    for group in pack_rows(windows, row_length=32):
        seen: list[int] = []
        for shape, part, texts in parts(group.rows, sorted(shapes)):
            assert part.input_ids.shape[0] <= shape.rows
            assert part.input_ids.shape[1] <= shape.row_length
            assert part.row.size == len(texts) <= shape.texts
            for text, row, slot in zip(texts, part.row, part.slot, strict=True):
                mine = part.input_ids[row][part.segment_ids[row] == slot + 1]
                assert mine.tolist() == windows[group.windows[text]].tolist()
            seen += texts.tolist()
        assert sorted(seen) == list(range(len(group.windows)))


def test_the_smallest_that_fits_is_taken() -> None:
    shapes = plan_shapes(row_length=128, max_length=128, max_batch_tokens=16_384)
    for texts, wanted in (
        (1, ["1x128"]),
        (2, ["16x128"]),
        (16, ["16x128"]),
        (17, ["16x128", "1x128"]),  # instead of a full one
        (60, ["16x128"] * 4),
        (65, ["128x128"]),
        (130, ["128x128", "16x128"]),
    ):
        [group] = pack_rows([np.ones(100, np.int32)] * texts, row_length=128)
        assert [str(shape) for shape, _, _ in parts(group.rows, shapes)] == wanted


def test_more_texts_than_a_plan_answers_are_cut() -> None:
    shape = PlanShape(row_length=32, rows=8)
    [group] = pack_rows([np.ones(1, np.int32)] * 256, row_length=32)
    assert shape.texts == 32
    assert [part.row.size for _, part, _ in parts(group.rows, [shape])] == [32] * 8


def test_rows_longer_than_any_plan_are_the_caller_s_mistake() -> None:
    [group] = pack_rows([np.ones(64, np.int32)], row_length=64)
    with pytest.raises(IndexError):
        list(parts(group.rows, [PlanShape(row_length=32, rows=1)]))
