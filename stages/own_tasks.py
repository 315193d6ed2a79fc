"""Tasks of the user's own among those that there are: what they answer is checked, text by text.

What they raise passes: `stages.blame` finds whose text it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from engines.own_exits import no_exit
from schemas.packs import PackedText
from schemas.parameters import NOTHING_ASKED, Parameters
from schemas.results import Output
from stages.tasks import AnyTask

# Built-in task -> the method by which a class reads the numbers of such a one.
METHODS: Mapping[str, str] = {
    "text-classification": "__call__",
    "sentence-embedding": "__call__",
    "text-ranking": "of_pairs",
    "zero-shot-classification": "of_pairs",
    "token-classification": "of_tokens",
    "feature-extraction": "of_tokens",
}


class OwnTextTask:
    """Implements `stages.tasks.Task`."""

    def __init__(self, task: Any, name: str, *, asks: bool) -> None:
        """`asks`: whether it is told what requests ask for. `name` is for messages."""
        self._task = task
        self._name = name
        self._asks = asks

    @no_exit()
    def __call__(self, rows: NDArray[np.float64], asked: Sequence[Parameters | None] = ()) -> list[Output]:
        if self._asks:
            answers = self._task(rows, [each or NOTHING_ASKED for each in asked or [None] * len(rows)])
        else:
            answers = self._task(rows)
        if isinstance(answers, np.ndarray) or not isinstance(answers, Sequence) or len(answers) != len(rows):
            what = f"{len(answers)} outputs" if isinstance(answers, list) else f"a {type(answers).__name__}"
            raise TypeError(f"{self._name} answers {what}: a list is wanted, one output a text, here {len(rows)}")
        return [_as_json(answer, self._name) for answer in answers]


class OwnPairsTask:
    """Implements `stages.tasks.PairsTask`."""

    def __init__(self, task: Any, name: str) -> None:
        self._task = task
        self._name = name

    @no_exit()
    def of_pairs(self, rows: NDArray[np.float64], text: PackedText) -> Output:
        return _as_json(self._task.of_pairs(rows, text), self._name)


class OwnTokensTask:
    """Implements `stages.tasks.TokensTask`."""

    def __init__(self, task: Any, name: str) -> None:
        self._task = task
        self._name = name

    @no_exit()
    def of_tokens(self, rows: NDArray[np.float64], details: NDArray[np.int32], text: PackedText) -> Output:
        return _as_json(self._task.of_tokens(rows, details, text), self._name)


def own_task(task: Any, name: str, *, reads: str, asks: bool) -> AnyTask:
    """`task`, which reads what the built-in task `reads` does."""
    match METHODS[reads]:
        case "of_pairs":
            return OwnPairsTask(task, name)
        case "of_tokens":
            return OwnTokensTask(task, name)
        case _:
            return OwnTextTask(task, name, asks=asks)


def _as_json(answer: object, name: str) -> Output:
    """As it is. Raises TypeError where no result could hold it."""
    try:
        encoded = msgspec.json.encode(answer)
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as err:
        raise TypeError(
            f"{name} answers what is no JSON ({err}): make NumPy's numbers float() or int(), arrays .tolist()"
        ) from err
    # What is not finite is written so.
    if b"null" in encoded and not _finite(msgspec.to_builtins(answer)):
        raise TypeError(f"{name} answers what is no JSON (a number is not finite): make it a finite one, or None")
    return cast(Output, answer)


def _finite(answer: object) -> bool:
    match answer:
        case float():
            return math.isfinite(answer)
        case dict():
            return all(map(_finite, answer.values()))
        case list() | tuple():
            return all(map(_finite, answer))
    return True
