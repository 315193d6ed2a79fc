"""An engine of lanes: what computes one batch of a plan's shape at a time, on whichever device is free."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineLost
from engines.plan_shapes import PlanShape, parts
from engines.rows import PackedRows, checked_rows, empty_answers

# Of each instance of a GPU: one batch is computed and one is queued behind it.
LANES_PER_INSTANCE = 2


class Lane(Protocol):
    """Computes one part at a time."""

    def run(self, shape: PlanShape, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
        """As `engines.rows.Engine.run`. Raises EngineError, EngineLost."""
        ...

    def close(self) -> None:
        """Lets go of its memory, as far as the device still answers."""
        ...


class LaneEngine:
    """Implements `engines.rows.Engine` over lanes. Once one is lost nothing is computed any more. `on_close` lets go of
    what the lanes share, after them."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        shapes: Sequence[PlanShape],
        widths: Mapping[str, int],
        *,
        of_tokens: frozenset[str] = frozenset(),
        vocab_size: int,
        max_positions: int,
        types: int,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self._lanes = tuple(lanes)
        self._shapes = sorted(shapes)
        self._widths = dict(widths)
        self._of_tokens = of_tokens
        self._vocab_size = vocab_size
        self._max_positions = max_positions
        self._types = types
        self._on_close = on_close
        self._lost: EngineLost | None = None
        self._free: SimpleQueue[Lane] = SimpleQueue()
        for lane in lanes:
            self._free.put(lane)

    @property
    def widths(self) -> Mapping[str, int]:
        return self._widths

    @property
    def of_tokens(self) -> frozenset[str]:
        return self._of_tokens

    def run(self, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
        rows = checked_rows(rows, vocab_size=self._vocab_size, max_positions=self._max_positions, types=self._types)
        pieces = [(self._run(shape, part), part, texts) for shape, part, texts in parts(rows, self._shapes)]
        if len(pieces) == 1:
            return pieces[0][0]
        answers = empty_answers(rows, self._widths, self._of_tokens)
        for piece, part, texts in pieces:
            first = rows.row[texts[0]] - part.row[0]
            for name, answer in piece.items():
                mine = slice(first, first + len(part.input_ids)) if name in self._of_tokens else texts
                answers[name][mine] = answer
        return answers

    def close(self) -> None:
        for lane in self._lanes:
            lane.close()
        self._lanes = ()
        self._free = SimpleQueue()
        self._on_close()

    def _run(self, shape: PlanShape, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
        # Unbounded in name only: every lane comes back after one micro-batch.
        lane = self._free.get()
        try:
            if self._lost is not None:
                raise self._lost
            return lane.run(shape, rows)
        except EngineLost as err:
            self._lost = err
            raise
        finally:
            self._free.put(lane)
