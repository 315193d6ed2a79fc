"""Text classification: logits become labels with scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.errors import BadRecord, Reason
from schemas.parameters import Parameters, ScoreFunction, asked_or
from schemas.results import Label, Output
from stages.tasks import answers_as_asked


class TextClassification:
    """The `top_k` most probable labels (all where None) of at least `threshold`, best first, each `{"label", "score"}`.

    Scores are a function of the logits. The default is what `transformers` does for a model whose config names no
    problem type: softmax, or the sigmoid where there is one label. A request may ask for others.
    """

    def __init__(
        self,
        labels: tuple[str, ...],
        *,
        top_k: int | None,
        function: ScoreFunction | None = None,
        threshold: float | None = None,
    ) -> None:
        self._labels = labels
        self._function: ScoreFunction = function or ("softmax" if len(labels) > 1 else "sigmoid")
        self._top_k = top_k
        self._threshold = threshold

    def __call__(self, rows: NDArray[np.float64], asked: Sequence[Parameters | None] = ()) -> list[Output]:
        if rows.shape[1] != len(self._labels):
            raise BadRecord(Reason.BAD_PACK, f"{rows.shape[1]} logits for {len(self._labels)} labels")
        return answers_as_asked(rows, asked, self._answers)

    def _answers(self, rows: NDArray[np.float64], asked: Parameters) -> list[Output]:
        threshold = asked_or(asked.threshold, self._threshold)
        scores = SCORES[asked_or(asked.function_to_apply, self._function)](rows)
        best = np.argsort(-scores, axis=1, kind="stable")[:, : asked_or(asked.top_k, self._top_k)]
        chosen = np.take_along_axis(scores, best, axis=1)
        return [
            [
                Label(self._labels[label], score)
                for label, score in zip(labels, of_labels, strict=True)
                if threshold is None or score >= threshold
            ]
            for labels, of_labels in zip(best.tolist(), chosen.tolist(), strict=True)
        ]


def sigmoid(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each number."""
    # 1 / (1 + exp(-x)) overflows below -709.
    scores: NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -rows))
    return scores


def softmax(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the last axis."""
    exponentials = np.exp(rows - rows.max(axis=-1, keepdims=True))
    scores: NDArray[np.float64] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return scores


SCORES: dict[ScoreFunction, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "none": lambda rows: rows,
}
