"""Windows of a tokenizer that gives no more than token ids: one of the user's own, or a slow one of transformers.

What the tokenizers library does for others is done here, to the same windows: special tokens around each, overlaps of
`stride` tokens, pairs put together by the tokenizer's own template.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.own_exits import no_exit
from schemas.packs import DETAILS, SECOND_TEXT, SPECIAL
from stages.blame import told
from stages.errors import TokenizerError
from stages.pairs import PairTemplate
from stages.word_cache import Windows

Ids = NDArray[np.int32]

# Stand for a text, and for the second of a pair, where special tokens are put around: no token has such a number.
_FIRST, _SECOND = -1, -2


class PlainTokens:
    """Implements what `stages.text_tokenizer` asks of `WordCache` and of `TokenDetails`.

    `pairs` is None where the tokenizer reads no pairs.
    """

    @no_exit()
    def __init__(self, tokenizer: Any, name: str) -> None:
        """`tokenizer` is a `stages.own.Tokenizer`, `name` for messages. Raises TokenizerError."""
        self._tokenizer = tokenizer
        self._name = name
        self._offsets = getattr(tokenizer, "offsets", None)
        self._max_length, self._stride = sys.maxsize, 0
        self._before, self._after = self._around()
        self.pairs = self._pair_template()
        self.special = len(self._before) + len(self._after)

    @property
    def has_offsets(self) -> bool:
        """Whether it says which characters a token is of."""
        return self._offsets is not None

    def enable_truncation(self, max_length: int, *, stride: int) -> None:
        """Windows of at most so many tokens, special ones included."""
        self._max_length, self._stride = max_length, stride

    def windows(self, texts: Sequence[str]) -> list[Windows]:
        """One a text, in order. Raises what the tokenizer raises, and TypeError where it answers something else."""
        return [
            [np.concatenate([self._before, ids[start:end], self._after]) for start, end in self._cuts(len(ids))]
            for ids in self.ids(texts)
        ]

    @no_exit()
    def ids(self, texts: Sequence[str]) -> list[Ids]:
        """Of each text, without special tokens, however long it is. Raises likewise."""
        return self._checked(self._tokenizer(list(texts)), len(texts))

    def of_windows(self, texts: Sequence[str]) -> list[list[Ids]]:
        """One entry a text: of each of its windows int32 (tokens, 4), as `schemas.packs.TokenPack` has them; of
        tokens whose characters nobody knows they are 0. Raises likewise."""
        found = []
        for ids, offsets in zip(self.ids(texts), self._characters(texts), strict=True):
            details = np.zeros((len(ids), DETAILS), np.int32)
            details[:, 0] = ids
            details[:, 1] = np.arange(len(ids))
            if offsets is not None:
                if offsets.shape != (len(ids), 2):
                    raise TypeError(f"{self._name}.offsets: {offsets.shape} for {len(ids)} tokens: two numbers each")
                details[:, 2:] = offsets
            before, after = _special(self._before), _special(self._after)
            found.append([np.concatenate([before, details[a:b], after]) for a, b in self._cuts(len(ids))])
        return found

    def _cuts(self, tokens: int) -> list[tuple[int, int]]:
        """As the tokenizers library cuts: a window ends what is not cut, and begins `stride` before that."""
        room = self._max_length - self.special
        if tokens <= room:
            return [(0, tokens)]
        step = room - self._stride
        starts = range(0, tokens - self._stride, step)
        return [(start, min(start + room, tokens)) for start in starts]

    def _checked(self, answers: Any, count: int) -> list[Ids]:
        try:
            lists = [*answers]
        except TypeError:
            lists = [None] * (count + 1)
        if len(lists) != count:
            what = f"{len(lists)} lists" if isinstance(answers, (list, tuple)) else f"a {type(answers).__name__}"
            raise TypeError(f"{self._name} answers {what}: one list of token ids a text is wanted, here {count}")
        return [self._checked_ids(ids) for ids in lists]

    def _checked_ids(self, ids: Any) -> Ids:
        if isinstance(ids, str) or not hasattr(ids, "__len__"):
            raise TypeError(f"{self._name} answers a {type(ids).__name__} of a text: a list of token ids is wanted")
        array = np.asarray(ids) if len(ids) else np.zeros(0, np.int32)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise TypeError(f"{self._name} answers {array.dtype} {array.shape} of a text: whole numbers are wanted")
        if len(array) and not 0 <= int(array.min()) <= int(array.max()) < SECOND_TEXT:
            raise ValueError(f"{self._name} answers a token id that is none: {array.min()} to {array.max()}")
        return array.astype(np.int32)

    @no_exit()
    def _characters(self, texts: Sequence[str]) -> Sequence[Ids | None]:
        if self._offsets is None:
            return [None] * len(texts)
        answers = self._offsets(list(texts))
        if len(answers) != len(texts):
            raise TypeError(f"{self._name}.offsets answers {len(answers)} lists: one a text is wanted, {len(texts)}")
        return [self._checked_offsets(each) for each in answers]

    def _checked_offsets(self, answer: Any) -> Ids:
        array = np.asarray(answer) if len(answer) else np.zeros((0, 2), np.int32)
        if array.ndim != 2 or array.dtype.kind not in "iu" or (len(array) and int(array.min()) < 0):
            raise TypeError(f"{self._name}.offsets: of each token (start, end) is wanted, characters of the text")
        return array.astype(np.int32)

    def _around(self) -> tuple[Ids, Ids]:
        built = self._built([_FIRST])
        if built.count(_FIRST) != 1:
            raise self._no_template("a text stands in it once")
        place = built.index(_FIRST)
        return np.array(built[:place], np.int32), np.array(built[place + 1 :], np.int32)

    def _pair_template(self) -> PairTemplate | None:
        if not hasattr(self._tokenizer, "build_inputs_with_special_tokens"):
            return None
        try:
            built = self._built([_FIRST], [_SECOND])
        except TokenizerError:
            return None
        if built.count(_FIRST) != 1 or built.count(_SECOND) != 1 or built.index(_FIRST) > built.index(_SECOND):
            return None
        types = [0] * len(built)
        if hasattr(self._tokenizer, "create_token_type_ids_from_sequences"):
            types = [*self._tokenizer.create_token_type_ids_from_sequences([_FIRST], [_SECOND])]
            if len(types) != len(built) or not {*types} <= {0, 1}:
                raise TokenizerError(
                    f"{self._name}.create_token_type_ids_from_sequences: {types} of {len(built)} tokens: "
                    "0 or 1 of each is wanted, special ones included"
                )
        return PairTemplate.of_tokens(built, types, first=built.index(_FIRST), second=built.index(_SECOND))

    def _built(self, *ids: list[int]) -> list[int]:
        build = getattr(self._tokenizer, "build_inputs_with_special_tokens", None)
        if build is None:
            return ids[0]
        try:
            with no_exit():
                return [int(token) for token in build(*ids)]
        except Exception as err:  # a user's own code raises anything
            raise self._no_template(told(err)) from err

    def _no_template(self, why: str) -> TokenizerError:
        return TokenizerError(f"{self._name}.build_inputs_with_special_tokens: token ids in, more of them out: {why}")


def _special(ids: Ids) -> Ids:
    details = np.zeros((len(ids), DETAILS), np.int32)
    details[:, 0] = ids
    details[:, 1] = SPECIAL
    return details
