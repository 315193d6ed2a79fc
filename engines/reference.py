"""The oracle: each text alone, unpacked, in plain NumPy, written from the papers and not from the graph.

Attention is All You Need (2017), BERT (2018), GELU (2016), RoFormer (2021), ModernBERT (2024). It shares the reading of
weights with the graph, so a tensor taken for another shows only against another implementation's numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint import Checkpoint
from engines.encoder import Encoder, EncoderLayer, read_encoder
from engines.heads import ModelOutput, PooledOutput, TokenOutput, check_outputs, token_names
from engines.numpy_outputs import activated, dense, finished, normed
from engines.relative_positions import FARTHEST
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
        hidden = encoder.words[ids].astype(np.float64)
        if encoder.positions is not None:
            hidden = hidden + encoder.positions[positions]
        hidden = normed(hidden, encoder.embeddings_norm)
        if encoder.projection is not None:
            hidden = dense(hidden, encoder.projection)
        for layer in encoder.layers:
            if encoder.final_norm is None:
                assert layer.attention_norm is not None
                hidden = normed(hidden + _attend(hidden, layer, encoder), layer.attention_norm)
                hidden = normed(hidden + _between(hidden, layer, encoder), layer.output_norm)
            else:
                before = hidden if layer.attention_norm is None else normed(hidden, layer.attention_norm)
                hidden = hidden + _attend(before, layer, encoder)
                hidden = hidden + _between(normed(hidden, layer.output_norm), layer, encoder)
        return hidden if encoder.final_norm is None else normed(hidden, encoder.final_norm)


def _between(hidden: NDArray[np.float64], layer: EncoderLayer, encoder: Encoder) -> NDArray[np.float64]:
    inner = activated(dense(hidden, layer.intermediate), encoder.activation)
    return dense(inner if layer.gate is None else inner * dense(hidden, layer.gate), layer.output)


def _attend(hidden: NDArray[np.float64], layer: EncoderLayer, encoder: Encoder) -> NDArray[np.float64]:
    (tokens, width), heads = hidden.shape, encoder.attention_heads
    query, key, value = (
        dense(hidden, each).reshape(tokens, heads, width // heads).transpose(1, 0, 2)  # (heads, T, d)
        for each in (layer.query, layer.key, layer.value)
    )
    if layer.theta is not None:
        query, key = (_turned(each, layer.theta) for each in (query, key))
    scores = query @ key.transpose(0, 2, 1) / math.sqrt(width // heads)  # (heads, T, T)
    apart = np.arange(tokens) - np.arange(tokens)[:, np.newaxis]
    if encoder.distances is not None:
        scores = scores + encoder.distances[np.clip(apart, -FARTHEST, FARTHEST) + FARTHEST].transpose(2, 0, 1)
    if layer.window is not None:
        scores = np.where(np.abs(apart) <= layer.window, scores, -np.inf)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    joined = (shares @ value).transpose(1, 0, 2).reshape(tokens, width)
    return dense(joined, layer.attention)


def _turned(value: NDArray[np.float64], theta: float) -> NDArray[np.float64]:
    """(heads, T, d): each number and that of the same place in the second half are a complex number, turned by an
    angle that grows with the position."""
    half = value.shape[-1] // 2
    angles = np.arange(value.shape[1])[:, np.newaxis] * theta ** -(np.arange(half) / half)
    turned = (value[..., :half] + 1j * value[..., half:]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def _pool(output: PooledOutput, hidden: NDArray[np.float64], positions: NDArray[np.int32]) -> NDArray[np.float64]:
    match output.pooling:
        case "mean":
            pooled = hidden.mean(axis=0)
        case "max":
            pooled = hidden.max(axis=0)
        case "cls":
            pooled = hidden[positions == 0][0]
        case _:
            assert_never(output.pooling)
    return finished(output, pooled)
