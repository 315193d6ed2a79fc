"""Fill-mask: masked tokens' hidden states become tokens with scores, as `transformers`' FillMaskPipeline answers them.

The logits of a vocabulary are 122 KB a mask for BERT's and 1 MB for XLM-R's, so they are made here, a bounded number at
a time, and only the best few leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from engines.masked_lm import MaskedLanguageModelHead
from schemas.errors import BadRecord, Reason
from schemas.packs import PackedText
from schemas.parameters import NOTHING_ASKED, Parameters, asked_or
from schemas.records import Source
from schemas.results import Filled, Output
from stages.mask_tokens import MaskVocabulary

# 64 MB of logits at a time.
_MOST_LOGITS = 16 * 1024 * 1024
# Of a result, some more than the 16 MiB that a record may have. Beside the text an answer has some 64 characters.
_MOST_CHARACTERS = 16 * 1024 * 1024
_OTHER_CHARACTERS = 64
# The best of a row are among the best of its blocks: a partition of 30,522 numbers takes 20 times as long.
_BLOCK = 128


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Of one text: its tokens, which of them are masked, how many answers each gets, and the tokens to choose from
    (None: all)."""

    numbers: list[int]
    masked: list[int]
    top_k: int
    targets: NDArray[np.intp] | None


class FillMask:
    """The `top_k` most probable tokens in a mask's place, best first: `{"score", "token", "token_str", "sequence"}`;
    of several masks a list of such lists, each with the other masks left as they are. A request's `targets` are the
    only tokens that are told then, with the scores that they have among all."""

    def __init__(self, head: MaskedLanguageModelHead, vocabulary: MaskVocabulary, *, top_k: int) -> None:
        self._head = head
        self._vocabulary = vocabulary
        self._top_k = top_k

    def of_chosen(
        self,
        rows: Sequence[NDArray[np.float32]],
        details: Sequence[NDArray[np.int32]],
        texts: Sequence[PackedText],
        sources: Sequence[Source],
    ) -> list[Output]:
        # Whatever may be refused is so before anything is computed.
        wanted = [self._wanted(*each) for each in zip(rows, details, texts, sources, strict=True)]
        hidden = np.concatenate(rows)
        best = self._best(hidden, [each for each in wanted for _ in each.masked])
        outputs: list[Output] = []
        first = 0
        for each in wanted:
            outputs.append(self._output(each, best[first : first + len(each.masked)]))
            first += len(each.masked)
        return outputs

    def _wanted(
        self, rows: NDArray[np.float32], details: NDArray[np.int32], text: PackedText, source: Source
    ) -> _Wanted:
        if rows.shape[1] != self._head.width:
            message = f"a token of {rows.shape[1]} numbers, the model's have {self._head.width}"
            raise BadRecord(Reason.BAD_PACK, message)
        masked = np.flatnonzero(details[:, 0] == self._vocabulary.mask.number)
        if len(masked) != len(rows) or not len(masked):
            message = f"{len(rows)} tokens, of {len(masked)} that are masked: do all stages run the same ensemble file?"
            raise BadRecord(Reason.BAD_PACK, message)
        asked = text.parameters or NOTHING_ASKED
        targets = self._targets(asked, source)
        top_k = min(asked_or(asked.top_k, self._top_k) or 0, self._head.vocab_size if targets is None else len(targets))
        characters = len(masked) * top_k * (int(details[:, 3].max()) + _OTHER_CHARACTERS)
        if characters > _MOST_CHARACTERS:
            raise BadRecord(
                Reason.RESULT_TOO_LARGE,
                f"{top_k} answers (top_k) for each of {len(masked)} masks, each with the whole text, are some "
                f"{characters >> 20} MB: ask for fewer, of a shorter text; allowed: {_MOST_CHARACTERS >> 20} MB",
            )
        return _Wanted(details[:, 0].tolist(), masked.tolist(), top_k, targets)

    def _targets(self, asked: Parameters, source: Source) -> NDArray[np.intp] | None:
        names = asked_or(asked.targets, None)
        if names is None:
            return None
        found = (self._vocabulary.target(name, source) for name in ([names] if isinstance(names, str) else names))
        # In the order of Python's set, as transformers has them.
        numbers = list({number for number in found if number is not None})
        if not numbers:
            raise BadRecord(
                Reason.BAD_REQUEST, "parameters.targets: none that the tokenizer reads as a token: give one at least"
            )
        if max(numbers) >= self._head.vocab_size:
            message = f"parameters.targets: one is token {max(numbers)}, the model has {self._head.vocab_size}"
            raise BadRecord(Reason.BAD_REQUEST, message)
        return np.array(numbers, np.intp)

    def _best(self, hidden: NDArray[np.float32], wanted: Sequence[_Wanted]) -> list[list[tuple[int, float]]]:
        """Of each masked token, of which there is one text in `wanted`: tokens and scores, best first."""
        best: list[list[tuple[int, float]]] = []
        step = max(1, _MOST_LOGITS // self._head.vocab_size)
        for start in range(0, len(hidden), step):
            logits = self._head.logits(hidden[start : start + step])
            logits -= logits.max(axis=1, keepdims=True)
            first = 0
            for _, alike in groupby(wanted[start : start + step], key=lambda each: (id(each.targets), each.top_k)):
                some = [*alike]
                best += _best_of(logits[first : first + len(some)], some[0].targets, some[0].top_k)
                first += len(some)
        return best

    def _output(self, wanted: _Wanted, best: Sequence[Sequence[tuple[int, float]]]) -> Output:
        sequences: list[list[int]] = []
        for place, answers in zip(wanted.masked, best, strict=True):
            before, after = wanted.numbers[:place], wanted.numbers[place + 1 :]
            sequences += [[*before, number, *after] for number, _ in answers]
        alone = len(wanted.masked) == 1  # else the other masks, which are special tokens, would be gone
        texts = iter(self._vocabulary.texts(sequences, skip_special_tokens=alone))
        filled = [
            [Filled(score, number, self._vocabulary.word(number), next(texts)) for number, score in answers]
            for answers in best
        ]
        return filled[0] if alone else filled


def _best_of(
    logits: NDArray[np.float32], targets: NDArray[np.intp] | None, top_k: int
) -> list[list[tuple[int, float]]]:
    """Of rows (N, V) with a maximum of 0."""
    totals = np.exp(logits).sum(axis=1, keepdims=True)
    numbers = _highest(logits, top_k) if targets is None else targets[_highest(logits[:, targets], top_k)]
    scores = np.exp(np.take_along_axis(logits, numbers, axis=1)) / totals
    return [[*zip(*each, strict=True)] for each in zip(numbers.tolist(), scores.tolist(), strict=True)]


def _highest(rows: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """The places of each row's highest numbers, (N, count), in their order."""
    blocks = rows.shape[1] // _BLOCK
    whole = blocks * _BLOCK
    if 4 * count >= blocks:
        return np.argsort(-rows, axis=1, kind="stable")[:, :count]
    highest = rows[:, :whole].reshape(len(rows), blocks, _BLOCK).max(axis=2)
    chosen = np.sort(np.argpartition(highest, blocks - count, axis=1)[:, blocks - count :], axis=1)  # (N, count)
    places = (chosen[:, :, np.newaxis] * _BLOCK + np.arange(_BLOCK)).reshape(len(rows), -1)
    rest = np.broadcast_to(np.arange(whole, rows.shape[1]), (len(rows), rows.shape[1] - whole))
    places = np.concatenate([places, rest], axis=1)
    order = np.argsort(-np.take_along_axis(rows, places, axis=1), axis=1, kind="stable")[:, :count]
    return np.take_along_axis(places, order, axis=1)
