"""Sentence embeddings: the pooled vector, cut short, normalised, in fewer bits, as sentence-transformers does it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.errors import BadRecord, Reason
from schemas.parameters import EmbeddingPrecision, Parameters, asked_or
from schemas.results import Output
from stages.tasks import answers_as_asked

# Finer than float32 at the size of a normalised vector's numbers (2**-24 of 0.05 is 3e-9), and half the JSON of the
# shortest float64.
DECIMALS = 8


class SentenceEmbedding:
    """The pooled vector of `width` numbers.

    normalize     whether the model's vectors have length 1: a text's windows are brought back to it
    truncate_dim  how many of its first numbers are kept (Matryoshka)
    renormalize   whether what is kept gets length 1 again; a request's `normalize` asks for that
    precision     of the numbers, by sentence-transformers' names (`quantize_embeddings`), and float16: `binary` and
                  `ubinary` are signs, eight to a number
    ranges        (2, width), the least and the largest value of each number, for int8 and uint8
    """

    def __init__(
        self,
        *,
        width: int,
        normalize: bool,
        truncate_dim: int | None = None,
        renormalize: bool = False,
        precision: EmbeddingPrecision = "float32",
        ranges: NDArray[np.float32] | None = None,
    ) -> None:
        self._width = width
        self._normalize = normalize
        self._truncate_dim = truncate_dim
        self._renormalize = renormalize
        self._precision: EmbeddingPrecision = precision
        self._ranges = ranges

    def __call__(self, rows: NDArray[np.float64], asked: Sequence[Parameters | None] = ()) -> list[Output]:
        if rows.shape[1] != self._width:
            raise BadRecord(Reason.BAD_PACK, f"a vector of {rows.shape[1]} numbers, the model's has {self._width}")
        if self._normalize:
            rows = _unit(rows)
        return answers_as_asked(rows, asked, self._answers)

    def _answers(self, rows: NDArray[np.float64], asked: Parameters) -> list[Output]:
        kept = asked_or(asked.truncate_dim, self._truncate_dim)
        if kept is not None and kept > self._width:
            raise BadRecord(
                Reason.BAD_REQUEST, f"parameters.truncate_dim: {kept}; the model's vectors have {self._width} numbers"
            )
        if self._normalize and asked.normalize is False:
            raise BadRecord(
                Reason.BAD_REQUEST, "parameters.normalize: false; the model's own vectors have length 1: leave it out"
            )
        rows = rows[:, :kept]
        if asked_or(asked.normalize, self._renormalize):
            rows = _unit(rows)
        return [*self._in_bits(rows, asked_or(asked.precision, self._precision))]

    def _in_bits(self, rows: NDArray[np.float64], precision: EmbeddingPrecision) -> list[list[float]]:
        numbers: list[list[float]]
        match precision:
            case "float32":
                numbers = rows.round(DECIMALS).tolist()
            case "float16":
                most = float(np.finfo(np.float16).max)
                numbers = rows.clip(-most, most).astype(np.float16).astype(np.float64).round(DECIMALS).tolist()
            case "binary":
                # ubinary - 128, as sentence-transformers has it, and not its two's complement.
                numbers = (np.packbits(rows > 0, axis=1).astype(np.int16) - 128).tolist()
            case "ubinary":
                numbers = np.packbits(rows > 0, axis=1).tolist()
            case "int8" | "uint8":
                numbers = self._scaled(rows, lowest=-128 if precision == "int8" else 0)
        return numbers

    def _scaled(self, rows: NDArray[np.float64], *, lowest: int) -> list[list[float]]:
        if self._ranges is None:
            raise BadRecord(Reason.BAD_REQUEST, "parameters.precision: int8 and uint8 need the ensemble file's ranges")
        low, high = self._ranges[:, : rows.shape[1]].astype(np.float64)
        steps = np.maximum(high - low, np.finfo(np.float32).tiny) / 255
        # What lies outside of the ranges is as far as they go, where NumPy's cast would begin anew at the other end.
        scaled = np.trunc(((rows - low) / steps + lowest).clip(lowest, lowest + 255))
        numbers: list[list[float]] = scaled.astype(np.int64).tolist()
        return numbers


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    vectors: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1e-12)
    return vectors
