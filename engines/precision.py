"""In what numbers an engine computes, and the scales of its 8-bit ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FloatType = Literal["fp32", "fp16", "bf16"]
EightBits = Literal["int8", "fp8"]
Precision = Literal["fp32", "fp16", "bf16", "fp8", "int8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How 8 bits are used, for each activation that a dense layer reads, by the name `dense_inputs` gives it.

    amax      the absolute value that becomes the largest number; larger ones are cut
    divisors  (in,), what each channel is divided by before it is rounded, and the layer's weights multiplied by, so
              that a channel of large numbers does not cost the others their digits (Xiao et al., SmoothQuant, 2022)
    """

    kind: EightBits
    amax: Mapping[str, float]
    divisors: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """What the encoder computes in, and its quantization, if any: that needs half precision around it."""

    floats: FloatType = "fp32"
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        assert self.quantization is None or self.floats != "fp32"


def dense_inputs(layers: int) -> list[str]:
    """Names of the activations that dense layers read, in the order of the graph."""
    places = ("attention", "attended", "intermediate", "inner")
    return [f"{layer}.{place}" for layer in range(layers) for place in places]
