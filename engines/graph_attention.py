"""Attention in packed rows: which tokens see which, by text, distance and window, and a layer's attention itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from engines.encoder import Encoder, EncoderLayer
from engines.graph_writer import Graph
from engines.heads import DenseLayer
from engines.relative_positions import FARTHEST, rotations

# exp(-10,000) is 0 in every float type, and float16 still holds the number: masked texts add exactly nothing.
_MASKED = -10_000.0


class Attention:
    """Adds each layer's attention to a graph; what several layers need of the rows is computed once."""

    def __init__(self, graph: Graph, encoder: Encoder) -> None:
        self._graph = graph
        self._encoder = encoder
        self._apart: str | None = None
        self._masks: dict[int | None, str] = {}
        self._turns: dict[float, tuple[str, str]] = {}

    def of_layer(self, hidden: str, layer: EncoderLayer, number: int) -> str:
        """(R, S, H) of (R, S, H), its output layer included."""
        graph, heads, size = self._graph, self._encoder.attention_heads, self._encoder.head_size
        query, key, value = self._parts(hidden, layer, number)
        scores = graph.add("MatMul", query, key)
        scores = graph.add("Add", scores, self._mask(layer.window))  # (R, heads, S, S)
        attended = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), value)
        width = graph.constant(np.array([0, 0, heads * size]))
        attended = graph.add("Reshape", graph.add("Transpose", attended, perm=[0, 2, 1, 3]), width)  # (R, S, H)
        return graph.dense(attended, layer.attention, reads=f"{number}.attended", divided=True)

    def _parts(self, hidden: str, layer: EncoderLayer, number: int) -> tuple[str, str, str]:
        """Query (R, heads, S, d), key (R, heads, d, S) and value (R, heads, S, d)."""
        graph, heads, size = self._graph, self._encoder.attention_heads, self._encoder.head_size
        # softmax(q k / sqrt(d)): the division is done once, on the query's weights.
        shrink = np.float32(1.0 / math.sqrt(size))
        query = DenseLayer(
            weight=layer.query.weight * shrink, bias=None if layer.query.bias is None else layer.query.bias * shrink
        )
        # What is attended to are means of values: dividing those divides them.
        value = graph.divided(layer.value, by=f"{number}.attended")
        reads = f"{number}.attention"
        # One product for all three: on a GPU it is 3 % of the whole, on a CPU nothing.
        if layer.theta is None:
            product = graph.dense(hidden, joined_layers([query, layer.key, value]), reads=reads)
            parts = graph.add("Reshape", product, graph.constant(np.array([0, 0, 3, heads, size])))

            def part(place: int, order: list[int]) -> str:
                chosen = graph.add("Gather", parts, graph.constant(np.array(place)), axis=2)  # (R, S, heads, d)
                return graph.add("Transpose", chosen, perm=order)

            return part(0, [0, 2, 1, 3]), part(1, [0, 2, 3, 1]), part(2, [0, 2, 1, 3])
        # All first halves, then all second ones, so that they are turned without being cut out of each head.
        halves = [_half(each, heads, place) for place in (0, 1) for each in (query, layer.key)]
        product = graph.dense(hidden, joined_layers([*halves, value]), reads=reads)
        width = heads * size
        first, second, values = graph.split(product, [width, width, width])
        turned = self._turned(first, second, layer.theta)  # (R, S, 2 heads, d)
        queries, keys = (
            graph.add("Slice", turned, *(graph.constant(np.array([place])) for place in (begin, begin + heads, 2)))
            for begin in (0, heads)
        )
        of_heads = graph.constant(np.array([0, 0, heads, size]))
        return (
            graph.add("Transpose", queries, perm=[0, 2, 1, 3]),
            graph.add("Transpose", keys, perm=[0, 2, 3, 1]),
            graph.add("Transpose", graph.add("Reshape", values, of_heads), perm=[0, 2, 1, 3]),
        )

    def _turned(self, first: str, second: str, theta: float) -> str:
        """Pairs of numbers, (R, S, heads times d / 2) each, turned by their tokens' positions: (R, S, heads, d)."""
        graph = self._graph
        if theta not in self._turns:
            tables = rotations(theta, size=self._encoder.head_size, positions=self._encoder.max_positions)
            axis = graph.constant(np.array([2]))
            cosine, sine = (
                graph.add("Unsqueeze", graph.add("Gather", graph.floats(each), "position_ids"), axis) for each in tables
            )  # (R, S, 1, d / 2)
            self._turns[theta] = cosine, sine
        cosine, sine = self._turns[theta]
        shape = graph.constant(np.array([0, 0, 2 * self._encoder.attention_heads, self._encoder.head_size // 2]))
        first, second = (graph.add("Reshape", each, shape) for each in (first, second))
        real = graph.add("Sub", graph.add("Mul", first, cosine), graph.add("Mul", second, sine))
        imaginary = graph.add("Add", graph.add("Mul", second, cosine), graph.add("Mul", first, sine))
        return graph.add("Concat", real, imaginary, axis=-1)

    def _mask(self, window: int | None) -> str:
        """(R, 1, S, S) to be added to the scores, or (R, heads, S, S): 0 within a text, or what the distance adds;
        _MASKED elsewhere.

        What lies outside every text has segment 0 and sees its like, so that no row of the softmax is empty.
        """
        if window not in self._masks:
            graph = self._graph
            here, there = self._facing("segment_ids")
            seen = graph.add("Equal", here, there)
            if window is not None:
                far = graph.add("Abs", self._distance())
                near = graph.add("LessOrEqual", far, graph.constant(np.array(window, np.int32)))
                seen = graph.add("And", seen, near)
            self._masks[window] = graph.add("Where", seen, self._added(), graph.floats(_MASKED))
        return self._masks[window]

    def _added(self) -> str:
        graph, table = self._graph, self._encoder.distances
        if table is None:
            return graph.floats(0.0)
        least, most = (graph.constant(np.array(each, np.int32)) for each in (0, 2 * FARTHEST))
        place = graph.add("Add", self._distance(), graph.constant(np.array(FARTHEST, np.int32)))
        place = graph.add("Min", graph.add("Max", place, least), most)
        by_token = graph.add("Squeeze", place, graph.constant(np.array([1])))  # (R, S, S)
        return graph.add("Transpose", graph.add("Gather", graph.floats(table), by_token), perm=[0, 3, 1, 2])

    def _distance(self) -> str:
        """(R, 1, S, S): within a text, how many places the token that is attended to lies behind the one that
        attends."""
        if self._apart is None:
            here, there = self._facing("position_ids")
            self._apart = self._graph.add("Sub", there, here)
        return self._apart

    def _facing(self, tokens: str) -> tuple[str, str]:
        """(R, 1, S, 1) and (R, 1, 1, S)."""
        graph = self._graph
        here = graph.add("Unsqueeze", tokens, graph.constant(np.array([1, 3])))
        return here, graph.add("Unsqueeze", tokens, graph.constant(np.array([1, 2])))


def joined_layers(layers: Sequence[DenseLayer]) -> DenseLayer:
    """One layer whose outputs are those of several over the same input, one after the other."""
    biases = [each.bias for each in layers if each.bias is not None]
    assert len(biases) in (0, len(layers))
    return DenseLayer(
        weight=np.concatenate([each.weight for each in layers]), bias=np.concatenate(biases) if biases else None
    )


def _half(layer: DenseLayer, heads: int, place: int) -> DenseLayer:
    """What makes the first half of each head's numbers, or the second."""
    weight = np.split(layer.weight.reshape(heads, -1, layer.weight.shape[1]), 2, axis=1)[place]
    bias = None if layer.bias is None else np.split(layer.bias.reshape(heads, -1), 2, axis=1)[place].ravel()
    return DenseLayer(weight=weight.reshape(-1, layer.weight.shape[1]), bias=bias)
