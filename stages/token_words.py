"""Words of tokens: how `transformers` writes what a token, or several, are of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from engines.own_exits import no_exit
from stages.errors import TokenizerError
from stages.tokenizer_files import load_tokenizer


class TokenWords:
    """A tokenizer's vocabulary and decoder.

    unknown         the number of the token for what the vocabulary lacks, if there is one
    marks_subwords  whether a token says that it continues a word, as WordPiece's ## does
    """

    def __init__(self, tokenizer: Tokenizer, *, unknown: int | None) -> None:
        self.unknown = unknown
        self.marks_subwords = bool(getattr(tokenizer.model, "continuing_subword_prefix", None))
        self._tokens = _Tokens(tokenizer)
        self._decoder = tokenizer.decoder

    @classmethod
    def of_folder(cls, folder: Path) -> TokenWords:
        """Of a model. Raises TokenizerError."""
        tokenizer = load_tokenizer(folder)
        return cls(tokenizer.backend_tokenizer, unknown=tokenizer.unk_token_id)

    def token(self, number: int) -> str:
        """As the vocabulary has it; nothing where it has not that many."""
        return self._tokens[number]

    def joined(self, tokens: Sequence[str]) -> str:
        """One string of them."""
        joined: str = " ".join(tokens) if self._decoder is None else self._decoder.decode([*tokens])
        return joined


def no_method(tokenizer: str, name: str) -> TokenizerError:
    """What is said of a tokenizer of the user's own, by its class, that says too little of its tokens."""
    return TokenizerError(
        f"tokenizer.class: {tokenizer} has no {name}(), which token-classification needs: write it, or choose another "
        "task"
    )


class OwnTokenWords(TokenWords):
    """Of a tokenizer of the user's own (`stages.own.Tokenizer`)."""

    @no_exit()
    def __init__(self, tokenizer: Any) -> None:
        """Raises TokenizerError where it does not write its tokens."""
        for name in ("offsets", "convert_ids_to_tokens", "convert_tokens_to_string"):
            if not callable(getattr(tokenizer, name, None)):
                raise no_method(type(tokenizer).__name__, name)
        self.unknown = getattr(tokenizer, "unk_token_id", None)
        self.marks_subwords = bool(getattr(tokenizer, "continuing_subword_prefix", None))
        self._tokenizer = tokenizer

    @no_exit()
    def token(self, number: int) -> str:
        [token] = self._tokenizer.convert_ids_to_tokens([number])
        return str(token)

    @no_exit()
    def joined(self, tokens: Sequence[str]) -> str:
        return str(self._tokenizer.convert_tokens_to_string([*tokens]))


class _Tokens(dict[int, str]):
    """Those that were met: asking the vocabulary takes ten times as long."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __missing__(self, number: int) -> str:
        token = self._tokenizer.id_to_token(number) if number >= 0 else None
        self[number] = token or ""
        return self[number]
