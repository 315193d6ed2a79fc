"""Tasks over pairs: one text read with each of several others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.errors import BadRecord, Reason
from schemas.packs import PackedText
from schemas.parameters import NOTHING_ASKED, ScoreFunction, asked_or
from schemas.results import Output, Ranked, ZeroShot
from stages.classification import SCORES, softmax


class TextRanking:
    """A cross-encoder's score of a query with each passage: the `top_k` best (all where None), each
    `{"index", "score"}`, as text-embeddings-inference answers. `function` of the one logit, the sigmoid by default, as
    sentence-transformers' CrossEncoder has it."""

    def __init__(self, *, top_k: int | None, function: ScoreFunction | None = None) -> None:
        self._top_k = top_k
        self._function: ScoreFunction = function or "sigmoid"

    def of_pairs(self, rows: NDArray[np.float64], text: PackedText) -> Output:
        if rows.shape[1] != 1:
            raise BadRecord(Reason.BAD_PACK, f"{rows.shape[1]} logits where a ranking model has 1")
        asked = text.parameters or NOTHING_ASKED
        scores = SCORES[asked_or(asked.function_to_apply, self._function)](rows)[:, 0]
        best = np.argsort(-scores, kind="stable")[: asked_or(asked.top_k, self._top_k)]
        return [Ranked(place, score) for place, score in zip(best.tolist(), scores[best].tolist(), strict=True)]


class ZeroShotClassification:
    """Whether a text entails a sentence about each candidate label, by a model of natural language inference:
    `{"sequence", "labels", "scores"}`, best first, as `transformers`' ZeroShotClassificationPipeline computes them.

    One label of all: softmax over the labels' entailment. Several (`multi_label`), or only one candidate: each label's
    entailment against its contradiction.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._entailment = entailment_of(labels)
        # As transformers chooses it.
        self._contradiction = -1 if self._entailment == 0 else 0
        self._width = len(labels)

    def of_pairs(self, rows: NDArray[np.float64], text: PackedText) -> Output:
        if rows.shape[1] != self._width:
            raise BadRecord(Reason.BAD_PACK, f"{rows.shape[1]} logits for {self._width} labels")
        [sequence, *labels] = text.echo or [""]
        if len(labels) != len(rows):
            raise BadRecord(Reason.BAD_PACK, f"{len(labels)} candidate labels and {len(rows)} pairs")
        asked = text.parameters or NOTHING_ASKED
        if asked_or(asked.multi_label, False) or len(labels) == 1:
            scores = softmax(rows[:, [self._contradiction, self._entailment]])[:, 1]
        else:
            scores = softmax(rows[:, self._entailment])
        # Stable from the end, as transformers reverses an ascending order.
        best = np.argsort(scores, kind="stable")[::-1]
        return ZeroShot(sequence, [labels[place] for place in best], scores[best].tolist())


def entailment_of(labels: Sequence[str]) -> int:
    """The label whose name begins with "entail". Raises ValueError where there is none."""
    for place, label in enumerate(labels):
        if label.lower().startswith("entail"):
            return place
    raise ValueError(f"no label of {', '.join(labels)} begins with 'entail'")
