"""Real texts, tokenized as the ensemble does: what a plan is checked on, and what 8-bit scales are measured over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from engines.rows import PackedRows
from pipeline.demo.texts import SHIPPED_TEXTS, count_texts, read_texts
from pipeline.settings import EnsembleSettings
from schemas.errors import BadRecord
from stages.microbatcher import cut
from stages.packing import pack_rows
from stages.text_tokenizer import TextTokenizer

# Token ids of each window, when they are wanted.
Windows = Callable[[], list[NDArray[np.int32]]]

# A share of 99 % equal decisions is told from 98.5 %.
TEXTS = 1024


def sample_windows(settings: EnsembleSettings, tokenizer: TextTokenizer) -> list[NDArray[np.int32]]:
    """Windows of `engine.sample_texts`, by default of English speeches. Raises UserError."""
    path = settings.engine.sample_texts or SHIPPED_TEXTS
    texts = list(islice(read_texts(path), count_texts(path, at_most=TEXTS)))
    tokenized = [each for each in tokenizer(texts) if not isinstance(each, BadRecord)]
    return [window for text in tokenized for window in text.windows]


def sample_rows(
    windows: Sequence[NDArray[np.int32]], *, row_length: int, max_batch_tokens: int
) -> list[tuple[PackedRows, list[int]]]:
    """In micro-batches, each with the windows that lie in it, by index."""
    batches = cut([len(window) for window in windows], max_batch_size=len(windows), max_batch_tokens=max_batch_tokens)
    return [
        (group.rows, [batch[place] for place in group.windows])
        for batch in batches
        for group in pack_rows([windows[index] for index in batch], row_length=row_length)
    ]
