"""The end of every graph: from hidden states to each output, by pooling, normalising and a head.

In float32 whatever the encoder computes in: it is N rows and not R * S, or else what is wanted of every token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from engines.checkpoint import Pooling
from engines.graph_writer import Graph
from engines.heads import SMALLEST_NORM, ModelOutput, PooledOutput, TokenOutput


def all_outputs(graph: Graph, outputs: Sequence[ModelOutput], hidden: str, *, width: int, longest: int) -> None:
    """Each output of hidden states (R, S, `width`). `longest` is the most tokens of a text."""
    pooled: dict[Pooling, str] = {}
    for output in outputs:
        if isinstance(output, TokenOutput):
            finished_output(graph, output, graph.to_float32(hidden))
            continue
        if output.pooling not in pooled:
            largest = output.pooling == "max"
            shares = _shares(graph, "cls" if largest else output.pooling)
            states = _largest(graph, hidden, longest) if largest else hidden
            vectors = graph.add("MatMul", shares, states)  # (R, P, H)
            flat = graph.add("Reshape", vectors, graph.constant(np.array([-1, width])))
            pooled[output.pooling] = graph.to_float32(graph.add("Gather", flat, "texts"))
        finished_output(graph, output, pooled[output.pooling])


def finished_output(graph: Graph, output: ModelOutput, value: str) -> None:
    """An output of its texts' vectors, float32 (N, H), or of its tokens', (R, S, H)."""
    if isinstance(output, PooledOutput) and output.normalize:
        squares = graph.add("ReduceSum", graph.add("Mul", value, value), graph.constant(np.array([-1])), keepdims=1)
        norm = graph.add("Sqrt", squares)
        value = graph.add("Div", value, graph.add("Max", norm, _float32(graph, SMALLEST_NORM)))
    for dense in output.head.layers if output.head else ():
        weight = graph.constant(np.ascontiguousarray(dense.weight.T))
        value = graph.add("MatMul", value, weight)
        if dense.bias is not None:
            value = graph.add("Add", value, graph.constant(dense.bias))
        if dense.activation is not None:
            value = graph.activated(value, dense.activation, exact=True)
        if dense.norm is not None:
            value = graph.normed(value, dense.norm, exact=True)
    graph.add("Identity", value, name=output.name)


def _shares(graph: Graph, pooling: Pooling) -> str:
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


def _largest(graph: Graph, hidden: str, longest: int) -> str:
    """(R, S, H), where a text begins the largest of each number over its tokens.

    Each token takes the larger of its own and of those 1, 2, 4 ... places on, where these are of the same text, so that
    after log2(longest) steps it has seen all behind it. What is shifted out comes back in at the row's beginning: only
    in a row of one text is it of the same, and there it does no harm. Plain operators: TensorRT has no scatter with a
    maximum but in a plugin.
    """
    axis = graph.constant(np.array([1]))
    beginning, end = graph.constant(np.array([0])), graph.constant(np.array([np.iinfo(np.int64).max]))
    step = 1
    while step < longest:
        place = graph.constant(np.array([step]))

        def shifted(value: str, place: str = place) -> str:
            ahead = graph.add("Slice", value, place, end, axis)
            return graph.add("Concat", ahead, graph.add("Slice", value, beginning, place, axis), axis=1)

        same = graph.add("Equal", "segment_ids", shifted("segment_ids"))
        of_the_text = graph.add("Unsqueeze", same, graph.constant(np.array([2])))
        other = graph.add("Where", of_the_text, shifted(hidden), hidden)
        hidden = graph.add("Max", hidden, other)
        step *= 2
    return hidden


def _float32(graph: Graph, value: float) -> str:
    return graph.constant(np.asarray(value, np.float32))
