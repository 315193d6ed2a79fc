"""Writes the packed-row graph as ONNX: one encoder pass, then each output's pooling and head.

Inputs   input_ids, position_ids, segment_ids  int32 (R, S)
         slots                                 int32 (P,) = 1..P, the segment numbers to be pooled
         texts                                 int32 (N,), row * P + slot of each text
Outputs  one a PooledOutput, by its name       float32 (N, W)
         one a TokenOutput, by its name        float32 (R, S, W)

Plain operators of opset 17 (20 in half precision), so that ONNX Runtime, OpenVINO and TensorRT all take it. `slots`
is an input since Range loads in ONNX Runtime 1.32 and fails at run time. Weights above 2 GB, protobuf's limit, fit only
beside the graph, which is also the quicker way: in it they are copied four times.

In half precision the encoder computes in that type, and what follows the pooling in float32: it is N rows and not
R * S. Where it is quantized, the operands of each dense layer are: `Q/DQ` pairs before it, one scale for an
activation and one a column for weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]

from engines.checkpoint import Checkpoint
from engines.encoder import Encoder, EncoderLayer, Norm, read_encoder
from engines.graph_outputs import all_outputs
from engines.graph_writer import Graph, Weights
from engines.heads import DenseLayer, ModelOutput, check_outputs, token_names
from engines.precision import Numbers

# exp(-10,000) is 0 in every float type, and float16 still holds the number: masked texts add exactly nothing.
_MASKED = -10_000.0


def packed_graph(
    checkpoint: Checkpoint,
    outputs: Sequence[ModelOutput],
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
    graph = Graph(numbers, told, beside)
    all_outputs(graph, outputs, _encode(graph, encoder), width=encoder.hidden_size)
    return graph.model(widths, token_names(outputs))


def written_graph(
    checkpoint: Checkpoint,
    outputs: Sequence[ModelOutput],
    *,
    numbers: Numbers = Numbers(),  # noqa: B008 - frozen
    told: Sequence[str] = (),
    beside: Weights | None = None,
) -> bytes:
    """`packed_graph` as an engine's library reads it. Raises CheckpointError, and MemoryError without room for it."""
    return written(
        lambda: packed_graph(checkpoint, outputs, numbers=numbers, told=told, beside=beside), checkpoint.folder
    )


def written(graph: Callable[[], onnx.ModelProto], source: Path) -> bytes:
    """A graph's bytes. Raises MemoryError where there is no room for them."""
    try:
        data: bytes = graph().SerializeToString()
    except EncodeError as err:  # says no more than that it failed
        raise MemoryError(
            f"{source}: no room to write its graph, or more than the 2 GB of weights that ONNX takes"
        ) from err
    return data


def _encode(graph: Graph, encoder: Encoder) -> str:
    words = graph.add("Gather", graph.floats(encoder.words), "input_ids")
    positions = graph.add("Gather", graph.floats(encoder.positions), "position_ids")
    hidden = graph.add("Add", words, positions)
    hidden = _norm(graph, hidden, encoder.embeddings_norm, encoder.norm_epsilon)
    if (projection := encoder.projection) is not None:
        product = graph.add("MatMul", hidden, graph.floats(projection.weight.T))
        hidden = graph.add("Add", product, graph.floats(projection.bias))
    mask = _mask(graph)
    for number, layer in enumerate(encoder.layers):
        attended = _attend(graph, hidden, mask, layer, encoder, number)
        attended = graph.dense(attended, layer.attention, reads=f"{number}.attended", divided=True)
        hidden = _norm(graph, graph.add("Add", hidden, attended), layer.attention_norm, encoder.norm_epsilon)
        inner = graph.dense(hidden, layer.intermediate, reads=f"{number}.intermediate")
        inner = graph.activated(inner, encoder.activation)
        inner = graph.dense(inner, layer.output, reads=f"{number}.inner")
        hidden = _norm(graph, graph.add("Add", hidden, inner), layer.output_norm, encoder.norm_epsilon)
    return hidden


def _mask(graph: Graph) -> str:
    """(R, 1, S, S) to be added to the scores: 0 within a text, _MASKED elsewhere.

    What lies outside every text has segment 0 and sees its like, so that no row of the softmax is empty.
    """
    here = graph.add("Unsqueeze", "segment_ids", graph.constant(np.array([1, 3])))  # (R, 1, S, 1)
    there = graph.add("Unsqueeze", "segment_ids", graph.constant(np.array([1, 2])))  # (R, 1, 1, S)
    same = graph.add("Equal", here, there)
    return graph.add("Where", same, graph.floats(0.0), graph.floats(_MASKED))


def _attend(graph: Graph, hidden: str, mask: str, layer: EncoderLayer, encoder: Encoder, number: int) -> str:
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


def _norm(graph: Graph, value: str, norm: Norm, epsilon: float) -> str:
    weight, bias = graph.floats(norm.weight), graph.floats(norm.bias)
    return graph.add("LayerNormalization", value, weight, bias, axis=-1, epsilon=epsilon)
