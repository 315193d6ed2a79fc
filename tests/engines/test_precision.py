"""The graph in other numbers than float32, computed by ONNX Runtime, and built for real by TensorRT's own builder."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest

from engines.calibration import measure_channels, quantization
from engines.checkpoint import Checkpoint
from engines.errors import PlanError
from engines.graph import written_graph
from engines.heads import PooledOutput, TokenOutput
from engines.onnxruntime import OnnxRuntimeEngine
from engines.plan import build_plan
from engines.plan_shapes import PlanShape
from engines.precision import EightBits, FloatType, Numbers, Quantization, dense_inputs
from engines.rows import PackedRows, graph_inputs
from engines.source import of_checkpoint
from stages.packing import pack_rows
from tests.engines.conftest import VOCAB

# A timing cache is nothing to TensorRT-RTX, and it says so.
pytestmark = pytest.mark.filterwarnings("ignore:.*TensorRT-RTX.*:DeprecationWarning")

OUTPUTS = [PooledOutput(name="embedding", pooling="mean", normalize=True)]


def some_rows(vocabulary: int = VOCAB, *, count: int = 60, seed: int = 6) -> PackedRows:
    draw = np.random.default_rng(seed)
    windows = [draw.integers(1, vocabulary, draw.integers(3, 30), np.int32) for _ in range(count)]
    [group] = pack_rows(windows, row_length=32)
    return group.rows


def cosines(checkpoint: Checkpoint, numbers: Numbers, rows: PackedRows) -> np.ndarray:
    model = written_graph(checkpoint, OUTPUTS, numbers=numbers)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    [computed] = session.run(["embedding"], graph_inputs(rows))
    wanted = OnnxRuntimeEngine(of_checkpoint(checkpoint, OUTPUTS), threads=1).run(rows)["embedding"]
    return np.einsum("nw,nw->n", computed, wanted)


def quantized(checkpoint: Checkpoint, kind: EightBits, rows: PackedRows) -> Quantization:
    return quantization(kind, checkpoint, measure_channels(checkpoint, OUTPUTS, [rows], threads=1))


def test_half_precision_is_the_same_model(minilm: Checkpoint) -> None:
    assert cosines(minilm, Numbers(floats="fp16"), some_rows(30_000)).min() > 0.9999


@pytest.mark.parametrize(("kind", "least"), [("fp8", 0.985), ("int8", 0.98)])
def test_8_bits_are_nearly_the_same_model(minilm: Checkpoint, kind: EightBits, least: float) -> None:
    rows = some_rows(30_000)
    assert cosines(minilm, Numbers(floats="fp16", quantization=quantized(minilm, kind, rows)), rows).min() > least


def test_divisors_are_what_makes_int8_the_model(minilm: Checkpoint) -> None:
    rows = some_rows(30_000)
    with_them = quantized(minilm, "int8", rows)
    largest = {name: float(each.max()) for name, each in measure_channels(minilm, OUTPUTS, [rows], threads=1).items()}
    without = Quantization(kind="int8", amax=largest, divisors={})
    means = [cosines(minilm, Numbers(floats="fp16", quantization=each), rows).mean() for each in (with_them, without)]
    assert means[0] > 0.99 > means[1]


def test_channels_are_the_largest_of_all_batches(tiny: Checkpoint) -> None:
    batches = [some_rows(seed=seed) for seed in (1, 2)]
    together = measure_channels(tiny, OUTPUTS, batches, threads=1)
    alone = [measure_channels(tiny, OUTPUTS, [each], threads=1) for each in batches]
    assert [*together] == dense_inputs(2)
    for name, channels in together.items():
        np.testing.assert_array_equal(channels, np.maximum(alone[0][name], alone[1][name]))
    assert together["0.inner"].shape == (40,)


@pytest.mark.parametrize("floats", ["fp32", "fp16", "bf16"])
def test_tensorrt_builds_the_graph(builder: ModuleType, tiny: Checkpoint, floats: FloatType) -> None:
    phases: list[tuple[str, int]] = []
    shape = PlanShape(row_length=32, rows=4)
    model = written_graph(tiny, OUTPUTS, numbers=Numbers(floats=floats))
    built = build_plan(builder, model, shape.inputs(), on_progress=lambda *told: phases.append(told))
    assert built.plan
    assert phases, "progress is told"
    assert phases[-1][1] == 100


def test_tensorrt_builds_the_largest_numbers_of_texts(builder: ModuleType, tiny: Checkpoint) -> None:
    """In rows shorter than the longest text."""
    model = written_graph(tiny, [PooledOutput(name="largest", pooling="max", normalize=False)])
    assert build_plan(builder, model, PlanShape(row_length=8, rows=4).inputs()).plan


def test_tensorrt_builds_numbers_of_tokens(builder: ModuleType, tiny: Checkpoint) -> None:
    """Alone: inputs that say which texts lie where are read by nothing, and are inputs all the same."""
    shape = PlanShape(row_length=32, rows=4)
    model = written_graph(tiny, [TokenOutput(name="states")], numbers=Numbers(floats="fp16"))
    assert build_plan(builder, model, shape.inputs()).plan


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_tensorrt_builds_8_bits(builder: ModuleType, tiny: Checkpoint, kind: EightBits) -> None:
    numbers = Numbers(floats="fp16", quantization=quantized(tiny, kind, some_rows()))
    model = written_graph(tiny, OUTPUTS, numbers=numbers)
    assert build_plan(builder, model, PlanShape(row_length=32, rows=4).inputs()).plan


def test_what_tensorrt_can_t_read_is_told(builder: ModuleType) -> None:
    with pytest.raises(PlanError, match=r"TensorRT can't read the graph: .+"):
        build_plan(builder, b"not a graph", {})


def test_what_tensorrt_can_t_build_is_told(builder: ModuleType, tiny: Checkpoint) -> None:
    shapes = PlanShape(row_length=32, rows=4).inputs() | {"position_ids": (3, 32)}
    with pytest.raises(PlanError, match=r"TensorRT can't build the plan: .+"):
        build_plan(builder, written_graph(tiny, OUTPUTS), shapes)
