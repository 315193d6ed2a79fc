"""Blame: which text a stage's code fails on, told from code that fails on every text.

What a tokenizer or a task of a user's own raises says nothing of who is at fault. So the batch is tried in halves until
the culprit stands alone: at most 2 ceil(log2 N) + 1 calls for one among N. Then a text that can't be at fault is tried:
a neighbour that was answered, else one that is harmless. Where that fails too, it is the code, and no text is blamed.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from schemas.errors import BadRecord, Reason
from stages.errors import StageError

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_WORD = re.compile(r"\w+")


def answer_apart(
    items: Sequence[Item],
    answer: Callable[[Sequence[Item]], Sequence[Answer | BadRecord]],
    *,
    harmless: Callable[[], object],
    text_of: Callable[[Item], str] = lambda _: "",
) -> list[Answer | BadRecord]:
    """One entry an item, in order: its answer, or why it has none. `text_of` says what no message may quote.

    `harmless` is a call that fails only where every call does. A MemoryError is nobody's fault and passes. Raises
    StageError where the code fails whatever the text.
    """
    outcomes = _outcomes(items, answer, text_of) if items else []
    if any(isinstance(outcome, BadRecord) and outcome.reason is Reason.STAGE_FAILED for outcome in outcomes):
        answered = (item for item, outcome in zip(items, outcomes, strict=True) if not isinstance(outcome, BadRecord))
        neighbour = next(answered, None)
        try:
            harmless() if neighbour is None else _answered([neighbour], answer)
        except MemoryError:
            raise
        except Exception as err:
            text = "" if neighbour is None else text_of(neighbour)
            raise StageError(f"fails whatever the text: {told(err, text)}") from err
    return outcomes


def stage_failed(err: Exception, text: str = "") -> BadRecord:
    """What the dead letter says of a text that a stage's code failed on; its own words are left out of the message."""
    return BadRecord(Reason.STAGE_FAILED, told(err, text))


def told(err: BaseException, text: str = "") -> str:
    """In one line, an exception's type and message and the line that raised it. Words of `text`, which it may quote,
    are dots."""
    frames = traceback.extract_tb(err.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    # Quoted as it is, escaped, or in lower case.
    quotable = f"{text} {text!r} {text!a}".casefold() if text else ""
    said = _WORD.sub(lambda word: "..." if word[0].casefold() in quotable else word[0], str(err))
    said = " ".join(filter(None, map(str.strip, said.splitlines())))
    return f"{type(err).__name__}: {said}{where}" if said else f"{type(err).__name__}{where}"


def _outcomes(
    items: Sequence[Item],
    answer: Callable[[Sequence[Item]], Sequence[Answer | BadRecord]],
    text_of: Callable[[Item], str],
) -> list[Answer | BadRecord]:
    try:
        return _answered(items, answer)
    except MemoryError:
        raise
    except Exception as err:  # noqa: BLE001 - a user's own code raises anything
        if len(items) == 1:
            return [err if isinstance(err, BadRecord) else stage_failed(err, text_of(items[0]))]
    middle = len(items) // 2
    return _outcomes(items[:middle], answer, text_of) + _outcomes(items[middle:], answer, text_of)


def _answered(
    items: Sequence[Item], answer: Callable[[Sequence[Item]], Sequence[Answer | BadRecord]]
) -> list[Answer | BadRecord]:
    answers = [*answer(items)]
    assert len(answers) == len(items), f"{len(answers)} answers for {len(items)} texts"
    return answers
