"""Feature extraction: the hidden state of each token, as `transformers`' FeatureExtractionPipeline answers it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from schemas.errors import BadRecord, Reason
from schemas.packs import PackedText
from schemas.results import Output
from stages.embeddings import DECIMALS


class FeatureExtraction:
    """A list of `width` numbers for each token of the text, special ones included."""

    def __init__(self, *, width: int) -> None:
        self._width = width

    def of_tokens(
        self,
        rows: NDArray[np.float64],
        details: NDArray[np.int32],  # noqa: ARG002 - whatever the token is
        text: PackedText,  # noqa: ARG002
    ) -> Output:
        if rows.shape[1] != self._width:
            raise BadRecord(Reason.BAD_PACK, f"a token of {rows.shape[1]} numbers, the model's have {self._width}")
        features: list[list[float]] = rows.round(DECIMALS).tolist()
        return features
