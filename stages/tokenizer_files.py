"""A model's tokenizer, as `transformers.AutoTokenizer` finds it in the model's folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import TokenizerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """A model's. Raises TokenizerError."""
    # Without PyTorch, transformers advises on import to install it. Its tokenizers don't need it.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as err:  # what a broken file raises is anything, `Exception` itself included
        first_line = (str(err).strip().splitlines() or [""])[0]
        raise TokenizerError(
            f"tokenizer.source: no tokenizer can be loaded from {folder}: {type(err).__name__}: {first_line}"
        ) from err
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise TokenizerError(f"tokenizer.source: {folder} has no tokenizer.json (a fast tokenizer)")
    # Of a folder without a tokenizer's files transformers makes one that knows its special tokens and no word.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise TokenizerError(
            f"tokenizer.source: {folder} has no vocabulary: fetch the model's tokenizer.json (or vocab.txt) into it"
        )
    return tokenizer
