"""Pairs: two texts in one window, as a BERT-family tokenizer's template puts them together.

[CLS] first [SEP] second [SEP] to BERT, <s> first </s></s> second </s> to RoBERTa. Which tokens are of the second text
(token type 1) the template says too; they are marked by SECOND_TEXT.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from schemas.packs import SECOND_TEXT

# Which of a pair is cut where both are too long, by `transformers`' names.
Truncation = Literal["longest_first", "only_first"]

_WORD = "a"


class PairTemplate:
    """What stands before, between and behind the texts of a pair."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """A tokenizer that does not truncate. Raises ValueError where its template is not two texts, in their order,
        and special tokens."""
        encoding = tokenizer.encode(_WORD, _WORD)
        first, second = ([place for place, of in enumerate(encoding.sequence_ids) if of == number] for number in (0, 1))
        if not first or not second or first[-1] > second[0]:
            raise ValueError("the tokenizer has no template for pairs")
        self._odd_to_first = False
        self._set(encoding.ids, encoding.type_ids, first, second)

    @classmethod
    def of_tokens(cls, ids: Sequence[int], types: Sequence[int], *, first: int, second: int) -> Self:
        """Of a pair's tokens and their types, where each text is one token, at the places `first` and `second`. Pairs
        are cut as transformers' slow tokenizers cut them: the odd token is the first text's."""
        template = cls.__new__(cls)
        template._odd_to_first = True
        template._set(ids, types, [first], [second])
        return template

    def _set(self, tokens: Sequence[int], types: Sequence[int], first: Sequence[int], second: Sequence[int]) -> None:
        ids = np.array(tokens, np.int32) + np.array(types, np.int32) * SECOND_TEXT
        self._before, self._between, self._behind = (
            ids[: first[0]],
            ids[first[-1] + 1 : second[0]],
            ids[second[-1] + 1 :],
        )
        self._types = types[first[0]], types[second[0]]
        self.special = len(ids) - len(first) - len(second)

    def second_at(self, first: int) -> int:
        """Where in a window the second text begins, the first one having so many tokens."""
        return len(self._before) + first + len(self._between)

    def window(
        self, first: NDArray[np.int32], second: NDArray[np.int32], *, max_length: int, truncation: Truncation
    ) -> tuple[NDArray[np.int32], bool]:
        """Both texts' ids, without special tokens, in one window; and whether some had to be left out."""
        keep_first, keep_second = _kept(len(first), len(second), max_length - self.special, truncation)
        if self._odd_to_first and keep_second == keep_first + 1 and keep_first < len(first):
            keep_first, keep_second = keep_second, keep_first
        window = np.concatenate(
            [
                self._before,
                first[:keep_first] + np.int32(self._types[0] * SECOND_TEXT),
                self._between,
                second[:keep_second] + np.int32(self._types[1] * SECOND_TEXT),
                self._behind,
            ]
        )
        return window, (keep_first, keep_second) != (len(first), len(second))


def _kept(first: int, second: int, room: int, truncation: Truncation) -> tuple[int, int]:
    """How many tokens of each are kept. "longest_first" as the tokenizers library cuts: the longer one down to the
    shorter one's length, then both by halves, the odd token to the longer one, to the second of equal ones."""
    if first + second <= room:
        return first, second
    if truncation == "only_first":
        # Where even that is not enough, transformers fails; here the second text gives way too.
        return max(0, room - second), min(second, room)
    shorter, longer = min(first, second), max(first, second)
    longer = max(shorter, room - shorter)
    if shorter + longer > room:
        shorter = room // 2
        longer = shorter + room % 2
    return (longer, shorter) if first > second else (shorter, longer)
