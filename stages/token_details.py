"""Details of tokens: which one it is, its place in the text, and the characters that it is of.

Tasks that answer something of each token need them, to join a long text's windows and to say where a token stands.
They go the tokenizer's usual way, which tells characters: 25 us a text instead of 5.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from schemas.packs import DETAILS, SECOND_TEXT, SPECIAL


class TokenDetails:
    """Of what a tokenizer makes of texts."""

    def __init__(self, tokenizer: Tokenizer, *, stride: int) -> None:
        """The tokenizer as it is to be used, truncation and all: its windows share `stride` tokens."""
        self._tokenizer = tokenizer
        self._stride = stride

    def of_windows(self, texts: Sequence[str]) -> list[list[NDArray[np.int32]]]:
        """One entry a text, in order: of each of its windows int32 (tokens, 4), as `schemas.packs.TokenPack` has them.

        Raises what the tokenizer raises.
        """
        return [self._of_text(encoding) for encoding in self._tokenizer.encode_batch(list(texts))]

    def _of_text(self, encoding: Encoding) -> list[NDArray[np.int32]]:
        first_place = 0
        windows: list[NDArray[np.int32]] = []
        for window in (encoding, *encoding.overflowing):
            details = np.empty((len(window.ids), DETAILS), np.int32)
            real = np.array(window.special_tokens_mask, np.int32) == 0
            details[:, 0] = window.ids
            details[:, 1] = np.where(real, np.cumsum(real) - 1 + first_place, SPECIAL)
            details[:, 2:] = np.array(window.offsets, np.int32).reshape(-1, 2)
            first_place += int(real.sum()) - self._stride
            windows.append(details)
        return windows


def bare_details(window: NDArray[np.int32]) -> NDArray[np.int32]:
    """Of a pair's window, of which no more is known than its tokens."""
    details = np.zeros((len(window), DETAILS), np.int32)
    details[:, 0] = window & ~np.int32(SECOND_TEXT)
    details[:, 1] = SPECIAL
    return details


def rows_once(windows: Sequence[NDArray[np.int32]]) -> NDArray[np.intp]:
    """Which rows of a text's windows, end to end, are its tokens once each, in order.

    Special tokens are kept where the first window begins and where the last one ends. A token that several windows
    share is taken from the one where it has more context on its shorter side, of equals from the first: there the
    model has read most of what stands around it.
    """
    if len(windows) == 1:
        return np.arange(len(windows[0]))
    places = np.concatenate([window[:, 1] for window in windows])
    context = np.concatenate([_context(window[:, 1] != SPECIAL) for window in windows])
    real = np.flatnonzero(places != SPECIAL)
    if not real.size:
        return np.arange(len(places))
    order = real[np.lexsort((real, -context[real], places[real]))]
    _, first = np.unique(places[order], return_index=True)
    return np.concatenate([np.arange(real[0]), order[first], np.arange(real[-1] + 1, len(places))])


def _context(real: NDArray[np.bool_]) -> NDArray[np.intp]:
    """How many of the window's tokens stand on the shorter side of each, special ones aside."""
    number = np.cumsum(real) - 1
    context: NDArray[np.intp] = np.minimum(number, number[-1] - number)
    return context
