"""What NumPy and ONNX call the numbers of a graph. Only who writes one needs these libraries."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
from onnx import TensorProto

from engines.precision import EightBits, FloatType

# The largest number of each: INT8 is used symmetrically, FP8 is E4M3 (Micikevicius et al., FP8 Formats for Deep
# Learning, 2022).
LARGEST: Mapping[EightBits, float] = {"int8": 127.0, "fp8": 448.0}

FLOAT_TYPES: Mapping[FloatType, np.dtype] = {
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}
ONNX_TYPES: Mapping[FloatType | EightBits, int] = {
    "fp32": TensorProto.FLOAT,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "int8": TensorProto.INT8,
    "fp8": TensorProto.FLOAT8E4M3FN,
}
ZERO_POINTS: Mapping[EightBits, np.dtype] = {
    "int8": np.dtype(np.int8),
    "fp8": np.dtype(ml_dtypes.float8_e4m3fn),
}
