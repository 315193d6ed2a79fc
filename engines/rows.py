"""Packed rows: the one input layout of every engine.

Texts lie end to end in R rows of S tokens; attention is masked where segment numbers differ, so that nothing is
padded but the ends of rows. A text is addressed by its row and its slot (its place among the row's texts).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError

Number = TypeVar("Number", bound=np.generic)

# No text has as many tokens.
SECOND_TYPE = 1 << 15


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRows:
    """One micro-batch. Every array is C-contiguous int32.

    input_ids     (R, S)  token ids, 0 where nothing lies
    position_ids  (R, S)  place of the token in its text, from 0; SECOND_TYPE higher in the second text of a pair
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

    @property
    def of_tokens(self) -> frozenset[str]:
        """Names of the outputs that are of each token, and not of each text."""
        ...

    def run(self, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
        """Output name -> float32 (N, W), in the order of `rows.row`; not always finite, which the caller looks for.
        An output of tokens is (R, S, W), and where no text lies it may hold anything.

        Raises EngineError when the batch can't be computed, EngineBusy when it may be a little later.
        """
        ...

    def close(self) -> None:
        """Lets go of memory and threads; nothing may be run afterwards."""
        ...


def one_token() -> PackedRows:
    """The smallest rows there are, of token 0."""
    zero = np.zeros((1, 1), np.int32)
    first = np.zeros(1, np.int32)
    return PackedRows(input_ids=zero, position_ids=zero, segment_ids=zero + 1, row=first, slot=first, slots=1)


def checked_rows(rows: PackedRows, *, vocab_size: int, max_positions: int, types: int) -> PackedRows:
    """The rows as a model's tables are read: positions of the second type behind all of the first, `max_positions`
    further, or among them where the model knows one type only.

    Asserts the shapes, and that every id lies in the model's tables: outside of them ONNX Runtime fails, and others
    read a zero or whatever lies beyond. Raises EngineError.
    """
    shape = rows.input_ids.shape
    assert rows.position_ids.shape == rows.segment_ids.shape == shape
    assert rows.row.shape == rows.slot.shape
    assert rows.row.size > 0
    if not 0 <= int(rows.input_ids.min()) <= int(rows.input_ids.max()) < vocab_size:
        raise EngineError(f"a token id lies outside the model's vocabulary of {vocab_size}: wrong tokenizer?")
    positions = rows.position_ids
    if 0 <= int(positions.min()) <= int(positions.max()) < max_positions:
        return rows
    second = positions >= SECOND_TYPE
    places = positions - SECOND_TYPE * second
    if not 0 <= int(places.min()) <= int(places.max()) < max_positions:
        raise EngineError(f"a text is longer than the model's {max_positions} positions")
    of_table = places + max_positions * second if types > 1 else places
    return replace(rows, position_ids=of_table.astype(np.int32))


def text_places(rows: PackedRows) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where each text begins, in all rows end to end, and how many tokens it has, both (N,)."""
    inside = rows.segment_ids[rows.row] == (rows.slot + 1)[:, np.newaxis]  # (N, S)
    row_length = rows.segment_ids.shape[1]
    return rows.row * row_length + inside.argmax(axis=1), inside.sum(axis=1)


def tokens_of_texts(answer: NDArray[Number], rows: PackedRows) -> list[NDArray[Number]]:
    """An answer of tokens (R, S, W), by text: views (its tokens, W), in the order of `rows.row`."""
    flat = answer.reshape(-1, answer.shape[-1])
    begins, lengths = text_places(rows)
    ends = begins + lengths
    return [flat[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]


def empty_answers(
    rows: PackedRows, widths: Mapping[str, int], of_tokens: frozenset[str]
) -> dict[str, NDArray[np.float32]]:
    """What `Engine.run` answers, to be filled in."""
    return {
        # What nobody fills in is read by nobody.
        name: np.empty((*rows.input_ids.shape, width) if name in of_tokens else (rows.row.size, width), np.float32)
        for name, width in widths.items()
    }


def graph_inputs(rows: PackedRows) -> dict[str, NDArray[np.int32]]:
    """What `engines.graph` reads, by name."""
    return {
        "input_ids": rows.input_ids,
        "position_ids": rows.position_ids,
        "segment_ids": rows.segment_ids,
        "slots": np.arange(1, rows.slots + 1, dtype=np.int32),
        "texts": rows.row * np.int32(rows.slots) + rows.slot,
    }
