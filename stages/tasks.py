"""Tasks: from a model's numbers to what `transformers.pipeline` answers.

A text that was cut into windows has one row of numbers a window. They are joined by the mean, weighted by tokens (of
vectors, or of logits before the softmax), and a normalised vector is brought back to length 1. A request of several
pairs has a row for each of them, and its task answers them together. Numbers of tokens are not joined, but each token
is taken from one window; or a task reads all windows, each for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from schemas.packs import PackedText, split_rows
from schemas.parameters import NOTHING_ASKED, Parameters
from schemas.records import Source
from schemas.results import Output


class Task(Protocol):
    """Turns joined rows (texts, W) into one output a text. `asked` says what each request asks for; empty: nothing.

    Raises BadRecord where W is not its own, or where what is asked can't be answered.
    """

    def __call__(self, rows: NDArray[np.float64], asked: Sequence[Parameters | None] = (), /) -> list[Output]: ...


@runtime_checkable
class PairsTask(Protocol):
    """Turns the rows (pairs, W) of one request into its output. Raises BadRecord likewise."""

    def of_pairs(self, rows: NDArray[np.float64], text: PackedText, /) -> Output: ...


@runtime_checkable
class TokensTask(Protocol):
    """Turns the rows (tokens, W) of one text into its output; `details` (tokens, 4) as `schemas.packs` has them.
    Raises BadRecord likewise."""

    def of_tokens(self, rows: NDArray[np.float64], details: NDArray[np.int32], text: PackedText, /) -> Output: ...


@runtime_checkable
class ChosenTokensTask(Protocol):
    """Turns the rows (chosen, W) of each text's chosen tokens into one output a text, all at once; `details`
    (tokens, 4) of all of its tokens, as `schemas.packs` has them, `sources` of each. Raises BadRecord likewise."""

    def of_chosen(
        self,
        rows: Sequence[NDArray[np.float32]],
        details: Sequence[NDArray[np.int32]],
        texts: Sequence[PackedText],
        sources: Sequence[Source],
        /,
    ) -> list[Output]: ...


@runtime_checkable
class WindowsTask(Protocol):
    """Turns the rows (tokens, W) of each window of one request into its output; `details`, likewise of each window
    (tokens, 4), as `schemas.packs` has them. Raises BadRecord likewise."""

    def of_windows(
        self, rows: Sequence[NDArray[np.float64]], details: Sequence[NDArray[np.int32]], text: PackedText, /
    ) -> Output: ...


AnyTask = Task | PairsTask | TokensTask | ChosenTokensTask | WindowsTask


def answers_as_asked(
    rows: NDArray[np.float64],
    asked: Sequence[Parameters | None],
    answers: Callable[[NDArray[np.float64], Parameters], list[Output]],
) -> list[Output]:
    """What `answers` makes of the rows (texts, W): of all at once where nothing is asked, else of each by itself."""
    if not any(asked):
        return answers(rows, NOTHING_ASKED)
    return [
        answer
        for text, parameters in enumerate(asked)
        for answer in answers(rows[text : text + 1], parameters or NOTHING_ASKED)
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


def of_each_text(rows: NDArray[np.float32], chunks: list[int]) -> list[NDArray[np.float64]]:
    """(pairs, W) -> the rows of each text, (its pairs, W)."""
    return [each.astype(np.float64) for each in split_rows(rows, chunks)]
