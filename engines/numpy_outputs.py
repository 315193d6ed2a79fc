"""From a text's vector to its outputs in NumPy, float64: normalising, and a head of dense layers.

For what computes on the processor, or ends there: the oracle, and plans that are not of this package's graphs.
"""

from __future__ import annotations

import math
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint import Pooling
from engines.families import Activation
from engines.heads import SMALLEST_NORM, DenseLayer, ModelOutput, Norm, PooledOutput

_erf = np.frompyfunc(math.erf, 1, 1)


def finished(output: ModelOutput, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """The output's numbers (..., W) of vectors (..., H): pooled ones, or tokens'."""
    value = vectors
    if isinstance(output, PooledOutput) and output.normalize:
        value = value / np.maximum(np.linalg.norm(value, axis=-1, keepdims=True), SMALLEST_NORM)
    for layer in output.head.layers if output.head else ():
        value = dense(value, layer)
        if layer.activation is not None:
            value = activated(value, layer.activation)
        if layer.norm is not None:
            value = normed(value, layer.norm)
    return value


def pooled(found: NDArray[np.floating], pooling: Pooling | None, lengths: NDArray[np.intp]) -> NDArray[np.float64]:
    """(N, W) of (N, W), or of (N, S, W). Only a text's own tokens are read: zero times a NaN would be one. It is faster
    than a product with the mask, too: 4.3 ms of 512 texts of 24 tokens in 32, against 6.7."""
    if pooling == "mean":
        found = np.stack(
            [row[:length].mean(axis=0, dtype=np.float32) for row, length in zip(found, lengths, strict=True)]
        )
    elif pooling == "max":
        found = np.stack([row[:length].max(axis=0) for row, length in zip(found, lengths, strict=True)])
    elif pooling == "cls":
        found = found[:, 0]
    return found.astype(np.float64)


def dense(value: NDArray[np.float64], layer: DenseLayer) -> NDArray[np.float64]:
    """(..., in) to (..., out), without what follows."""
    product: NDArray[np.float64] = value @ layer.weight.T.astype(np.float64)
    return product if layer.bias is None else product + layer.bias


def normed(value: NDArray[np.float64], norm: Norm) -> NDArray[np.float64]:
    """Layer norm of (..., H)."""
    centred = value - value.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    result: NDArray[np.float64] = centred / np.sqrt(variance + norm.epsilon) * norm.weight + norm.bias
    return result


def activated(value: NDArray[np.float64], activation: Activation) -> NDArray[np.float64]:
    """By the papers: `gelu` and `gelu_tanh` are GELU's two formulas."""
    match activation:
        case "relu":
            return np.maximum(value, 0.0)
        case "tanh":
            return np.tanh(value)
        case "gelu":
            return value * 0.5 * (1.0 + np.asarray(_erf(value / math.sqrt(2.0)), np.float64))
        case "gelu_tanh":  # the paper's second formula
            inner = math.sqrt(2.0 / math.pi) * (value + 0.044715 * value**3)
            return value * 0.5 * (1.0 + np.tanh(inner))
        case _:
            assert_never(activation)
