"""Writes the packed-row graph as ONNX: one encoder pass, then each output's pooling and head.

Inputs   input_ids, position_ids, segment_ids  int32 (R, S)
         slots                                 int32 (P,) = 1..P, the segment numbers to be pooled
         texts                                 int32 (N,), row * P + slot of each text
Outputs  one a PooledOutput, by its name       float32 (N, W)

Plain operators of opset 17 (20 in half precision), so that ONNX Runtime, OpenVINO and TensorRT all take it. `slots`
is an input since Range loads in ONNX Runtime 1.32 and fails at run time. Weights above 2 GB, protobuf's limit, fit only
beside the graph, which is also the quicker way: in it they are copied four times.

In half precision the encoder computes in that type, and what follows the pooling in float32: it is N rows and not
R * S. Where it is quantized, the operands of each dense layer are: `Q/DQ` pairs before it, one scale for an
activation and one a column for weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engines.checkpoint import Checkpoint, Pooling
from engines.encoder import Encoder, EncoderLayer, Norm, read_encoder
from engines.errors import CheckpointError
from engines.heads import DenseLayer, PooledOutput, check_outputs
from engines.number_types import FLOAT_TYPES, LARGEST, ONNX_TYPES, ZERO_POINTS
from engines.precision import Numbers

# Of opsets the lowest that has what is needed, with the version of the format that came with it: 20 has Gelu, and
# 8-bit floats since 19.
OPSET, IR_VERSION = 17, 8
HALVED_OPSET, HALVED_IR_VERSION = 20, 9
# A constant's name -> its value.
Weights = dict[str, NDArray[Any]]

INPUTS = ("input_ids", "position_ids", "segment_ids", "slots", "texts")

# What a graph keeps itself in any case: shapes and indices, which libraries want to see as they read it, are smaller.
_SMALL = 1024

# exp(-10,000) is 0 in every float type, and float16 still holds the number: masked texts add exactly nothing.
_MASKED = -10_000.0
# Under the norm of any real vector, over float16's smallest number: an empty slot gives 0 and not 0 / 0.
_SMALLEST_NORM = 1e-6


def packed_graph(
    checkpoint: Checkpoint,
    outputs: Sequence[PooledOutput],
    *,
    numbers: Numbers = Numbers(),  # noqa: B008 - frozen
    told: Sequence[str] = (),
    beside: Weights | None = None,
) -> onnx.ModelProto:
    """The graph of a checkpoint's encoder with these outputs. `told` are activations, as `dense_inputs` names them,
    whose largest absolute value in each channel (in,) becomes an output of that name as well. Weights are put into
    `beside`, where that is given, and the graph only names them (as external data of the location "memory").

    Raises CheckpointError when weights or heads don't fit.
    """
    encoder = read_encoder(checkpoint)
    widths = check_outputs(outputs, hidden_size=encoder.hidden_size)
    for name in INPUTS:
        if name in widths:
            raise CheckpointError(f"output {name!r}: an input of the graph has this name: choose another")
    graph = _Graph(numbers, told, beside)
    hidden = _encode(graph, encoder)  # (R, S, H)
    selections: dict[Pooling, str] = {}
    for output in outputs:
        if output.pooling not in selections:
            selections[output.pooling] = _selection(graph, output.pooling)
        _pool(graph, output, hidden, selections[output.pooling], encoder.hidden_size)
    return graph.model(widths)


def written_graph(
    checkpoint: Checkpoint,
    outputs: Sequence[PooledOutput],
    *,
    numbers: Numbers = Numbers(),  # noqa: B008 - frozen
    told: Sequence[str] = (),
    beside: Weights | None = None,
) -> bytes:
    """`packed_graph` as an engine's library reads it. Raises CheckpointError, and MemoryError without room for it."""
    try:
        graph = packed_graph(checkpoint, outputs, numbers=numbers, told=told, beside=beside)
        written: bytes = graph.SerializeToString()
    except EncodeError as err:  # says no more than that it failed
        raise MemoryError(
            f"{checkpoint.folder}: no room to write its graph, or more than the 2 GB of weights that ONNX takes"
        ) from err
    return written


class _Graph:
    """Nodes and constants in the order they are added; a value's name is its node's.

    Every name but an input's and an output's starts with a slash, so that none meets an output's.
    """

    def __init__(self, numbers: Numbers, told: Sequence[str], beside: Weights | None) -> None:
        self._numbers = numbers
        self._told = frozenset(told)
        self._beside = beside
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    @property
    def halved(self) -> bool:
        """Whether the encoder computes in half precision."""
        return self._numbers.floats != "fp32"

    def add(self, operator: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        value = name or f"/{len(self._nodes)}/{operator}"
        self._nodes.append(helper.make_node(operator, inputs, [value], name=value, **attributes))
        return value

    def constant(self, value: NDArray[Any]) -> str:
        """As it is."""
        name = f"/constant/{len(self._constants)}"
        if self._beside is None or value.nbytes < _SMALL:
            tensor = numpy_helper.from_array(value, name)
        else:
            self._beside[name] = np.asarray(value, order="C")
            tensor = _named_only(name, value)
        self._constants.append(tensor)
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

    def divided(self, layer: DenseLayer, by: str) -> DenseLayer:
        """The layer whose outputs are divided by an activation's divisors already."""
        quantization = self._numbers.quantization
        if quantization is None or (divisors := quantization.divisors.get(by)) is None:
            return layer
        return DenseLayer(weight=layer.weight / divisors[:, np.newaxis], bias=layer.bias / divisors)

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
        return self.add("Add", product, self.floats(layer.bias))

    def _rounded(self, value: str, amax: NDArray[np.float32], axis: Mapping[str, Any]) -> str:
        assert self._numbers.quantization is not None
        kind = self._numbers.quantization.kind
        # A float16's scale is not to become 0.
        scale = self.floats(np.maximum(amax / np.float32(LARGEST[kind]), np.float32(1e-6)))
        zero = self.constant(np.zeros(amax.shape, ZERO_POINTS[kind]))
        return self.add("DequantizeLinear", self.add("QuantizeLinear", value, scale, zero, **axis), scale, zero, **axis)

    def model(self, widths: dict[str, int]) -> onnx.ModelProto:
        places = ["rows", "tokens"]
        inputs = [helper.make_tensor_value_info(name, TensorProto.INT32, places) for name in INPUTS[:3]]
        inputs += [helper.make_tensor_value_info(name, TensorProto.INT32, [name]) for name in INPUTS[3:]]
        outputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["texts", width]) for name, width in widths.items()
        ]
        told = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["channels"]) for name in sorted(self._told)]
        graph = helper.make_graph(self._nodes, "packed_rows", inputs, outputs + told, self._constants)
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


def _encode(graph: _Graph, encoder: Encoder) -> str:
    words = graph.add("Gather", graph.floats(encoder.words), "input_ids")
    positions = graph.add("Gather", graph.floats(encoder.positions), "position_ids")
    hidden = graph.add("Add", words, positions)
    hidden = _norm(graph, hidden, encoder.embeddings_norm, encoder.norm_epsilon)
    mask = _mask(graph)
    for number, layer in enumerate(encoder.layers):
        attended = _attend(graph, hidden, mask, layer, encoder, number)
        attended = graph.dense(attended, layer.attention, reads=f"{number}.attended", divided=True)
        hidden = _norm(graph, graph.add("Add", hidden, attended), layer.attention_norm, encoder.norm_epsilon)
        inner = _gelu(graph, graph.dense(hidden, layer.intermediate, reads=f"{number}.intermediate"))
        inner = graph.dense(inner, layer.output, reads=f"{number}.inner")
        hidden = _norm(graph, graph.add("Add", hidden, inner), layer.output_norm, encoder.norm_epsilon)
    return hidden


def _mask(graph: _Graph) -> str:
    """(R, 1, S, S) to be added to the scores: 0 within a text, _MASKED elsewhere.

    What lies outside every text has segment 0 and sees its like, so that no row of the softmax is empty.
    """
    here = graph.add("Unsqueeze", "segment_ids", graph.constant(np.array([1, 3])))  # (R, 1, S, 1)
    there = graph.add("Unsqueeze", "segment_ids", graph.constant(np.array([1, 2])))  # (R, 1, 1, S)
    same = graph.add("Equal", here, there)
    return graph.add("Where", same, graph.floats(0.0), graph.floats(_MASKED))


def _attend(graph: _Graph, hidden: str, mask: str, layer: EncoderLayer, encoder: Encoder, number: int) -> str:
    heads, size = encoder.attention_heads, encoder.hidden_size // encoder.attention_heads
    # softmax(q k / sqrt(d)): the division is done once, on the query's weights.
    shrink = np.float32(1.0 / math.sqrt(size))
    # What is attended to are means of values: dividing those divides them.
    values = graph.divided(layer.value, by=f"{number}.attended")
    joined = DenseLayer(
        weight=np.concatenate([layer.query.weight * shrink, layer.key.weight, values.weight]),
        bias=np.concatenate([layer.query.bias * shrink, layer.key.bias, values.bias]),
    )
    # One product for all three: on a GPU it is 3 % of the whole, on a CPU nothing.
    parts = graph.add(
        "Reshape",
        graph.dense(hidden, joined, reads=f"{number}.attention"),
        graph.constant(np.array([0, 0, 3, heads, size])),
    )  # (R, S, 3, heads, d)

    def part(place: int, order: list[int]) -> str:
        chosen = graph.add("Gather", parts, graph.constant(np.array(place)), axis=2)  # (R, S, heads, d)
        return graph.add("Transpose", chosen, perm=order)

    query = part(0, [0, 2, 1, 3])  # (R, heads, S, d)
    key = part(1, [0, 2, 3, 1])  # (R, heads, d, S)
    value = part(2, [0, 2, 1, 3])  # (R, heads, S, d)
    scores = graph.add("Add", graph.add("MatMul", query, key), mask)  # (R, heads, S, S)
    attended = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), value)
    width = graph.constant(np.array([0, 0, encoder.hidden_size]))
    return graph.add("Reshape", graph.add("Transpose", attended, perm=[0, 2, 1, 3]), width)  # (R, S, H)


def _norm(graph: _Graph, value: str, norm: Norm, epsilon: float) -> str:
    weight, bias = graph.floats(norm.weight), graph.floats(norm.bias)
    return graph.add("LayerNormalization", value, weight, bias, axis=-1, epsilon=epsilon)


def _gelu(graph: _Graph, value: str) -> str:
    """x/2 (1 + erf(x / sqrt 2)), the exact one, in the shape that engines know to fuse.

    In half precision by its approximation with tanh, from the same paper: it is off by less than 0.0005, about what
    rounding to float16 is, and TensorRT computes it with the product before it (7 % of BERT-base, with 8 bits 12 %).
    """
    if graph.halved:
        return graph.add("Gelu", value, approximate="tanh")
    erf = graph.add("Erf", graph.add("Div", value, graph.floats(math.sqrt(2.0))))
    return graph.add("Mul", graph.add("Mul", value, graph.add("Add", erf, graph.floats(1.0))), graph.floats(0.5))


def _selection(graph: _Graph, pooling: Pooling) -> str:
    """(R, P, S): the share of each token in its slot's vector."""
    slots = graph.add("Unsqueeze", "slots", graph.constant(np.array([1])))  # (P, 1)
    segments = graph.add("Unsqueeze", "segment_ids", graph.constant(np.array([1])))  # (R, 1, S)
    inside = graph.add("Equal", segments, slots)
    if pooling == "cls":
        start = graph.add("Equal", "position_ids", graph.constant(np.array(0, np.int32)))
        first = graph.add("Unsqueeze", start, graph.constant(np.array([1])))
        return graph.cast(graph.add("And", inside, first))
    chosen = graph.add("Cast", inside, to=TensorProto.FLOAT)
    count = graph.add("ReduceSum", chosen, graph.constant(np.array([-1])), keepdims=1)
    # An empty slot has no token to share. The division comes before the sum: float16 would not hold some sums.
    return graph.cast(graph.add("Div", chosen, graph.add("Max", count, _float32(graph, 1.0))))


def _pool(graph: _Graph, output: PooledOutput, hidden: str, selection: str, width: int) -> None:
    value = graph.add("MatMul", selection, hidden)  # (R, P, H)
    flat = graph.add("Reshape", value, graph.constant(np.array([-1, width])))
    value = graph.to_float32(graph.add("Gather", flat, "texts"))  # (N, H)
    if output.normalize:
        squares = graph.add("ReduceSum", graph.add("Mul", value, value), graph.constant(np.array([-1])), keepdims=1)
        norm = graph.add("Sqrt", squares)
        value = graph.add("Div", value, graph.add("Max", norm, _float32(graph, _SMALLEST_NORM)))
    for dense in output.head.layers if output.head else ():
        weight = graph.constant(np.ascontiguousarray(dense.weight.T))
        value = graph.add("Add", graph.add("MatMul", value, weight), graph.constant(dense.bias))
        if dense.activation == "tanh":
            value = graph.add("Tanh", value)
    graph.add("Identity", value, name=output.name)


def _float32(graph: _Graph, value: float) -> str:
    return graph.constant(np.asarray(value, np.float32))
