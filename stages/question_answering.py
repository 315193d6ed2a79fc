"""Question answering: each token's start and end logits become the spans of the context that answer best, as
`transformers`' QuestionAnsweringPipeline (4.57, its last) computes them.

    of each window: softmax over its part of the context and [CLS] -> score of a span: start's times end's -> the best
    of all windows: scores of equal answers added up, first met first -> the best `top_k`

So an answer that several spans or windows give, as words of several tokens do, gets their sum, which may be over 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.errors import BadRecord, Reason
from schemas.packs import SPECIAL, PackedText
from schemas.parameters import NOTHING_ASKED, asked_or
from schemas.results import Answer, Output
from stages.classification import softmax

# The logits of where an answer starts, and of where it ends.
_LOGITS = 2


class QuestionAnswering:
    """The `top_k` best answers of at most `max_answer_len` tokens: one `{"score", "start", "end", "answer"}`, or a list
    where there are several. `align_to_words` widens them to whole words; `handle_impossible_answer` lets nothing at all
    be an answer, as probable as in the window where that is least so."""

    def __init__(
        self,
        *,
        top_k: int = 1,
        max_answer_len: int = 15,
        handle_impossible_answer: bool = False,
        align_to_words: bool = True,
    ) -> None:
        self._top_k = top_k
        self._max_answer_len = max_answer_len
        self._handle_impossible_answer = handle_impossible_answer
        self._align_to_words = align_to_words

    def of_windows(
        self, rows: Sequence[NDArray[np.float64]], details: Sequence[NDArray[np.int32]], text: PackedText
    ) -> Output:
        if rows[0].shape[1] != _LOGITS:
            raise BadRecord(Reason.BAD_PACK, f"{rows[0].shape[1]} logits where question answering has {_LOGITS}")
        if not text.echo or len(text.echo) != 1:
            raise BadRecord(Reason.BAD_PACK, "the pack has not the context: do all stages run the same file?")
        asked = text.parameters or NOTHING_ASKED
        [context] = text.echo
        top_k = asked_or(asked.top_k, self._top_k) or 1
        align = asked_or(asked.align_to_words, self._align_to_words)
        max_answer_len = asked_or(asked.max_answer_len, self._max_answer_len)
        # Some of a word's spans become one.
        spans = 2 * top_k + 10 if align else top_k
        answers: dict[str, Answer] = {}
        least = 1.0
        for logits, of_tokens in zip(rows, details, strict=True):
            starts, ends, impossible = _probabilities(logits, of_tokens)
            least = min(least, impossible)
            for start, end, score in _best_spans(starts, ends, spans=spans, max_answer_len=max_answer_len):
                first, last = (int(of_tokens[start, 2 * align]), int(of_tokens[end, 2 * align + 1]))
                answer = context[first:last]
                met = answers.get(answer.lower())
                if met is not None:
                    first, last, answer, score = met.start, met.end, met.answer, met.score + score
                answers[answer.lower()] = Answer(score, first, last, answer)
        found = [*answers.values()]
        if asked_or(asked.handle_impossible_answer, self._handle_impossible_answer):
            found.append(Answer(least, 0, 0, ""))
        best = sorted(found, key=lambda each: each.score, reverse=True)[:top_k]
        if not best:  # a context without tokens
            return Answer(0.0, 0, 0, "")
        return best[0] if len(best) == 1 else best


def _probabilities(
    logits: NDArray[np.float64], details: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Of each token, to be an answer's start and its end, and of there being none. Logits (tokens, 2).

    What stands for no answer takes its share of the softmax, and is part of no span.
    """
    read = np.flatnonzero(details[:, 0] != SPECIAL)
    found = np.zeros_like(logits)
    if read.size:
        found[read] = softmax(logits[read].T).T
    impossible = float(found[0].prod())
    found[0] = 0
    return found[:, 0], found[:, 1], impossible


def _best_spans(
    starts: NDArray[np.float64], ends: NDArray[np.float64], *, spans: int, max_answer_len: int
) -> Iterator[tuple[int, int, float]]:
    """The first and the last token of the most probable spans, and their scores, best first."""
    length = min(max_answer_len, len(ends))
    ends = np.concatenate((ends, np.zeros(length - 1)))
    scores = (starts[:, None] * np.lib.stride_tricks.sliding_window_view(ends, length)).ravel()
    best = np.argpartition(-scores, spans - 1)[:spans] if len(scores) > spans else np.arange(len(scores))
    for place in best[np.lexsort((best, -scores[best]))].tolist():
        if scores[place] > 0:
            start, more = divmod(place, length)
            yield start, start + more, float(scores[place])
