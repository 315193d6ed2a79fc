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

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]

from engines.checkpoint import Checkpoint
from engines.encoder import Encoder, EncoderLayer, read_encoder
from engines.graph_attention import Attention, joined_layers
from engines.graph_outputs import all_outputs
from engines.graph_writer import Graph, Weights
from engines.heads import ModelOutput, check_outputs, token_names
from engines.precision import Numbers


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
    all_outputs(graph, outputs, _encode(graph, encoder), width=encoder.hidden_size, longest=encoder.max_positions)
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
    hidden = graph.add("Gather", graph.floats(encoder.words), "input_ids")
    if encoder.positions is not None:
        hidden = graph.add("Add", hidden, graph.add("Gather", graph.floats(encoder.positions), "position_ids"))
    hidden = graph.normed(hidden, encoder.embeddings_norm)
    if (projection := encoder.projection) is not None:
        hidden = graph.plain(hidden, projection)
    attention = Attention(graph, encoder)
    for number, layer in enumerate(encoder.layers):
        if encoder.final_norm is None:
            assert layer.attention_norm is not None
            attended = attention.of_layer(hidden, layer, number)
            hidden = graph.normed(graph.add("Add", hidden, attended), layer.attention_norm)
            inner = _between(graph, hidden, layer, encoder, number)
            hidden = graph.normed(graph.add("Add", hidden, inner), layer.output_norm)
        else:
            before = hidden if layer.attention_norm is None else graph.normed(hidden, layer.attention_norm)
            hidden = graph.add("Add", hidden, attention.of_layer(before, layer, number))
            inner = _between(graph, graph.normed(hidden, layer.output_norm), layer, encoder, number)
            hidden = graph.add("Add", hidden, inner)
    return hidden if encoder.final_norm is None else graph.normed(hidden, encoder.final_norm)


def _between(graph: Graph, hidden: str, layer: EncoderLayer, encoder: Encoder, number: int) -> str:
    """A layer's second half: the two dense layers and what is between them."""
    reads, inner = f"{number}.intermediate", f"{number}.inner"
    if layer.gate is None:
        middle = graph.activated(graph.dense(hidden, layer.intermediate, reads=reads), encoder.activation)
        return graph.dense(middle, layer.output, reads=inner)
    # What the gate multiplies is divided where the gate is.
    both = joined_layers([layer.intermediate, graph.divided(layer.gate, by=inner)])
    size = len(layer.gate.weight)
    activated, gate = graph.split(graph.dense(hidden, both, reads=reads), [size, size])
    middle = graph.add("Mul", graph.activated(activated, encoder.activation), gate)
    return graph.dense(middle, layer.output, reads=inner, divided=True)
