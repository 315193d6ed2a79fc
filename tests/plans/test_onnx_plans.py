"""A user's ONNX file on TensorRT: padded rows in a few lengths, each compared with the file on ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from onnx import TensorProto

from engines.engine import open_source
from engines.errors import ParityError
from engines.heads import PooledOutput
from engines.onnx_model import onnx_graph, read_onnx
from engines.plan import build_plan
from engines.plan_shapes import PlanShape, padded_shapes
from engines.rows import Engine
from engines.source import GraphSource, of_onnx
from pipeline.plans.cache import PlanCache
from pipeline.plans.opening import open_tensorrt_onnx_engine
from stages.packing import pack_rows
from tests.fake_gpu import FakeGpu
from tests.onnx_files import VOCAB, WIDTH, exported
from tests.plans.conftest import OUTPUT, MakeSettings

LONGEST = 60

# TensorRT for RTX keeps no timings, and says so at each build.
pytestmark = pytest.mark.filterwarnings("ignore:.*TensorRT-RTX.*:DeprecationWarning")


def windows(count: int, *, seed: int = 5) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.integers(1, VOCAB, draw.integers(1, LONGEST + 1), np.int32) for _ in range(count)]


def source_in(folder: Path, *, kind: int = TensorProto.FLOAT) -> GraphSource:
    path = exported(folder / "model.onnx", kind=kind)
    return of_onnx(read_onnx(path), [OUTPUT], vocab_size=VOCAB, max_positions=LONGEST)


def opened(made: MakeSettings, source: GraphSource, *, halved: bool = False) -> Engine:
    return open_tensorrt_onnx_engine(
        made(), source, [OUTPUT], halved=halved, max_length=LONGEST, windows=lambda: windows(40, seed=1)
    )


def answers(engine: Engine, texts: list[np.ndarray]) -> np.ndarray:
    found = np.zeros((len(texts), WIDTH), np.float32)
    for group in pack_rows(texts, row_length=64):
        found[group.windows] = engine.run(group.rows)[OUTPUT.name]
    return found


def test_answers_are_those_of_the_file(gpu: FakeGpu, on_gpu: MakeSettings, tmp_path: Path) -> None:
    source = source_in(tmp_path)
    engine = opened(on_gpu, source)
    wanted = open_source("onnxruntime", source, threads=1, instances=1)
    for texts in (windows(1), windows(7), windows(100)):
        np.testing.assert_allclose(answers(engine, texts), answers(wanted, texts), atol=1e-5)
    engine.close()
    # 128 tokens a batch: four rows of 32 and an eighth of that, two of 60.
    assert sorted({shapes["input_ids"] for shapes in gpu.built}) == [(1, 32), (1, 60), (2, 60), (4, 32)]


def test_its_plans_are_kept_and_told(gpu: FakeGpu, on_gpu: MakeSettings, tmp_path: Path) -> None:
    for _ in range(2):
        opened(on_gpu, source_in(tmp_path)).close()
    kept = PlanCache(on_gpu().engine.plan_cache).plans()
    assert len(gpu.built) == len(kept) == 4
    assert {each.about.model for each in kept} == {str(tmp_path / "model.onnx")}
    assert {each.about.precision for each in kept} == {"fp32"}


def test_its_precision_is_its_own(gpu: FakeGpu, on_gpu: MakeSettings, tmp_path: Path) -> None:
    opened(on_gpu, source_in(tmp_path, kind=TensorProto.FLOAT16), halved=True).close()
    assert {each.about.precision for each in PlanCache(on_gpu().engine.plan_cache).plans()} == {"fp16"}


def test_what_is_not_the_file_is_refused(gpu: FakeGpu, on_gpu: MakeSettings, tmp_path: Path) -> None:
    gpu.spoils = lambda rows: rows[:, ::-1]
    with pytest.raises(ParityError, match="in fp32 the engine is not the model"):
        opened(on_gpu, source_in(tmp_path))


@pytest.mark.parametrize(("longest", "lengths"), [(20, [20]), (33, [32, 33]), (200, [32, 64, 128, 200])])
def test_lengths_double(longest: int, lengths: list[int]) -> None:
    shapes = padded_shapes(max_length=longest, max_batch_tokens=1024)
    assert sorted({shape.row_length for shape in shapes}) == lengths
    assert all(shape.tokens <= 1024 for shape in shapes)
    full = 1024 // lengths[0]
    assert [shape.rows for shape in shapes if shape.row_length == lengths[0]] == [-(-full // 8), full]


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize("output", ["last_hidden_state", "logits"])
def test_tensorrt_builds_it(builder: ModuleType, tmp_path: Path, output: str, kind: int) -> None:
    path = exported(tmp_path / "model.onnx", outputs=(output,), kind=kind)
    graph = onnx_graph(read_onnx(path), [PooledOutput(name="x", pooling="mean", normalize=True)], max_positions=LONGEST)
    assert build_plan(builder, graph, PlanShape(row_length=32, rows=4).inputs()).plan
