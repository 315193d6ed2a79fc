"""A tokenizer's mask token, and what `transformers` writes in its place: tokens by their names, and texts of tokens."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from schemas.records import Source
from stages.errors import TokenizerError
from stages.tokenizer_files import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger("penstock.fill_mask")

# What is remembered of names of tokens. Requests have the same ones again and again.
_MAX_TARGETS = 65_536
# Of targets that are no tokens, how many are told in the log: whoever sends them sees it in each answer.
_MAX_WARNINGS = 100


class MaskToken(NamedTuple):
    """Its number in the vocabulary, and how it is written in a text."""

    number: int
    word: str


def mask_of(tokenizer: PreTrainedTokenizerFast) -> MaskToken:
    """Raises TokenizerError where there is none."""
    if tokenizer.mask_token_id is None:
        raise TokenizerError(
            "tokenizer.source: this tokenizer has no mask token, which fill-mask is about: name it in the model's "
            "tokenizer_config.json (mask_token), or choose a masked language model's"
        )
    return MaskToken(int(tokenizer.mask_token_id), str(tokenizer.mask_token))


def mask_of_folder(folder: Path) -> MaskToken:
    """Of a model. Raises TokenizerError."""
    return mask_of(load_tokenizer(folder))


class MaskVocabulary:
    """The vocabulary that a masked token, `mask`, is answered in."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Raises TokenizerError."""
        self.mask = mask_of(tokenizer)
        self._padding = tokenizer.pad_token_id
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_padding()
        self._backend.no_truncation()
        # As transformers decides it: what tidies WordPiece's spaces would take some of BPE's away.
        self._tidies = bool(tokenizer.clean_up_tokenization_spaces) and (
            type(self._backend.model).__name__ != "BPE"
            or bool(
                getattr(tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
            )
        )
        self._words: dict[int, str] = {}
        self._targets: dict[str, int | None] = {}
        self._warnings = 0

    @classmethod
    def of_folder(cls, folder: Path) -> MaskVocabulary:
        """Of a model. Raises TokenizerError."""
        return cls(load_tokenizer(folder))

    def word(self, number: int) -> str:
        """A token alone."""
        word = self._words.get(number)
        if word is None:
            word = self._words[number] = self._tidied(self._backend.decode([number], skip_special_tokens=False))
        return word

    def texts(self, sequences: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        """What tokens are written as, padding left out."""
        padding = self._padding
        kept = [
            [number for number in sequence if number != padding] if padding in sequence else [*sequence]
            for sequence in sequences
        ]
        decoded = self._backend.decode_batch(kept, skip_special_tokens=skip_special_tokens)
        return [self._tidied(text) for text in decoded] if self._tidies else decoded

    def target(self, name: str, source: Source) -> int | None:
        """The token of this name; of one that the vocabulary has not, the first that it is read as, and nothing where
        it is read as none. `source` is the request's, for the log."""
        if name not in self._targets:
            if len(self._targets) >= _MAX_TARGETS:
                self._targets.clear()
            self._targets[name] = self._found(name, source)
        return self._targets[name]

    def _found(self, name: str, source: Source) -> int | None:
        number: int | None = self._backend.token_to_id(name)
        if number is not None:
            return number
        ids = self._backend.encode(name, add_special_tokens=False).ids
        first = int(ids[0]) if ids else None
        self._warnings += 1
        if self._warnings <= _MAX_WARNINGS:
            instead = "nothing" if first is None else repr(self.word(first))
            log.warning("%s: a target is no token of the vocabulary: %s is taken in its place", source, instead)
        return first

    def _tidied(self, text: str) -> str:
        return self._tokenizer.clean_up_tokenization(text) if self._tidies else text
