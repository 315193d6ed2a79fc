"""A model of the user's own as an ONNX file, made a graph that reads rows of one text each.

    input_ids, attention_mask (token_type_ids, position_ids), (texts, tokens) -> the file's own graph -> an output

is what most exporters write. In front of it come casts, and the mask from the segment numbers; behind it what
`engines.graph` has behind an encoder: pooling of an output of tokens (texts, tokens, W), normalising, a head. An output
of texts (texts, W), such as logits, is taken as it is. The outcome has the inputs and outputs of `engines.graph`, so
whatever computes that computes this; only that its attention knows no segments, so that a row holds one text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, compose, numpy_helper, version_converter

from engines.errors import CheckpointError
from engines.exporters import check_inputs, chosen_output
from engines.graph import written
from engines.graph_outputs import all_outputs, finished_output
from engines.graph_writer import Graph, Weights
from engines.heads import ModelOutput, TokenOutput, check_outputs, token_names
from engines.precision import Numbers

# From here on axes are inputs, as in the nodes that are added; older files are converted.
_OLDEST_OPSET, _CONVERTED_OPSET = 13, 17
_PREFIX = "model:"


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxModel:
    """What a file says of itself.

    output     the name of what is computed
    per_token  whether that is (texts, tokens, width), and not (texts, width)
    halved     whether it has weights of float16 or bfloat16
    """

    path: Path
    output: str
    per_token: bool
    width: int
    halved: bool


def read_onnx(path: Path, *, output: str | None = None) -> OnnxModel:
    """Reads what a file asks for and answers; `output` where it is to be another than the usual one.

    Raises CheckpointError.
    """
    model = _loaded(path, weights=False)
    _check_inputs(path, model)
    found = {each.name: each.type.tensor_type for each in model.graph.output}
    name = chosen_output(path, found, output, option="onnx_output")
    dims = found[name].shape.dim
    if len(dims) not in (2, 3) or not dims[-1].dim_value or (len(dims) == 3 and dims[1].dim_value):
        raise CheckpointError(
            f"{path}: output {name!r} is {_shape(dims)}: (texts, width) or (texts, tokens, width) is wanted, the width "
            "as a number"
        )
    types = {tensor.data_type for tensor in _tensors(model.graph)}
    if TensorProto.BFLOAT16 in types:
        raise CheckpointError(f"{path}: is in bfloat16, which ONNX Runtime does not compute: export it in float16")
    return OnnxModel(
        path=path,
        output=name,
        per_token=len(dims) == 3,
        width=dims[-1].dim_value,
        halved=TensorProto.FLOAT16 in types,
    )


def onnx_graph(
    model: OnnxModel,
    outputs: Sequence[ModelOutput],
    *,
    max_positions: int,
    first_position: int = 0,
    beside: Weights | None = None,
) -> bytes:
    """The file's graph with what is computed from it, for the inputs of `engines.graph`; `beside` as there. A text's
    `position_ids`, where the file asks for them, count from `first_position`; those of the second token type are
    `max_positions` higher (`engines.rows.checked_rows`).

    Raises CheckpointError, and MemoryError without room for it.
    """
    return written(lambda: _grown(model, outputs, max_positions, first_position, beside), model.path)


def _grown(
    model: OnnxModel, outputs: Sequence[ModelOutput], max_positions: int, first_position: int, beside: Weights | None
) -> onnx.ModelProto:
    inner = _prefixed(model.path)
    before = Graph(Numbers(), told=(), beside=beside, named="before")
    _feed(before, inner, max_positions, first_position)
    after = Graph(Numbers(), told=(), beside=beside, named="after")
    answer = after.add("Cast", f"{_PREFIX}{model.output}", to=TensorProto.FLOAT)
    if model.per_token:
        all_outputs(after, outputs, answer, width=model.width, longest=max_positions)
    else:
        # Of each row's slots only the first is taken: slot 0, so that a text's number is its row times their count.
        slots = after.add("Cast", after.add("Shape", "slots"), to=TensorProto.INT32)
        texts = after.add("Gather", answer, after.add("Div", "texts", slots))
        for output in outputs:
            assert not isinstance(output, TokenOutput), "there are no tokens in an output of texts"
            finished_output(after, output, texts)
    for tensor in inner.graph.initializer:
        if _fits_beside(tensor, beside):
            after.constant(numpy_helper.to_array(tensor), name=tensor.name)
    frame = after.model(check_outputs(outputs, hidden_size=model.width), token_names(outputs))
    grown = onnx.ModelProto(ir_version=max(inner.ir_version, frame.ir_version), producer_name="penstock")
    grown.opset_import.extend(inner.opset_import)
    grown.functions.extend(inner.functions)
    graph = grown.graph
    graph.name = "rows_of_one_text"
    graph.input.extend(frame.graph.input)
    graph.output.extend(frame.graph.output)
    graph.node.extend([*before.nodes, *inner.graph.node, *after.nodes])
    graph.initializer.extend([*before.constants, *after.constants])
    graph.sparse_initializer.extend(inner.graph.sparse_initializer)
    graph.initializer.extend(tensor for tensor in inner.graph.initializer if not _fits_beside(tensor, beside))
    return grown


def _feed(graph: Graph, inner: onnx.ModelProto, max_positions: int, first_position: int) -> None:
    """What the file's inputs are made of."""
    kinds = {each.name: each.type.tensor_type.elem_type for each in _inputs(inner)}
    one, of_a_type = graph.constant(np.array(1, np.int32)), graph.constant(np.array(max_positions, np.int32))
    types = graph.add("Div", "position_ids", of_a_type)
    places = graph.add("Sub", "position_ids", graph.add("Mul", types, of_a_type))
    ours = {
        "input_ids": "input_ids",
        "attention_mask": graph.add("Min", "segment_ids", one),
        "token_type_ids": types,
        "position_ids": graph.add("Add", places, graph.constant(np.array(first_position, np.int32))),
    }
    for name, kind in kinds.items():
        graph.add("Cast", ours[name.removeprefix(_PREFIX)], name=name, to=kind)


def _fits_beside(tensor: onnx.TensorProto, beside: Weights | None) -> bool:
    """Whether a weight may lie beside the graph: one of NumPy's own types, and not one of the small ones."""
    return beside is not None and tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16)


def _prefixed(path: Path) -> onnx.ModelProto:
    """The file, in names that meet none of ours, without weights that nothing reads: ONNX Runtime drops those, and then
    misses them where they lie beside the graph."""
    model = _loaded(path, weights=True)
    opset = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 0)
    if opset < _OLDEST_OPSET:
        try:
            model = version_converter.convert_version(model, _CONVERTED_OPSET)
        except (RuntimeError, ValueError, version_converter.ConvertError) as err:
            reason = " ".join(str(err).split())
            raise CheckpointError(
                f"{path}: opset {opset} can't be converted ({reason}): export it with opset 17"
            ) from err
    read = _read_names(model.graph)
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    # Bodies of loops and branches read weights by name: they must have been renamed before.
    renamed = {tensor.name: f"{_PREFIX}{tensor.name}" for tensor in kept}
    compose.add_prefix_graph(model.graph, _PREFIX, inplace=True, name_map=renamed)
    return model


def _read_names(graph: onnx.GraphProto) -> set[str]:
    """What its nodes, and those of bodies within it, read, and what it answers."""
    names = {each.name for each in graph.output}
    for node in graph.node:
        names.update(node.input)
        for body in _bodies(node):
            names |= _read_names(body)
    return names


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """All weights and constants."""
    yield from graph.initializer
    for node in graph.node:
        yield from (each.t for each in node.attribute if each.HasField("t"))
        for body in _bodies(node):
            yield from _tensors(body)


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [each.g for each in node.attribute if each.HasField("g")]


def _check_inputs(path: Path, model: onnx.ModelProto) -> None:
    inputs = {each.name: each for each in _inputs(model)}
    check_inputs(path, inputs)
    for name, each in inputs.items():
        dims = each.type.tensor_type.shape.dim
        if len(dims) != 2 or any(dim.dim_value for dim in dims):
            raise CheckpointError(
                f"{path}: input {name!r} is {_shape(dims)}: export it with dynamic axes, (texts, tokens)"
            )


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Before IR version 4 weights are inputs too."""
    weights = {each.name for each in model.graph.initializer}
    return [each for each in model.graph.input if each.name not in weights]


def _shape(dims: Sequence[onnx.TensorShapeProto.Dimension]) -> str:
    return f"({', '.join(each.dim_param or str(each.dim_value or '?') for each in dims)})"


def _loaded(path: Path, *, weights: bool) -> onnx.ModelProto:
    try:
        return onnx.load(path, format="protobuf", load_external_data=weights)
    except (OSError, DecodeError, ValueError, onnx.checker.ValidationError) as err:
        reason = " ".join(str(err).split())
        raise CheckpointError(f"{path}: can't be read as ONNX ({reason}): export the model again") from err
