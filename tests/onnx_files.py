"""ONNX files as exporters write them, small."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

VOCAB, WIDTH = 40, 6


def exported(
    path: Path,
    *,
    outputs: tuple[str, ...] = ("last_hidden_state",),
    inputs: tuple[str, ...] = ("input_ids", "attention_mask", "token_type_ids"),
    opset: int = 17,
    dims: tuple[Any, Any] = ("batch", "sequence"),
    width: int | None = WIDTH,
    kind: int = TensorProto.FLOAT,
    vocab: int = VOCAB,
    positions: int = 0,
    tokens: int | str = "sequence",
    ids: int = TensorProto.INT64,
    texts: int | str = "batch",
) -> Path:
    """A model as exporters write it: every token's vector is its word's plus the mean of those that are not masked,
    plus a type's, or its position where those are given; `logits` are the first token's. With `positions` a table of so
    many, cut to the row as exporters do. `ids` is the inputs' type; `texts` and `tokens` are the outputs' axes."""
    table = _table(vocab)
    number = helper.tensor_dtype_to_np_dtype(kind)
    constants = {
        "words": table.astype(number),
        "types": np.arange(2 * WIDTH).reshape(2, WIDTH).astype(number),
        "first": np.array(0),
        "tokens": np.array([1]),
        "last": np.array([2]),
    }
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["embedded"]),
        helper.make_node("Cast", ["attention_mask"], ["real"], to=kind),
        helper.make_node("Unsqueeze", ["real", "last"], ["mask"]),
        helper.make_node("Mul", ["embedded", "mask"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "tokens"], ["sum"], keepdims=1),
        helper.make_node("ReduceSum", ["mask", "tokens"], ["count"], keepdims=1),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("Add", ["embedded", "mean"], ["mixed"]),
    ]
    if "token_type_ids" in inputs:
        nodes.append(helper.make_node("Gather", ["types", "token_type_ids"], ["kinds"]))
        nodes.append(helper.make_node("Add", ["mixed", "kinds"], ["last_hidden_state"]))
    elif "position_ids" in inputs:
        nodes.append(helper.make_node("Cast", ["position_ids"], ["places"], to=kind))
        nodes.append(helper.make_node("Unsqueeze", ["places", "last"], ["place"]))
        nodes.append(helper.make_node("Add", ["mixed", "place"], ["last_hidden_state"]))
    else:
        nodes.append(helper.make_node("Identity", ["mixed"], ["last_hidden_state"]))
    if positions:
        constants["places"] = np.zeros((1, positions, WIDTH), number)
        constants["nothing"] = np.array([0])
        nodes[-1].output[0] = "unplaced"
        nodes += [
            helper.make_node("Shape", ["input_ids"], ["length"], start=1, end=2),
            helper.make_node("Slice", ["places", "nothing", "length", "tokens"], ["placed"]),
            helper.make_node("Add", ["unplaced", "placed"], ["last_hidden_state"]),
        ]
    nodes.append(helper.make_node("Gather", ["last_hidden_state", "first"], ["logits"], axis=1))
    nodes.append(helper.make_node("Gather", ["last_hidden_state", "first"], ["other"], axis=1))
    shapes = {"last_hidden_state": [texts, tokens, width]}
    graph = helper.make_graph(
        nodes,
        "exported",
        [helper.make_tensor_value_info(name, ids, dims) for name in inputs],
        [helper.make_tensor_value_info(name, kind, shapes.get(name, [texts, width])) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def vectors(window: NDArray[np.int32], *, vocab: int = VOCAB) -> NDArray[np.float64]:
    """What that model makes of a text's tokens, (tokens, WIDTH)."""
    words = _table(vocab)[window]
    return words + words.mean(axis=0) + np.arange(WIDTH)


@cache
def _table(vocab: int) -> NDArray[np.float64]:
    return np.random.default_rng(1).normal(size=(vocab, WIDTH))
