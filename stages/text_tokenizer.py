"""A model's tokenizer: texts in, windows of token ids out.

It is whatever `transformers.AutoTokenizer` finds in the model's folder. Fixed padding and truncation in its
`tokenizer.json` (many sentence-transformers carry 128) are turned off: rows are packed, and a long text is never cut
silently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from schemas.errors import BadRecord, Reason
from stages.errors import TokenizerError
from stages.mask_tokens import MaskToken, mask_of
from stages.pairs import PairTemplate, Truncation
from stages.plain_tokens import PlainTokens
from stages.token_details import TokenDetails
from stages.tokenizer_files import SlowTokenizer, load_any_tokenizer
from stages.word_cache import Windows, WordCache

if TYPE_CHECKING:
    from stages.own import Tokenizer

LongTexts = Literal["stride", "truncate", "reject"]

# Rust keeps 200 to 400 bytes a token until a call returns: 430 MB for a megabyte of one-letter words, 3 GB for sixteen.
# The 1,024 sentences that a worker tokenizes at once (180,000 characters) still go in one call.
_MAX_CALL_CHARACTERS = 256 * 1024


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """`windows` are int32 (tokens,), special tokens included, each at most the tokenizer's `max_length`. Tokens of a
    pair's second text are SECOND_TEXT higher. `details` are each window's, (tokens, 4), where they were asked for."""

    windows: list[NDArray[np.int32]]
    truncated: bool
    details: list[NDArray[np.int32]] | None = None


class TextTokenizer:
    """A model's tokenizer with one policy for texts longer than `max_length` tokens.

    `stride` cuts them into windows that share `stride` tokens, `truncate` keeps the first window and says so,
    `reject` raises BadRecord for that text. `slow` is what the tokenizer is called where it is a slow one, written in
    Python; only without `has_offsets` nobody knows which characters a token is of.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_length: int,
        long_texts: LongTexts,
        stride: int | Callable[[int], int],
        own: Tokenizer | None = None,
    ) -> None:
        """The tokenizer in the model's folder, or one of the user's `own`; `stride` may be a function of the windows'
        tokens, which the tokenizer may know to be fewer. Raises TokenizerError."""
        found: Any = own or load_any_tokenizer(folder)
        self.max_length = min(max_length, getattr(found, "model_max_length", max_length))
        self._long_texts = long_texts
        self.slow = ""
        self._loaded: Any = None
        if own is None and found.is_fast:
            backend, plain = found.backend_tokenizer, None
            special = backend.num_special_tokens_to_add(is_pair=False)
        else:
            name = type(found).__name__
            if own is None:
                found, self.slow = SlowTokenizer(found), name
            backend, plain = None, PlainTokens(found, name)
            special = plain.special
        self.has_offsets = plain is None or plain.has_offsets
        if long_texts != "stride":
            stride = 0
        elif not isinstance(stride, int):
            stride = stride(self.max_length)
        if stride >= self.max_length - special:
            raise TokenizerError(
                f"tokenizer.stride: {stride} leaves no room in windows of {self.max_length} tokens, of which "
                f"{special} are special; allowed: 0 to {self.max_length - special - 1}"
            )
        if plain is not None:
            plain.enable_truncation(self.max_length, stride=stride)
            self._pairs: PairTemplate | None = plain.pairs
            self._backend: WordCache | PlainTokens = plain
            self._details: TokenDetails | PlainTokens = plain
            return
        backend.no_padding()
        backend.no_truncation()
        try:
            self._pairs = PairTemplate(backend)
        except ValueError:
            self._pairs = None
        backend.enable_truncation(self.max_length, stride=stride)
        self._backend = WordCache(backend)
        self._details = TokenDetails(backend, stride=stride)
        self._loaded = found

    def mask(self) -> MaskToken:
        """The mask token of a fast tokenizer. Raises TokenizerError where it has none."""
        assert self._loaded is not None, "only a model's own fast tokenizer is asked"
        return mask_of(self._loaded)

    @property
    def window_tokens(self) -> int:
        """Of the longest window."""
        return self.max_length

    def __call__(self, texts: Sequence[str]) -> list[TokenizedText | BadRecord]:
        """One entry a text, in order."""
        outcomes: list[TokenizedText | BadRecord] = []
        for call in in_calls(texts):
            outcomes.extend(map(self._outcome, self._backend.windows(call)))
        return outcomes

    def with_details(self, texts: Sequence[str]) -> list[TokenizedText | BadRecord]:
        """The same with each token's details."""
        outcomes: list[TokenizedText | BadRecord] = []
        for call in in_calls(texts):
            for details in self._details.of_windows(call):
                outcome = self._outcome([each[:, 0] for each in details])
                if isinstance(outcome, TokenizedText):
                    outcome = replace(outcome, details=details[: len(outcome.windows)])
                outcomes.append(outcome)
        return outcomes

    def pairs(
        self, pairs: Sequence[tuple[str, str]], *, truncation: Truncation = "longest_first"
    ) -> list[TokenizedText | BadRecord]:
        """One entry a pair, in order. A pair has one window: what it can't hold is cut off, unless long texts are
        rejected."""
        if self._pairs is None or self.max_length <= self._pairs.special:
            return [BadRecord(Reason.BAD_REQUEST, "text_pair: this ensemble's tokenizer reads no pairs")] * len(pairs)
        # A query stands in many pairs.
        texts = [*dict.fromkeys(text for pair in pairs for text in pair)]
        ids = dict(zip(texts, (each for call in in_calls(texts) for each in self._backend.ids(call)), strict=True))
        outcomes: list[TokenizedText | BadRecord] = []
        for first, second in pairs:
            window, truncated = self._pairs.window(
                ids[first], ids[second], max_length=self.max_length, truncation=truncation
            )
            if truncated and self._long_texts == "reject":
                outcomes.append(self._too_long("pair"))
            else:
                outcomes.append(TokenizedText([window], truncated=truncated))
        return outcomes

    def _outcome(self, windows: Windows) -> TokenizedText | BadRecord:
        if not len(windows[0]):
            # Only without special tokens, which no published model of the BERT family does.
            return BadRecord(Reason.BAD_REQUEST, "the tokenizer makes no token of the text")
        truncated = False
        if len(windows) > 1:
            if self._long_texts == "reject":
                return self._too_long("text")
            if self._long_texts == "truncate":
                windows, truncated = windows[:1], True
        return TokenizedText(windows, truncated=truncated)

    def _too_long(self, what: str) -> BadRecord:
        return BadRecord(
            Reason.TEXT_TOO_LONG,
            f"the {what} has more than {self.max_length} tokens and the ensemble rejects long texts",
        )


def in_calls(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts in order, in lists of at most _MAX_CALL_CHARACTERS; a longer text is alone."""
    call: list[str] = []
    characters = 0
    for text in texts:
        if call and characters + len(text) > _MAX_CALL_CHARACTERS:
            yield call
            call, characters = [], 0
        call.append(text)
        characters += len(text)
    if call:
        yield call
