"""Arrays of a finished plan: padded rows of one text in, and what it answers pooled, normalised and judged here.

It is done on the processor, as the plan's output may be anybody's; half precision becomes float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint import Pooling
from engines.finished_plan import FinishedPlan
from engines.heads import ModelOutput, TokenOutput
from engines.lane_arrays import Arrays, Layout
from engines.numpy_outputs import finished, pooled
from engines.plan_shapes import PlanShape
from engines.rows import PackedRows


class FinishedArrays:
    """Implements `engines.lane_arrays.LaneArrays`. Row n holds text n. Its `position_ids`, where the plan asks for
    them, count from `first_position`; in rows those of the second token type are `max_positions` higher
    (`engines.rows.checked_rows`)."""

    def __init__(
        self, plan: FinishedPlan, outputs: Sequence[ModelOutput], *, max_positions: int, first_position: int
    ) -> None:
        self._plan = plan
        self._outputs = tuple(outputs)
        self._max_positions = max_positions
        self._first_position = first_position

    def inputs(self, shape: PlanShape) -> Layout:
        return {name: ((shape.rows, shape.row_length), dtype) for name, dtype in self._plan.inputs.items()}

    def outputs(self, shape: PlanShape) -> Layout:
        tokens = (shape.row_length,) if self._plan.per_token else ()
        return {self._plan.output: ((shape.rows, *tokens, self._plan.width), self._plan.output_type)}

    def count(self, name: str, rows: PackedRows) -> int:  # noqa: ARG002 - of tokens or not, a row is a text's
        return rows.row.size

    def prepare(self, inputs: Arrays) -> None:
        # A row that no text has had yet is of one token: attention to none would be 0 / 0.
        inputs["attention_mask"][:, 0] = 1

    def fill(self, inputs: Arrays, rows: PackedRows) -> None:
        count, length = rows.input_ids.shape
        assert rows.row.size == count, "a row holds one text"
        types, places = np.divmod(rows.position_ids, self._max_positions)
        values = {
            "input_ids": rows.input_ids,
            "attention_mask": rows.segment_ids,  # of the one slot it is 1
            "token_type_ids": types,
            "position_ids": places + self._first_position,
        }
        beyond = {"position_ids": self._first_position}
        for name, array in inputs.items():
            array[:count, :length] = values[name]
            array[:count, length:] = beyond.get(name, 0)

    def answers(self, outputs: Arrays, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
        found = outputs[self._plan.output][: rows.row.size]
        lengths = np.count_nonzero(rows.segment_ids, axis=1)
        pooled_by: dict[Pooling | None, NDArray[np.float64]] = {}
        answers: dict[str, NDArray[np.float32]] = {}
        with np.errstate(all="ignore"):  # what is not finite is its reader's to find
            for output in self._outputs:
                if isinstance(output, TokenOutput):
                    tokens = found[:, : rows.input_ids.shape[1]].astype(np.float64)
                    answers[output.name] = finished(output, tokens).astype(np.float32)
                    continue
                pooling = output.pooling if self._plan.per_token else None
                if pooling not in pooled_by:
                    pooled_by[pooling] = pooled(found, pooling, lengths)
                answers[output.name] = finished(output, pooled_by[pooling]).astype(np.float32)
        return answers
