"""A model's tokenizer, as `transformers.AutoTokenizer` finds it in the model's folder."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from stages.errors import TokenizerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

# What transformers calls them, by family.
_SENTENCEPIECE_MODELS = {"sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model"}


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """A model's, which must be a fast one. Raises TokenizerError."""
    tokenizer = load_any_tokenizer(folder)
    if not tokenizer.is_fast:
        raise no_offsets(type(tokenizer).__name__)
    return cast("PreTrainedTokenizerFast", tokenizer)


def no_offsets(name: str) -> TokenizerError:
    """What is said of a tokenizer, by its class, where a task asks which characters a token is of."""
    return TokenizerError(
        f"tokenizer.source: {name} does not tell which characters a token is of, as this task must know: choose a "
        "model with a tokenizer.json"
    )


def load_any_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A model's: a fast one where transformers has or can make one (of vocab.txt, of vocab.json and merges.txt, of a
    SentencePiece model), else a slow one. Raises TokenizerError."""
    if _needs_sentencepiece(folder):
        raise TokenizerError(
            f"tokenizer.source: {folder} has its vocabulary as a SentencePiece model alone, which can't be read: "
            "pip install sentencepiece, or fetch the model's tokenizer.json"
        )
    # Without PyTorch, transformers advises on import to install it. Its tokenizers don't need it.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as err:  # what a broken file raises is anything, `Exception` itself included
        first_line = (str(err).strip().splitlines() or [""])[0]
        raise TokenizerError(
            f"tokenizer.source: no tokenizer can be loaded from {folder}: {type(err).__name__}: {first_line}"
        ) from err
    # Of a folder without a tokenizer's files transformers makes one that knows its special tokens and no word.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise TokenizerError(
            f"tokenizer.source: {folder} has no vocabulary: fetch the model's tokenizer.json (or vocab.txt) into it"
        )
    return tokenizer


class SlowTokenizer:
    """A slow tokenizer of transformers as a `stages.own.Tokenizer`: a text at a time, in Python."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.build_inputs_with_special_tokens = tokenizer.build_inputs_with_special_tokens
        self.create_token_type_ids_from_sequences = tokenizer.create_token_type_ids_from_sequences

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        # verbose: it would warn of each text that is longer than a window.
        return [self._tokenizer.encode(text, add_special_tokens=False, verbose=False) for text in texts]


def _needs_sentencepiece(folder: Path) -> bool:
    names = {path.name for path in folder.glob("*")}
    if names & {"tokenizer.json", "vocab.txt", "vocab.json"} or importlib.util.find_spec("sentencepiece") is not None:
        return False
    return bool(names & _SENTENCEPIECE_MODELS)
