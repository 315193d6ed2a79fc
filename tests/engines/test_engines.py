"""Every engine against the oracle, and a text against itself in other company."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from google.protobuf.message import EncodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper

from engines import graph
from engines.checkpoint import Checkpoint
from engines.engine import EngineKind, open_engine
from engines.errors import CheckpointError, EngineError, EngineUnavailable
from engines.graph import packed_graph
from engines.graph_writer import INPUTS, Weights
from engines.heads import DenseLayer, Head, PooledOutput, classification_head
from engines.openvino import OpenVinoEngine
from engines.rows import Engine, PackedRows

LayOut = Callable[..., PackedRows]

LINEAR = Head(
    labels=("NEGATIVE", "POSITIVE"),
    layers=(
        DenseLayer(
            weight=np.random.default_rng(5).normal(size=(2, 24)).astype(np.float32),
            bias=np.array([0.5, -0.5], np.float32),
        ),
    ),
)


def outputs_of(tiny: Checkpoint) -> list[PooledOutput]:
    return [
        PooledOutput(name="embedding", pooling="mean", normalize=True),
        PooledOutput(name="mean", pooling="mean", normalize=False),
        PooledOutput(name="first", pooling="cls", normalize=True),
        PooledOutput(name="largest", pooling="max", normalize=False),
        PooledOutput(name="sentiment", pooling="mean", normalize=True, head=LINEAR),
        PooledOutput(name="class", pooling="cls", normalize=False, head=classification_head(tiny)),
    ]


@pytest.fixture(scope="module")
def oracle(tiny: Checkpoint) -> Engine:
    return open_engine("numpy", tiny, outputs_of(tiny), threads=1, instances=1)


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def engine(request: pytest.FixtureRequest, tiny: Checkpoint) -> Iterator[Engine]:
    kind: EngineKind = request.param
    opened = open_engine(kind, tiny, outputs_of(tiny), threads=1, instances=2)
    yield opened
    opened.close()


def assert_same(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert got.keys() == wanted.keys()
    for name, vectors in wanted.items():
        assert got[name].dtype == np.float32
        np.testing.assert_allclose(got[name], vectors, rtol=0, atol=1e-5, err_msg=name)


texts = st.lists(st.integers(0, 49), min_size=1, max_size=12)


@st.composite
def batches(draw: st.DrawFn) -> list[list[list[int]]]:
    """Rows of texts, some slots left empty, none of the rows without a text."""
    row = st.lists(texts | st.just([]), min_size=1, max_size=5).filter(any)
    return draw(st.lists(row, min_size=1, max_size=4))


@given(rows=batches(), gap=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_engine_equals_the_oracle(
    engine: Engine, oracle: Engine, layout: LayOut, rows: list[list[list[int]]], gap: int
) -> None:
    length = max(sum(map(len, row)) for row in rows) + gap
    packed = layout(rows, length=length)
    assert_same(engine.run(packed), oracle.run(packed))


@given(text=texts, rows=batches(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_text_is_the_same_in_any_company(
    engine: Engine, layout: LayOut, text: list[int], rows: list[list[list[int]]], data: st.DataObject
) -> None:
    alone = engine.run(layout([[text]], length=len(text)))
    row = data.draw(st.integers(0, len(rows) - 1))
    slot = data.draw(st.integers(0, len(rows[row])))
    rows[row].insert(slot, text)
    packed = layout(rows, length=max(sum(map(len, each)) for each in rows))
    at = int(np.flatnonzero((packed.row == row) & (packed.slot == slot))[0])
    assert_same({name: vectors[at : at + 1] for name, vectors in engine.run(packed).items()}, alone)


def test_widths_are_hidden_size_or_labels(engine: Engine) -> None:
    assert dict(engine.widths) == {"embedding": 24, "mean": 24, "first": 24, "largest": 24, "sentiment": 2, "class": 3}


def test_vectors_come_in_the_order_asked_for(engine: Engine, layout: LayOut) -> None:
    packed = layout([[[1, 2], [3]], [[4, 5, 6]]], length=5)
    turned = PackedRows(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        segment_ids=packed.segment_ids,
        row=packed.row[::-1].copy(),
        slot=packed.slot[::-1].copy(),
        slots=packed.slots,
    )
    forward, backward = engine.run(packed), engine.run(turned)
    for name in forward:
        np.testing.assert_array_equal(forward[name], backward[name][::-1])


def test_several_threads_share_an_engine(engine: Engine, layout: LayOut) -> None:
    batch = [layout([[[i, i + 1, i + 2], [i]], [[i] * (i % 7 + 1)]], length=8) for i in range(40)]
    alone = [engine.run(rows) for rows in batch]
    start = threading.Barrier(4)

    def run_all(_: int) -> list[dict[str, np.ndarray]]:
        start.wait(timeout=30)
        return [engine.run(rows) for rows in batch]

    with ThreadPoolExecutor(4) as pool:
        for together in pool.map(run_all, range(4)):
            for got, wanted in zip(together, alone, strict=True):
                assert_same(got, wanted)


@pytest.mark.parametrize("token", [-1, 50])
def test_an_id_outside_the_vocabulary_is_an_error_and_the_next_batch_runs(
    engine: Engine, layout: LayOut, token: int
) -> None:
    with pytest.raises(EngineError, match="outside the model's vocabulary of 50"):
        engine.run(layout([[[1, token]]], length=2))
    engine.run(layout([[[1, 2]]], length=2))


def test_a_text_beyond_the_positions_is_an_error(engine: Engine, layout: LayOut) -> None:
    engine.run(layout([[[1] * 32]], length=32))
    with pytest.raises(EngineError, match="longer than the model's 32 positions"):
        engine.run(layout([[[1] * 33]], length=33))


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino", "numpy"])
def test_numbers_that_are_not_finite_are_given_back_as_they_are(
    kind: EngineKind, tiny: Checkpoint, layout: LayOut
) -> None:
    broken = Head(
        labels=("A",), layers=(DenseLayer(weight=np.full((1, 24), np.nan, np.float32), bias=LINEAR.layers[0].bias[:1]),)
    )
    outputs = [PooledOutput(name="broken", pooling="mean", normalize=False, head=broken)]
    engine = open_engine(kind, tiny, outputs, threads=1, instances=1)
    assert np.isnan(engine.run(layout([[[1, 2]]], length=2))["broken"]).all()


def test_openvino_has_run_before_threads_share_it(tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads that made its first tensors hung, in one of four processes."""
    ran_in: list[threading.Thread] = []
    run = OpenVinoEngine.run

    def noted(engine: OpenVinoEngine, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
        ran_in.append(threading.current_thread())
        return run(engine, rows)

    monkeypatch.setattr(OpenVinoEngine, "run", noted)
    output = PooledOutput(name="it", pooling="mean", normalize=False)
    open_engine("openvino", tiny, [output], threads=1, instances=2).close()
    assert ran_in == [threading.current_thread()]


def test_openvino_missing_says_what_to_install(tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(EngineUnavailable, match=r"not installed: pip install openvino$"):
        open_engine("openvino", tiny, outputs_of(tiny), threads=1, instances=1)


def test_a_graph_that_finds_no_room_says_so(tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def find_no_room(*_: object, **__: object) -> None:
        raise EncodeError("Failed to serialize proto")

    monkeypatch.setattr(graph, "packed_graph", find_no_room)
    with pytest.raises(MemoryError, match="no room to write its graph"):
        graph.written_graph(tiny, outputs_of(tiny))


def test_graph_is_valid_plain_onnx(tiny: Checkpoint) -> None:
    model = packed_graph(tiny, outputs_of(tiny))
    onnx.checker.check_model(model, full_check=True)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 17)]
    assert [each.name for each in model.graph.input] == [*INPUTS]
    assert [each.name for each in model.graph.output] == ["embedding", "mean", "first", "largest", "sentiment", "class"]


def test_weights_beside_a_graph_are_those_in_it(tiny: Checkpoint) -> None:
    beside: Weights = {}
    lean = packed_graph(tiny, outputs_of(tiny), beside=beside)
    whole = packed_graph(tiny, outputs_of(tiny))
    found = {
        each.name: beside[each.name] if each.external_data else numpy_helper.to_array(each)
        for each in lean.graph.initializer
    }
    wanted = {each.name: numpy_helper.to_array(each) for each in whole.graph.initializer}
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, strict=True)
    assert sum(value.nbytes for value in beside.values()) > 0.9 * sum(value.nbytes for value in wanted.values())
    assert all(value.flags.c_contiguous for value in beside.values())


def test_outputs_share_one_encoder_pass(tiny: Checkpoint) -> None:
    def softmaxes(outputs: list[PooledOutput]) -> int:
        return sum(node.op_type == "Softmax" for node in packed_graph(tiny, outputs).graph.node)

    assert softmaxes(outputs_of(tiny)) == softmaxes(outputs_of(tiny)[:1]) == 2


@pytest.mark.parametrize(
    ("names", "says"),
    [(["a", "a"], "output 'a' is named twice"), (["slots"], "output 'slots': an input of the graph has this name")],
)
def test_names_that_clash(tiny: Checkpoint, names: list[str], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        packed_graph(tiny, [PooledOutput(name=name, pooling="mean", normalize=False) for name in names])


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino", "numpy"])
def test_a_head_of_another_model_is_refused(kind: EngineKind, tiny: Checkpoint) -> None:
    layer = DenseLayer(weight=np.zeros((2, 384), np.float32), bias=np.zeros(2, np.float32))
    outputs = [PooledOutput(name="x", pooling="mean", normalize=True, head=Head(labels=("A", "B"), layers=(layer,)))]
    with pytest.raises(CheckpointError, match="takes vectors of 384 numbers and gets 24"):
        open_engine(kind, tiny, outputs, threads=1, instances=1)
