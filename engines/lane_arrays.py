"""Which arrays a shape has, how a micro-batch gets into them and its answers out: what lanes know of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from engines.plan_shapes import PlanShape
from engines.rows import PackedRows

# Name -> shape and dtype.
Layout = dict[str, tuple[tuple[int, ...], DTypeLike]]
Arrays = Mapping[str, NDArray[Any]]

_ROW_INPUTS = ("input_ids", "position_ids", "segment_ids")


class LaneArrays(Protocol):
    """Arrays of a plan's inputs and of those of its outputs that are read."""

    def inputs(self, shape: PlanShape) -> Layout: ...

    def outputs(self, shape: PlanShape) -> Layout:
        """A batch is answered by the first `count` of each."""
        ...

    def count(self, name: str, rows: PackedRows) -> int:
        """Of an output's array: N, or of tokens R."""
        ...

    def prepare(self, inputs: Arrays) -> None:
        """Once, what is the same in every batch; all is 0 before."""
        ...

    def fill(self, inputs: Arrays, rows: PackedRows) -> None:
        """What it leaves as it was is of an earlier batch, and its answers are nobody's."""
        ...

    def answers(self, outputs: Arrays, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
        """As `engines.rows.Engine.run`, in memory of its own, from the first of the arrays."""
        ...


class PackedArrays:
    """Implements `LaneArrays` for plans of `engines.graph`'s graphs, whose outputs are the answers."""

    def __init__(self, widths: Mapping[str, int], of_tokens: frozenset[str] = frozenset()) -> None:
        self._widths = dict(widths)
        self._of_tokens = of_tokens

    def inputs(self, shape: PlanShape) -> Layout:
        return {name: (size, np.int32) for name, size in shape.inputs().items()}

    def outputs(self, shape: PlanShape) -> Layout:
        tokens, texts = (shape.rows, shape.row_length), (shape.texts,)
        return {
            name: ((*(tokens if name in self._of_tokens else texts), width), np.float32)
            for name, width in self._widths.items()
        }

    def count(self, name: str, rows: PackedRows) -> int:
        return len(rows.input_ids) if name in self._of_tokens else rows.row.size

    def prepare(self, inputs: Arrays) -> None:
        inputs["slots"][:] = np.arange(1, inputs["slots"].size + 1)

    def fill(self, inputs: Arrays, rows: PackedRows) -> None:
        count, length = rows.input_ids.shape
        for name in _ROW_INPUTS:
            array = inputs[name]
            array[:count, :length] = getattr(rows, name)
            array[:count, length:] = 0
        inputs["texts"][: rows.row.size] = rows.row * np.int32(inputs["slots"].size) + rows.slot

    def answers(self, outputs: Arrays, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
        row_length = rows.input_ids.shape[1]
        answers: dict[str, NDArray[np.float32]] = {}
        for name, array in outputs.items():
            found = array[: self.count(name, rows)]
            answers[name] = (found[:, :row_length] if name in self._of_tokens else found).copy()
        return answers
