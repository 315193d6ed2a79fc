"""What classes of one's own are, and what they are written with: all that `docs/own-classes.md` speaks of.

The ensemble file names them as `module:Class`. Each is a protocol: there is nothing to inherit from.

    Tokenizer    `tokenizer.class`   texts to token ids
    BatchEngine  `engine.kind`       padded batches to numbers; or `Engine`, packed rows to numbers
    TextTask     `models[].task`     a text's numbers to what is answered; or `PairsTask`, `TokensTask`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineBusy, EngineError
from engines.own_batches import BatchEngine
from engines.rows import Engine, PackedRows
from schemas.errors import BadRecord, Reason
from schemas.packs import PackedText
from schemas.parameters import NOTHING_ASKED, Parameters, asked_or

__all__ = [
    "NOTHING_ASKED",
    "BadRecord",
    "BatchEngine",
    "Engine",
    "EngineBusy",
    "EngineError",
    "PackedRows",
    "PackedText",
    "PairsTask",
    "Parameters",
    "Reason",
    "TextTask",
    "Tokenizer",
    "TokensTask",
    "asked_or",
]


class Tokenizer(Protocol):
    """Token ids of texts. Any number of optional methods and attributes beside it, under transformers' names:

    build_inputs_with_special_tokens(ids, pair_ids=None)   a text's ids with special ones around; without it there are
                                                           none, and pairs are refused
    create_token_type_ids_from_sequences(ids, pair_ids)    of a pair that is so built; without it all are 0
    model_max_length                                       the most tokens of a window
    offsets(texts)                                         of each token (start, end), characters of its text; with
    convert_ids_to_tokens(ids), convert_tokens_to_string(tokens)   needed for token-classification
    unk_token_id, continuing_subword_prefix                what token-classification asks of a vocabulary, if there is
    """

    def __call__(self, texts: Sequence[str], /) -> Sequence[Sequence[int]]:
        """One list a text, in order, without special tokens, whatever its length."""
        ...


class TextTask(Protocol):
    """The numbers (texts, W) of several texts to one output a text, in order, anything that is JSON.

    Where the class has `parameters`, a tuple of names of `Parameters`, requests may ask for those, and `asked`, one a
    text, is handed as the second argument. `reads` names the built-in task whose numbers it reads, `json_schema` what
    `penstock describe` says of its output. It must be able to answer a row of zeros.
    """

    def __call__(self, rows: NDArray[np.float64], /) -> Sequence[object]: ...


class PairsTask(Protocol):
    """The same of the rows (pairs, W) of one request, with `reads = "text-ranking"` or "zero-shot-classification"."""

    def of_pairs(self, rows: NDArray[np.float64], text: PackedText, /) -> object: ...


class TokensTask(Protocol):
    """The same of the rows (tokens, W) of one text; `details` (tokens, 4) as `schemas.packs.TokenPack` has them."""

    def of_tokens(self, rows: NDArray[np.float64], details: NDArray[np.int32], text: PackedText, /) -> object: ...
