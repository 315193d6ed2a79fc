"""`penstock build`, on a fake GPU and without one; and a worker's engine from the file to the answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.ensemble import Ensemble
from pipeline.settings import load_ensemble
from tests.cli.conftest import Penstock, WriteEnsemble
from tests.fake_gpu import FakeGpu, finished_plan
from tests.onnx_files import exported

ENGINE = {"kind": "tensorrt", "precision": "fp32"}
BATCHING = {"row_length": 32, "max_batch_tokens": 128}


def test_plans_are_built_listed_and_found_again(
    penstock: Penstock, ensemble: WriteEnsemble, gpu: FakeGpu, tmp_path: Path
) -> None:
    cache = tmp_path / "plans"
    file = ensemble(engine=ENGINE | {"plan_cache": str(cache), "devices": [0]}, batching=BATCHING)
    found = penstock("build", file)
    assert found.code == 0
    assert found.out.startswith("ready after ")
    assert found.out.endswith(f" s; plans are in {cache}\n")
    assert len(gpu.built) == 2
    listed = penstock("build", "--list", "--plan-cache", cache).out
    assert "2 plans" in listed.splitlines()[-1]
    for word in ("fp32", "1x32", "4x32", "Fake H100"):
        assert word in listed
    assert penstock("build", file).code == 0
    assert len(gpu.built) == 2
    assert penstock("build", "--prune", "--plan-cache", cache).out.startswith("0 plans removed")


def test_a_prediction_on_the_gpu_is_that_of_the_processor(
    ensemble: WriteEnsemble, gpu: FakeGpu, tmp_path: Path
) -> None:
    with Ensemble(load_ensemble(ensemble())) as on_cpu:
        [wanted] = on_cpu.predict(["Loved it."])
    engine = ENGINE | {"plan_cache": str(tmp_path / "plans")}
    with Ensemble(load_ensemble(ensemble(engine=engine, batching=BATCHING))) as on_gpu:
        [found] = on_gpu.predict(["Loved it."])
    assert found.outputs["vector"] == pytest.approx(wanted.outputs["vector"], abs=1e-5)
    assert gpu.launches > 0


def test_a_worker_that_may_not_build_says_what_to_do(
    penstock: Penstock, ensemble: WriteEnsemble, gpu: FakeGpu, tmp_path: Path
) -> None:
    engine = ENGINE | {"plan_cache": str(tmp_path / "plans"), "plans": "require"}
    file = ensemble(engine=engine, batching=BATCHING)
    found = penstock("predict", file)
    assert found.code == 2
    assert f"{file}:1: engine.plans: " in found.err
    assert "no plan of 1x32, 4x32 in " in found.err
    assert "run `penstock build` with this file on this machine" in found.err
    assert penstock("build", file).code == 0, "build builds, whatever workers may"
    assert penstock("predict", file).code == 0


def test_an_engine_that_is_not_the_model_is_a_mistake_of_the_precision(
    penstock: Penstock, ensemble: WriteEnsemble, gpu: FakeGpu, tmp_path: Path
) -> None:
    gpu.spoils = lambda rows: -rows
    file = ensemble(engine=ENGINE | {"plan_cache": str(tmp_path / "plans")}, batching=BATCHING)
    found = penstock("build", file)
    assert found.code == 2
    assert "engine.precision: in fp32 the engine is not the model: vector: cosine -1.0" in found.err


def test_without_tensorrt_it_says_what_to_install(penstock: Penstock, ensemble: WriteEnsemble) -> None:
    file = ensemble(engine=ENGINE)
    found = penstock("build", file)
    assert found.code == 2
    assert "engine.kind: engine tensorrt: No module named 'tensorrt': pip install 'penstock[gpu]'" in found.err


def test_what_needs_no_plans_is_told(penstock: Penstock, ensemble: WriteEnsemble) -> None:
    found = penstock("build", ensemble())
    assert found.code == 2
    assert "engine.kind: onnxruntime needs no plans; allowed: tensorrt" in found.err


@pytest.mark.parametrize("arguments", [[], ["--list", "--prune"]])
def test_it_does_one_thing_at_a_time(penstock: Penstock, arguments: list[str]) -> None:
    found = penstock("build", *arguments)
    assert (found.code, found.err) == (2, "penstock: build: give ENSEMBLE.yaml, --list or --prune, one of them\n")


def test_the_file_names_its_own_cache(penstock: Penstock, ensemble: WriteEnsemble, tmp_path: Path) -> None:
    found = penstock("build", ensemble(engine=ENGINE), "--plan-cache", tmp_path)
    assert (found.code, "ENSEMBLE.yaml has engine.plan_cache" in found.err) == (2, True)


def test_a_gpu_that_is_not_there_is_a_mistake_of_the_devices(
    penstock: Penstock, ensemble: WriteEnsemble, gpu: FakeGpu
) -> None:
    file = ensemble(engine=ENGINE | {"devices": [9]})
    found = penstock("build", file)
    assert found.code == 2
    assert f"{file}:1: engine.devices: GPU 9: " in found.err


def test_texts_that_are_all_too_long_are_a_mistake_of_the_samples(
    penstock: Penstock, ensemble: WriteEnsemble, gpu: FakeGpu, tmp_path: Path
) -> None:
    (tmp_path / "texts.txt").write_text("word " * 60)
    engine = ENGINE | {"plan_cache": "plans", "sample_texts": "texts.txt"}
    found = penstock("build", ensemble(engine=engine, batching=BATCHING | {"row_length": 8}))
    assert found.code == 2
    assert "engine.sample_texts: no text has at most 8 tokens: name a file of shorter ones" in found.err


def test_what_only_a_gpu_heeds_is_refused_without(penstock: Penstock, ensemble: WriteEnsemble) -> None:
    found = penstock("check", ensemble(engine={"sample_texts": "texts.txt"}))
    assert "engine.sample_texts: has no effect with onnxruntime; allowed: only with tensorrt" in found.out


@pytest.fixture
def plan_model(small_model: Path, tmp_path: Path) -> dict[str, object]:
    """A model with a plan of the user's own, and the ONNX file that it was built of beside it."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for file in small_model.glob("*token*"):
        (folder / file.name).symlink_to(file)
    (folder / "config.json").write_text('{"model_type": "mpnet", "hidden_size": 6, "max_position_embeddings": 32}')
    graph = exported(folder / "model.onnx", vocab=30_522).read_bytes()
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    (folder / "model.plan").write_bytes(finished_plan(graph, dict.fromkeys(inputs, ((1, 1), (4, 32), (8, 32)))))
    return {"name": "vector", "source": str(folder), "plan": str(folder / "model.plan")}


def test_a_plan_of_ones_own_is_loaded_and_run_as_it_is(
    penstock: Penstock,
    ensemble: WriteEnsemble,
    gpu: FakeGpu,
    plan_model: dict[str, object],
    broker_looked_for_briefly: None,
    tmp_path: Path,
) -> None:
    engine = {"kind": "tensorrt", "plan_cache": str(tmp_path / "plans")}
    file = ensemble(models=[plan_model], engine=engine, batching=BATCHING)
    built = penstock("build", file)
    assert built.code == 0, built.err
    assert built.out.startswith("ready after ")
    assert built.out.endswith(f" s; {plan_model['plan']} is run as it is\n")
    assert not (tmp_path / "plans").exists()
    checked = penstock("check", file).out
    assert "ok      models vector: tensorrt, 2 instances on each of 1 GPU" in checked
    assert "ok      one text: 12 tokens; vector 6 floats" in checked
    with Ensemble(load_ensemble(file)) as on_gpu:
        [found] = on_gpu.predict(["Loved it."])
    onnx = {"name": "vector", "source": plan_model["source"], "onnx": str(tmp_path / "mine/model.onnx")}
    with Ensemble(load_ensemble(ensemble(models=[onnx]))) as on_cpu:
        [wanted] = on_cpu.predict(["Loved it."])
    assert found.outputs["vector"] == pytest.approx(wanted.outputs["vector"], abs=1e-5)


def test_a_plan_stands_beside_models_that_are_built(
    penstock: Penstock,
    ensemble: WriteEnsemble,
    gpu: FakeGpu,
    plan_model: dict[str, object],
    small_model: Path,
    tmp_path: Path,
) -> None:
    models = [{"name": "built", "source": str(small_model), "task": "sentence-embedding"}, plan_model]
    file = ensemble(models=models, engine=ENGINE | {"plan_cache": str(tmp_path / "plans")}, batching=BATCHING)
    assert penstock("build", file).out.endswith(
        f" s; plans are in {tmp_path / 'plans'}; {plan_model['plan']} is run as it is\n"
    )


def test_a_plan_that_tensorrt_does_not_take_is_a_mistake_of_the_model(
    penstock: Penstock, ensemble: WriteEnsemble, gpu: FakeGpu, plan_model: dict[str, object]
) -> None:
    Path(str(plan_model["plan"])).write_bytes(b"of another version")
    file = ensemble(models=[plan_model], engine={"kind": "tensorrt"}, batching=BATCHING)
    found = penstock("build", file)
    assert found.code == 2
    [line] = found.lines
    assert f"{file}:1: models[0].plan: {plan_model['plan']}: can't be loaded on GPU 0 (Fake H100) by " in line
