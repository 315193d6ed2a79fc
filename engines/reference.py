"""The oracle: each text alone, unpacked, in plain NumPy, written from the papers and not from the graph.

Attention is All You Need (2017), BERT (2018), GELU (2016). It shares the reading of weights with the graph, so a
tensor taken for another shows only against another implementation's numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint import Checkpoint
from engines.encoder import EncoderLayer, Norm, read_encoder
from engines.heads import ModelOutput, PooledOutput, TokenOutput, check_outputs, token_names
from engines.numpy_outputs import activated, dense, finished
from engines.rows import PackedRows, checked_rows, empty_answers


class ReferenceEngine:
    """Implements `engines.rows.Engine`, computing in float64 and answering in float32."""

    def __init__(self, checkpoint: Checkpoint, outputs: Sequence[ModelOutput]) -> None:
        self._encoder = read_encoder(checkpoint)
        self._max_positions = checkpoint.max_positions
        self._types = checkpoint.types
        self._outputs = tuple(outputs)
        self._widths = check_outputs(outputs, hidden_size=self._encoder.hidden_size)

    @property
    def widths(self) -> Mapping[str, int]:
        return self._widths

    @property
    def of_tokens(self) -> frozenset[str]:
        return token_names(self._outputs)

    def run(self, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
        rows = checked_rows(
            rows, vocab_size=self._encoder.vocab_size, max_positions=self._max_positions, types=self._types
        )
        answers = empty_answers(rows, self._widths, self.of_tokens)
        for text, (row, slot) in enumerate(zip(rows.row, rows.slot, strict=True)):
            mine = rows.segment_ids[row] == slot + 1
            hidden = self._encode(rows.input_ids[row][mine], rows.position_ids[row][mine])  # (T, H)
            for output in self._outputs:
                if isinstance(output, TokenOutput):
                    answers[output.name][row][mine] = finished(output, hidden)
                else:
                    answers[output.name][text] = _pool(output, hidden, rows.position_ids[row][mine])
        return answers

    def close(self) -> None:
        """Nothing is held."""

    def _encode(self, ids: NDArray[np.int32], positions: NDArray[np.int32]) -> NDArray[np.float64]:
        encoder = self._encoder
        hidden = encoder.words[ids].astype(np.float64) + encoder.positions[positions]
        hidden = _norm(hidden, encoder.embeddings_norm, encoder.norm_epsilon)
        if encoder.projection is not None:
            hidden = dense(hidden, encoder.projection)
        for layer in encoder.layers:
            attended = _attend(hidden, layer, encoder.attention_heads)
            hidden = _norm(hidden + attended, layer.attention_norm, encoder.norm_epsilon)
            inner = activated(dense(hidden, layer.intermediate), encoder.activation)
            hidden = _norm(hidden + dense(inner, layer.output), layer.output_norm, encoder.norm_epsilon)
        return hidden


def _norm(value: NDArray[np.float64], norm: Norm, epsilon: float) -> NDArray[np.float64]:
    centred = value - value.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    normed: NDArray[np.float64] = centred / np.sqrt(variance + epsilon) * norm.weight + norm.bias
    return normed


def _attend(hidden: NDArray[np.float64], layer: EncoderLayer, heads: int) -> NDArray[np.float64]:
    tokens, width = hidden.shape
    query, key, value = (
        dense(hidden, each).reshape(tokens, heads, width // heads).transpose(1, 0, 2)  # (heads, T, d)
        for each in (layer.query, layer.key, layer.value)
    )
    scores = query @ key.transpose(0, 2, 1) / math.sqrt(width // heads)  # (heads, T, T)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    joined = (shares @ value).transpose(1, 0, 2).reshape(tokens, width)
    return dense(joined, layer.attention)


def _pool(output: PooledOutput, hidden: NDArray[np.float64], positions: NDArray[np.int32]) -> NDArray[np.float64]:
    return finished(output, hidden.mean(axis=0) if output.pooling == "mean" else hidden[positions == 0][0])
