"""ONNX files of a user's own: what is read of them, what is computed, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engines.engine import EngineKind, open_source
from engines.errors import CheckpointError, EngineUnavailable
from engines.graph_writer import Weights
from engines.heads import DenseLayer, Head, PooledOutput
from engines.onnx_model import onnx_graph, read_onnx
from engines.source import of_onnx
from stages.packing import pack_rows
from tests.onnx_files import VOCAB, WIDTH, exported, vectors

WINDOWS = [np.arange(1, 1 + length, dtype=np.int32) for length in (3, 17, 1, 30, 16, 9, 33)]


def answers(
    path: Path, outputs: list[PooledOutput], *, engine: EngineKind = "onnxruntime", output: str | None = None
) -> dict[str, NDArray[np.float32]]:
    """Of WINDOWS, packed several to a row."""
    source = of_onnx(read_onnx(path, output=output), outputs, vocab_size=VOCAB, max_positions=64)
    opened = open_source(engine, source, threads=1, instances=1)
    found = {each.name: np.zeros((len(WINDOWS), opened.widths[each.name]), np.float32) for each in outputs}
    for group in pack_rows(WINDOWS, row_length=64):
        assert group.rows.slots > 1
        for name, answer in opened.run(group.rows).items():
            found[name][group.windows] = answer
    opened.close()
    return found


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_outputs_of_tokens_are_pooled(tmp_path: Path, engine: EngineKind) -> None:
    head = Head(
        labels=("a", "b"), layers=(DenseLayer(weight=np.eye(2, WIDTH, dtype=np.float32), bias=np.ones(2, np.float32)),)
    )
    found = answers(
        exported(tmp_path / "m.onnx"),
        [
            PooledOutput(name="mean", pooling="mean", normalize=False),
            PooledOutput(name="unit", pooling="cls", normalize=True),
            PooledOutput(name="largest", pooling="max", normalize=False),
            PooledOutput(name="class", pooling="mean", normalize=False, head=head),
        ],
        engine=engine,
    )
    means = np.array([vectors(window).mean(axis=0) for window in WINDOWS])
    firsts = np.array([vectors(window)[0] for window in WINDOWS])
    np.testing.assert_allclose(found["mean"], means, rtol=1e-5)
    np.testing.assert_allclose(found["unit"], firsts / np.linalg.norm(firsts, axis=1, keepdims=True), rtol=1e-5)
    largest = [vectors(window).max(axis=0) for window in WINDOWS]
    np.testing.assert_allclose(found["largest"], largest, rtol=1e-5)
    np.testing.assert_allclose(found["class"], means[:, :2] + 1, rtol=1e-5)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_outputs_of_texts_are_taken_as_they_are(tmp_path: Path, engine: EngineKind) -> None:
    path = exported(tmp_path / "m.onnx", outputs=("last_hidden_state", "logits"))
    assert (read_onnx(path).output, read_onnx(path).per_token) == ("logits", False)
    found = answers(path, [PooledOutput(name="x", pooling="mean", normalize=False)], engine=engine)
    np.testing.assert_allclose(found["x"], [vectors(window)[0] for window in WINDOWS], rtol=1e-5)


def test_another_output_may_be_named(tmp_path: Path) -> None:
    path = exported(tmp_path / "m.onnx", outputs=("logits", "other", "last_hidden_state"))
    model = read_onnx(path, output="last_hidden_state")
    assert (model.output, model.per_token, model.width) == ("last_hidden_state", True, WIDTH)


def test_a_file_without_token_types_is_as_good(tmp_path: Path) -> None:
    path = exported(tmp_path / "m.onnx", inputs=("input_ids", "attention_mask"))
    found = answers(path, [PooledOutput(name="x", pooling="mean", normalize=False)])
    expected = [vectors(window).mean(axis=0) - np.arange(WIDTH) for window in WINDOWS]
    np.testing.assert_allclose(found["x"], expected, rtol=1e-4, atol=1e-5)


def test_half_precision_is_answered_in_float32(tmp_path: Path) -> None:
    path = exported(tmp_path / "m.onnx", kind=TensorProto.FLOAT16)
    assert read_onnx(path).halved
    found = answers(path, [PooledOutput(name="x", pooling="mean", normalize=False)])
    assert found["x"].dtype == np.float32
    np.testing.assert_allclose(found["x"], [vectors(window).mean(axis=0) for window in WINDOWS], rtol=0.02, atol=0.02)


def test_large_weights_lie_beside_the_graph_unless_nothing_reads_them(tmp_path: Path) -> None:
    """ONNX Runtime drops what nothing reads, and then misses it."""
    path = exported(tmp_path / "m.onnx", vocab=400)
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((64, 64), np.float32), "unused"))
    onnx.save(model, path)
    beside: Weights = {}
    outputs = [PooledOutput(name="x", pooling="mean", normalize=False)]
    lean = onnx_graph(read_onnx(path), outputs, max_positions=99, beside=beside)
    assert {name: value.shape for name, value in beside.items()} == {"model:words": (400, WIDTH)}
    assert len(lean) < len(onnx_graph(read_onnx(path), outputs, max_positions=99)) - 400 * WIDTH * 3
    assert answers(path, outputs)["x"].any()


def test_weights_that_a_branch_reads(tmp_path: Path) -> None:
    path = exported(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.full(WIDTH, 7, np.float32), "shift"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    branches = {}
    for name, operator in (("then_branch", "Add"), ("else_branch", "Sub")):
        node = helper.make_node(operator, ["mixed", "shift"], [name])
        answer = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        branches[name] = helper.make_graph([node], name, [], [answer])
    chosen = helper.make_node("If", ["yes"], ["shifted"], **branches)
    at = next(place for place, node in enumerate(model.graph.node) if node.output[0] == "kinds")
    model.graph.node.insert(at, chosen)
    next(node for node in model.graph.node if node.output[0] == "last_hidden_state").input[0] = "shifted"
    onnx.save(model, path)
    found = answers(path, [PooledOutput(name="x", pooling="mean", normalize=False)])
    np.testing.assert_allclose(found["x"], [vectors(window).mean(axis=0) + 7 for window in WINDOWS], rtol=1e-5)


def test_position_ids_count_as_the_model_counts(tmp_path: Path) -> None:
    inputs = ("input_ids", "attention_mask", "position_ids")
    source = of_onnx(
        read_onnx(exported(tmp_path / "m.onnx", inputs=inputs)),
        [PooledOutput(name="x", pooling="cls", normalize=False)],
        vocab_size=VOCAB,
        max_positions=64,
        first_position=2,
    )
    [group] = pack_rows(WINDOWS[:1], row_length=64)
    found = open_source("onnxruntime", source, threads=1, instances=1).run(group.rows)["x"]
    # The file adds each token's position to its vector.
    np.testing.assert_allclose(found, [vectors(WINDOWS[0])[0] - np.arange(WIDTH) + 2], rtol=1e-5)


@pytest.mark.parametrize("longest", [20, 40])
def test_no_row_is_longer_than_the_model_s_positions(tmp_path: Path, longest: int) -> None:
    """A table of so many positions, as exporters leave it in the graph, has no more."""
    path = exported(tmp_path / "m.onnx", positions=longest)
    source = of_onnx(
        read_onnx(path),
        [PooledOutput(name="x", pooling="cls", normalize=False)],
        vocab_size=VOCAB,
        max_positions=longest,
    )
    windows = [np.arange(1, 1 + length, dtype=np.int32) % VOCAB for length in (1, longest - 1, longest)]
    engine = open_source("onnxruntime", source, threads=1, instances=1)
    for group in pack_rows(windows, row_length=64):
        assert engine.run(group.rows)["x"].shape == (len(group.windows), WIDTH)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"inputs": ("input_ids", "attention_mask", "pixel_values")}, "nothing to put into its input 'pixel_values'"),
        ({"inputs": ("input_ids",)}, "no input 'attention_mask': export the model with it"),
        ({"dims": (1, 128)}, r"input 'input_ids' is \(1, 128\): export it with dynamic axes"),
        ({"outputs": ("other", "mean")}, "several outputs, and none of a usual name: name one of them in onnx_output"),
        ({"kind": TensorProto.BFLOAT16}, "is in bfloat16, which ONNX Runtime does not compute: export it in float16"),
        ({"tokens": 1}, r"output 'last_hidden_state' is \(batch, 1, 6\): \(texts, width\) or"),
        ({"width": None}, r"output 'last_hidden_state' is \(batch, sequence, \?\).*the width as a number"),
    ],
)
def test_what_is_not_such_a_model_is_refused(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    path = exported(tmp_path / "m.onnx", **options)
    with pytest.raises(CheckpointError, match=says) as raised:
        read_onnx(path)
    assert "\n" not in str(raised.value)


def test_an_output_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no output 'x': name one of them in onnx_output: last_hidden_state"):
        read_onnx(exported(tmp_path / "m.onnx"), output="x")


@pytest.mark.parametrize("name", ["m.onnx", "config.json", "m.textproto", "m.onnxtxt"])
@pytest.mark.parametrize("content", [b"", b"not ONNX", b"\x08\x08", b"{}"])
def test_what_is_no_onnx_is_told(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name}: ") as raised:
        read_onnx(path)
    assert "\n" not in str(raised.value)


def test_the_reference_engine_reads_none(tmp_path: Path) -> None:
    source = of_onnx(read_onnx(exported(tmp_path / "m.onnx")), [], vocab_size=None, max_positions=8)
    with pytest.raises(EngineUnavailable, match="numpy: reads no ONNX file"):
        open_source("numpy", source, threads=1, instances=1)
