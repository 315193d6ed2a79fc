"""Writes the packed-row graph as ONNX: one encoder pass, then each output's pooling and head.

Inputs   input_ids, position_ids, segment_ids  int32 (R, S)
         slots                                 int32 (P,) = 1..P, the segment numbers to be pooled
Outputs  one a PooledOutput, by its name       float32 (R, P, W); a slot without a text holds numbers of no meaning

Plain operators of opset 17, so that ONNX Runtime, OpenVINO and TensorRT all take it. `slots` is an input since
Range loads in ONNX Runtime 1.32 and fails at run time. Weights above 2 GB, protobuf's limit, don't fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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

OPSET = 17
IR_VERSION = 8  # the one that came with opset 17
INPUTS = ("input_ids", "position_ids", "segment_ids", "slots")

# exp(-10,000) is 0 in every float type, and float16 still holds the number: masked texts add exactly nothing.
_MASKED = -10_000.0
# Under the norm of any real vector, over float16's smallest number: an empty slot gives 0 and not 0 / 0.
_SMALLEST_NORM = 1e-6


def packed_graph(checkpoint: Checkpoint, outputs: Sequence[PooledOutput]) -> onnx.ModelProto:
    """The graph of a checkpoint's encoder with these outputs.

    Raises CheckpointError when weights or heads don't fit.
    """
    encoder = read_encoder(checkpoint)
    widths = check_outputs(outputs, hidden_size=encoder.hidden_size)
    for name in INPUTS:
        if name in widths:
            raise CheckpointError(f"output {name!r}: an input of the graph has this name: choose another")
    graph = _Graph()
    hidden = _encode(graph, encoder)  # (R, S, H)
    selections: dict[Pooling, str] = {}
    for output in outputs:
        if output.pooling not in selections:
            selections[output.pooling] = _selection(graph, output.pooling)
        _pool(graph, output, hidden, selections[output.pooling])
    return graph.model(widths)


def written_graph(checkpoint: Checkpoint, outputs: Sequence[PooledOutput]) -> bytes:
    """`packed_graph` as an engine's library reads it. Raises CheckpointError, and MemoryError without room for it."""
    try:
        written: bytes = packed_graph(checkpoint, outputs).SerializeToString()
    except EncodeError as err:  # says no more than that it failed
        raise MemoryError(
            f"{checkpoint.folder}: no room to write its graph, or more than the 2 GB of weights that ONNX takes"
        ) from err
    return written


class _Graph:
    """Nodes and constants in the order they are added; a value's name is its node's.

    Every name but an input's and an output's starts with a slash, so that none meets an output's.
    """

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def add(self, operator: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        value = name or f"/{len(self._nodes)}/{operator}"
        self._nodes.append(helper.make_node(operator, inputs, [value], name=value, **attributes))
        return value

    def constant(self, value: NDArray[np.float32] | NDArray[np.int64] | NDArray[np.int32] | float) -> str:
        array = np.asarray(value, np.float32 if isinstance(value, float) else None)
        name = f"/constant/{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def model(self, widths: dict[str, int]) -> onnx.ModelProto:
        places = ["rows", "tokens"]
        inputs = [helper.make_tensor_value_info(name, TensorProto.INT32, places) for name in INPUTS[:3]]
        inputs.append(helper.make_tensor_value_info(INPUTS[3], TensorProto.INT32, ["slots"]))
        outputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", "slots", width])
            for name, width in widths.items()
        ]
        graph = helper.make_graph(self._nodes, "packed_rows", inputs, outputs, self._constants)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="penstock")


def _encode(graph: _Graph, encoder: Encoder) -> str:
    words = graph.add("Gather", graph.constant(encoder.words), "input_ids")
    positions = graph.add("Gather", graph.constant(encoder.positions), "position_ids")
    hidden = graph.add("Add", words, positions)
    hidden = _norm(graph, hidden, encoder.embeddings_norm, encoder.norm_epsilon)
    mask = _mask(graph)
    for layer in encoder.layers:
        attended = _attend(graph, hidden, mask, layer, encoder)
        hidden = graph.add("Add", hidden, _dense(graph, attended, layer.attention))
        hidden = _norm(graph, hidden, layer.attention_norm, encoder.norm_epsilon)
        inner = _gelu(graph, _dense(graph, hidden, layer.intermediate))
        hidden = graph.add("Add", hidden, _dense(graph, inner, layer.output))
        hidden = _norm(graph, hidden, layer.output_norm, encoder.norm_epsilon)
    return hidden


def _mask(graph: _Graph) -> str:
    """(R, 1, S, S) to be added to the scores: 0 within a text, _MASKED elsewhere.

    What lies outside every text has segment 0 and sees its like, so that no row of the softmax is empty.
    """
    here = graph.add("Unsqueeze", "segment_ids", graph.constant(np.array([1, 3])))  # (R, 1, S, 1)
    there = graph.add("Unsqueeze", "segment_ids", graph.constant(np.array([1, 2])))  # (R, 1, 1, S)
    same = graph.add("Equal", here, there)
    return graph.add("Where", same, graph.constant(0.0), graph.constant(_MASKED))


def _attend(graph: _Graph, hidden: str, mask: str, layer: EncoderLayer, encoder: Encoder) -> str:
    heads, size = encoder.attention_heads, encoder.hidden_size // encoder.attention_heads
    # softmax(q k / sqrt(d)): the division is done once, on the query's weights.
    shrink = np.float32(1.0 / math.sqrt(size))
    scaled = DenseLayer(weight=layer.query.weight * shrink, bias=layer.query.bias * shrink)
    split = graph.constant(np.array([0, 0, heads, size]))

    def by_head(dense: DenseLayer, order: list[int]) -> str:
        return graph.add("Transpose", graph.add("Reshape", _dense(graph, hidden, dense), split), perm=order)

    query = by_head(scaled, [0, 2, 1, 3])  # (R, heads, S, d)
    key = by_head(layer.key, [0, 2, 3, 1])  # (R, heads, d, S)
    value = by_head(layer.value, [0, 2, 1, 3])  # (R, heads, S, d)
    scores = graph.add("Add", graph.add("MatMul", query, key), mask)  # (R, heads, S, S)
    attended = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), value)
    joined = graph.constant(np.array([0, 0, encoder.hidden_size]))
    return graph.add("Reshape", graph.add("Transpose", attended, perm=[0, 2, 1, 3]), joined)  # (R, S, H)


def _dense(graph: _Graph, value: str, dense: DenseLayer) -> str:
    product = graph.add("MatMul", value, graph.constant(dense.weight.T))
    return graph.add("Add", product, graph.constant(dense.bias))


def _norm(graph: _Graph, value: str, norm: Norm, epsilon: float) -> str:
    weight, bias = graph.constant(norm.weight), graph.constant(norm.bias)
    return graph.add("LayerNormalization", value, weight, bias, axis=-1, epsilon=epsilon)


def _gelu(graph: _Graph, value: str) -> str:
    """x/2 (1 + erf(x / sqrt 2)), the exact one, in the shape that engines know to fuse."""
    erf = graph.add("Erf", graph.add("Div", value, graph.constant(math.sqrt(2.0))))
    return graph.add("Mul", graph.add("Mul", value, graph.add("Add", erf, graph.constant(1.0))), graph.constant(0.5))


def _selection(graph: _Graph, pooling: Pooling) -> str:
    """(R, P, S): the share of each token in its slot's vector."""
    slots = graph.add("Unsqueeze", "slots", graph.constant(np.array([1])))  # (P, 1)
    segments = graph.add("Unsqueeze", "segment_ids", graph.constant(np.array([1])))  # (R, 1, S)
    inside = graph.add("Equal", segments, slots)
    if pooling == "cls":
        start = graph.add("Equal", "position_ids", graph.constant(np.array(0, np.int32)))
        first = graph.add("Unsqueeze", start, graph.constant(np.array([1])))
        return graph.add("Cast", graph.add("And", inside, first), to=TensorProto.FLOAT)
    chosen = graph.add("Cast", inside, to=TensorProto.FLOAT)
    count = graph.add("ReduceSum", chosen, graph.constant(np.array([-1])), keepdims=1)
    # An empty slot has no token to share. The division comes before the sum: float16 would not hold some sums.
    return graph.add("Div", chosen, graph.add("Max", count, graph.constant(1.0)))


def _pool(graph: _Graph, output: PooledOutput, hidden: str, selection: str) -> None:
    value = graph.add("MatMul", selection, hidden)  # (R, P, H)
    if output.normalize:
        norm = graph.add("ReduceL2", value, axes=[-1], keepdims=1)
        value = graph.add("Div", value, graph.add("Max", norm, graph.constant(_SMALLEST_NORM)))
    for dense in output.head.layers if output.head else ():
        value = _dense(graph, value, dense)
        if dense.activation == "tanh":
            value = graph.add("Tanh", value)
    graph.add("Identity", value, name=output.name)
