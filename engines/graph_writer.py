"""Writes an ONNX graph: its nodes and constants, in the types that its encoder computes in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engines.errors import CheckpointError
from engines.families import Activation
from engines.heads import DenseLayer, Norm
from engines.number_types import FLOAT_TYPES, LARGEST, ONNX_TYPES, ZERO_POINTS
from engines.precision import Numbers

# Of opsets the lowest that has what is needed, with the version of the format that came with it: 20 has Gelu, and
# 8-bit floats since 19.
OPSET, IR_VERSION = 17, 8
HALVED_OPSET, HALVED_IR_VERSION = 20, 9

INPUTS = ("input_ids", "position_ids", "segment_ids", "slots", "texts")

# A constant's name -> its value.
Weights = dict[str, NDArray[Any]]

# What a graph keeps itself in any case: shapes and indices, which libraries want to see as they read it, are smaller.
_SMALL = 1024


class Graph:
    """Nodes and constants in the order they are added; a value's name is its node's.

    Every name but an input's and an output's starts with a slash, so that none meets an output's; with `named` after
    it, where several are to be joined.
    """

    def __init__(self, numbers: Numbers, told: Sequence[str], beside: Weights | None, *, named: str = "") -> None:
        self._prefix = f"/{named}" if named else ""
        self._numbers = numbers
        self._told = frozenset(told)
        self._beside = beside
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    @property
    def halved(self) -> bool:
        """Whether the encoder computes in half precision."""
        return self._numbers.floats != "fp32"

    def add(self, operator: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        value = name or f"{self._prefix}/{len(self.nodes)}/{operator}"
        self.nodes.append(helper.make_node(operator, inputs, [value], name=value, **attributes))
        return value

    def constant(self, value: NDArray[Any], name: str | None = None) -> str:
        """As it is."""
        name = name or f"{self._prefix}/constant/{len(self.constants)}"
        if self._beside is None or value.nbytes < _SMALL:
            tensor = numpy_helper.from_array(value, name)
        else:
            self._beside[name] = np.asarray(value, order="C")
            tensor = _named_only(name, value)
        self.constants.append(tensor)
        return name

    def floats(self, value: NDArray[np.float32] | float) -> str:
        """A constant of the type that the encoder computes in."""
        return self.constant(np.asarray(value, FLOAT_TYPES[self._numbers.floats]))

    def cast(self, value: str) -> str:
        """To the type that the encoder computes in."""
        return self.add("Cast", value, to=ONNX_TYPES[self._numbers.floats])

    def to_float32(self, value: str) -> str:
        """From that type."""
        return value if self._numbers.floats == "fp32" else self.add("Cast", value, to=TensorProto.FLOAT)

    def activated(self, value: str, activation: Activation, *, exact: bool = False) -> str:
        """A value of the encoder's type; with `exact` of float32, and GELU by its own formula."""
        if activation == "relu":
            return self.add("Relu", value)
        if activation == "tanh":
            return self.add("Tanh", value)
        if self.halved and not exact:
            # By its approximation with tanh, from the same paper: it is off by less than 0.0005, about what rounding
            # to float16 is, and TensorRT computes it with the product before it (7 % of BERT-base, with 8 bits 12 %).
            return self.add("Gelu", value, approximate="tanh")

        def number(value: float) -> str:
            return self.constant(np.asarray(value, np.float32))

        if activation == "gelu_tanh":
            # x/2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
            cubed = self.add("Mul", self.add("Mul", self.add("Mul", value, value), value), number(0.044715))
            inner = self.add("Mul", self.add("Add", value, cubed), number(math.sqrt(2.0 / math.pi)))
            bend = self.add("Tanh", inner)
        else:
            # x/2 (1 + erf(x / sqrt 2)), in the shape that engines know to fuse.
            bend = self.add("Erf", self.add("Div", value, number(math.sqrt(2.0))))
        return self.add("Mul", self.add("Mul", value, self.add("Add", bend, number(1.0))), number(0.5))

    def divided(self, layer: DenseLayer, by: str) -> DenseLayer:
        """The layer whose outputs are divided by an activation's divisors already."""
        quantization = self._numbers.quantization
        if quantization is None or (divisors := quantization.divisors.get(by)) is None:
            return layer
        bias = None if layer.bias is None else layer.bias / divisors
        return DenseLayer(weight=layer.weight / divisors[:, np.newaxis], bias=bias)

    def dense(self, value: str, layer: DenseLayer, *, reads: str, divided: bool = False) -> str:
        """The layer over an activation of this name, both rounded to 8 bits where that is wanted. `divided`: whether
        the activation is already."""
        if reads in self._told:
            self.add("ReduceMax", self.add("Abs", value), name=reads, axes=[0, 1], keepdims=0)
        weight = layer.weight.T
        if (quantization := self._numbers.quantization) is None:
            product = self.add("MatMul", value, self.floats(weight))
        else:
            if (divisors := quantization.divisors.get(reads)) is not None:
                weight = weight * divisors[:, np.newaxis]
                if not divided:
                    value = self.add("Mul", value, self.floats(np.float32(1) / divisors))
            value = self._rounded(value, np.asarray(quantization.amax[reads], np.float32), {})
            rounded = self._rounded(self.floats(weight), np.abs(weight).max(axis=0), {"axis": 1})
            product = self.add("MatMul", value, rounded)
        return product if layer.bias is None else self.add("Add", product, self.floats(layer.bias))

    def plain(self, value: str, layer: DenseLayer) -> str:
        """The layer in the encoder's numbers, whatever the others are rounded to."""
        product = self.add("MatMul", value, self.floats(layer.weight.T))
        return product if layer.bias is None else self.add("Add", product, self.floats(layer.bias))

    def split(self, value: str, sizes: Sequence[int]) -> list[str]:
        """Its last axis in parts of these sizes."""
        parts = [f"{self._prefix}/{len(self.nodes)}/Split/{place}" for place in range(len(sizes))]
        inputs = [value, self.constant(np.array(sizes, np.int64))]
        self.nodes.append(helper.make_node("Split", inputs, parts, name=parts[0], axis=-1))
        return parts

    def normed(self, value: str, norm: Norm, *, exact: bool = False) -> str:
        """A value of the encoder's type; with `exact` of float32."""
        constant = self.constant if exact else self.floats
        weight, bias = constant(norm.weight), constant(norm.bias)
        return self.add("LayerNormalization", value, weight, bias, axis=-1, epsilon=norm.epsilon)

    def _rounded(self, value: str, amax: NDArray[np.float32], axis: Mapping[str, Any]) -> str:
        assert self._numbers.quantization is not None
        kind = self._numbers.quantization.kind
        # A float16's scale is not to become 0.
        scale = self.floats(np.maximum(amax / np.float32(LARGEST[kind]), np.float32(1e-6)))
        zero = self.constant(np.zeros(amax.shape, ZERO_POINTS[kind]))
        return self.add("DequantizeLinear", self.add("QuantizeLinear", value, scale, zero, **axis), scale, zero, **axis)

    def model(self, widths: dict[str, int], of_tokens: frozenset[str] = frozenset()) -> onnx.ModelProto:
        """All of it, with an output for each name, some `of_tokens`. Raises CheckpointError where an input has it."""
        for name in INPUTS:
            if name in widths:
                raise CheckpointError(f"output {name!r}: an input of the graph has this name: choose another")
        places = ["rows", "tokens"]
        inputs = [helper.make_tensor_value_info(name, TensorProto.INT32, places) for name in INPUTS[:3]]
        inputs += [helper.make_tensor_value_info(name, TensorProto.INT32, [name]) for name in INPUTS[3:]]
        outputs = [
            helper.make_tensor_value_info(
                name, TensorProto.FLOAT, [*(places if name in of_tokens else ["texts"]), width]
            )
            for name, width in widths.items()
        ]
        told = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["channels"]) for name in sorted(self._told)]
        graph = helper.make_graph(self.nodes, "packed_rows", inputs, outputs + told, self.constants)
        opsets = [helper.make_opsetid("", HALVED_OPSET if self.halved else OPSET)]
        ir_version = HALVED_IR_VERSION if self.halved else IR_VERSION
        return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, producer_name="penstock")


def _named_only(name: str, value: NDArray[Any]) -> onnx.TensorProto:
    """A tensor whose data is elsewhere."""
    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    tensor = TensorProto(name=name, dims=value.shape, data_type=kind, data_location=TensorProto.EXTERNAL)
    for key, told in (("location", "memory"), ("offset", "0"), ("length", str(value.nbytes))):
        tensor.external_data.add(key=key, value=told)
    return tensor
