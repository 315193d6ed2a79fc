"""Tasks: from a model's numbers to what `transformers.pipeline` answers.

A text that was cut into windows has one row of numbers a window. They are joined by the mean, weighted by tokens (of
vectors, or of logits before the softmax), and a normalised vector is brought back to length 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.errors import BadRecord, Reason
from schemas.results import Label, Output

# Finer than float32 at the size of a normalised vector's numbers (2**-24 of 0.05 is 3e-9), and half the JSON of the
# shortest float64.
_EMBEDDING_DECIMALS = 8


# `transformers`' names for its `function_to_apply`.
ScoreFunction = Literal["softmax", "sigmoid", "none"]


class Task(Protocol):
    """Turns joined rows (texts, W) into one output a text. Raises BadRecord where W is not its own."""

    def __call__(self, rows: NDArray[np.float64], /) -> list[Output]: ...


class SentenceEmbedding:
    """The pooled vector: a list of `width` floats."""

    def __init__(self, *, width: int, normalize: bool) -> None:
        self._width = width
        self._normalize = normalize

    def __call__(self, rows: NDArray[np.float64]) -> list[Output]:
        if rows.shape[1] != self._width:
            raise BadRecord(Reason.BAD_PACK, f"a vector of {rows.shape[1]} numbers, the model's has {self._width}")
        if self._normalize:
            rows = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1e-12)
        vectors: list[list[float]] = rows.round(_EMBEDDING_DECIMALS).tolist()
        return [*vectors]


class TextClassification:
    """The `top_k` most probable labels (all where None), best first, each `{"label", "score"}`.

    Scores are a function of the logits. The default is what `transformers` does for a model whose config names no
    problem type: softmax, or the sigmoid where there is one label.
    """

    def __init__(self, labels: tuple[str, ...], *, top_k: int | None, function: ScoreFunction | None = None) -> None:
        self._labels = labels
        self._score = _SCORES[function or ("softmax" if len(labels) > 1 else "sigmoid")]
        self._top_k = len(labels) if top_k is None else min(top_k, len(labels))

    def __call__(self, rows: NDArray[np.float64]) -> list[Output]:
        if rows.shape[1] != len(self._labels):
            raise BadRecord(Reason.BAD_PACK, f"{rows.shape[1]} logits for {len(self._labels)} labels")
        scores = self._score(rows)
        best = np.argsort(-scores, axis=1, kind="stable")[:, : self._top_k]
        chosen = np.take_along_axis(scores, best, axis=1)
        return [
            [Label(self._labels[label], score) for label, score in zip(labels, of_labels, strict=True)]
            for labels, of_labels in zip(best.tolist(), chosen.tolist(), strict=True)
        ]


def join_windows(rows: NDArray[np.float32], lengths: NDArray[np.int32], chunks: list[int]) -> NDArray[np.float64]:
    """(windows, W) -> (texts, W): the mean over each text's windows, weighted by their tokens.

    `lengths` (windows,) are tokens, `chunks` says how many windows each text has.
    """
    if len(chunks) == len(rows):
        return rows.astype(np.float64)
    first = np.concatenate(([0], np.cumsum(chunks)[:-1]))
    weights = lengths.astype(np.float64)
    totals = np.add.reduceat(weights, first)
    joined: NDArray[np.float64] = np.add.reduceat(rows * weights[:, None], first, axis=0) / totals[:, None]
    return joined


def _sigmoid(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    # 1 / (1 + exp(-x)) overflows below -709.
    scores: NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -rows))
    return scores


def _softmax(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    exponentials = np.exp(rows - rows.max(axis=1, keepdims=True))
    scores: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return scores


_SCORES: dict[ScoreFunction, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "softmax": _softmax,
    "sigmoid": _sigmoid,
    "none": lambda rows: rows,
}
