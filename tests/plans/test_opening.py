"""From a checkpoint to an engine on a (fake) GPU: built once, checked, kept, and what goes wrong told."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from engines.checkpoint import Checkpoint
from engines.engine import open_engine
from engines.errors import EngineBusy, EngineError, EngineLost, EngineUnavailable, ParityError, PlanError, PlanMissing
from engines.lanes import LaneEngine
from engines.rows import Engine
from pipeline.plans.cache import PlanCache
from pipeline.plans.opening import open_tensorrt_engine
from pipeline.settings import EnsembleSettings
from stages.encode import EncodeStage
from stages.packing import pack_rows
from tests.fake_gpu import Error, FakeGpu, OutOfMemory
from tests.plans.conftest import OUTPUT, MakeSettings, some_windows


def opened(settings: EnsembleSettings, checkpoint: Checkpoint, *, max_length: int = 16) -> Engine:
    return open_tensorrt_engine(
        settings, checkpoint, [OUTPUT], max_length=max_length, windows=lambda: some_windows(longest=max_length)
    )


def answers(engine: Engine, windows: Sequence[np.ndarray]) -> np.ndarray:
    found = np.full((len(windows), engine.widths[OUTPUT.name]), np.nan, np.float32)
    for group in pack_rows(windows, row_length=16):
        found[group.windows] = engine.run(group.rows)[OUTPUT.name]
    return found


@pytest.fixture
def oracle(tiny: Checkpoint) -> Engine:
    return open_engine("numpy", tiny, [OUTPUT], threads=1, instances=1)


def test_it_answers_as_the_model_does(gpu: FakeGpu, on_gpu: MakeSettings, tiny: Checkpoint, oracle: Engine) -> None:
    engine = opened(on_gpu(), tiny)
    for count in (1, 2, 9, 100):  # the smallest plan, one not full, a full one, more than any holds
        windows = some_windows(count, seed=count)
        np.testing.assert_allclose(answers(engine, windows), answers(oracle, windows), atol=1e-5)
    assert gpu.launches > 0
    engine.close()
    assert (gpu.pushed, gpu.contexts_detached) == (0, 1)


def test_texts_longer_than_a_row_are_answered_too(
    gpu: FakeGpu, on_gpu: MakeSettings, tiny: Checkpoint, oracle: Engine
) -> None:
    engine = opened(on_gpu(), tiny, max_length=32)
    windows = some_windows(60, longest=32)
    np.testing.assert_allclose(answers(engine, windows), answers(oracle, windows), atol=1e-5)


def test_many_callers_at_once_get_their_own_answers(
    gpu: FakeGpu, on_gpu: MakeSettings, tiny: Checkpoint, oracle: Engine
) -> None:
    engine = opened(on_gpu(), tiny)
    batches = [some_windows(20, seed=seed) for seed in range(40)]
    with ThreadPoolExecutor(6) as callers:
        found = list(callers.map(lambda windows: answers(engine, windows), batches))
    for windows, rows in zip(batches, found, strict=True):
        np.testing.assert_allclose(rows, answers(oracle, windows), atol=1e-5)


def test_a_plan_is_built_once(gpu: FakeGpu, on_gpu: MakeSettings, tiny: Checkpoint) -> None:
    opened(on_gpu(), tiny).close()
    assert [shapes["input_ids"] for shapes in gpu.built] == [(1, 16), (8, 16)]
    opened(on_gpu(), tiny).close()
    opened(on_gpu(devices=(0, 1)), tiny).close()  # the same chip twice
    assert len(gpu.built) == 2


def test_another_model_precision_or_shape_is_another_plan(gpu: FakeGpu, on_gpu: MakeSettings, tiny: Checkpoint) -> None:
    opened(on_gpu(), tiny).close()
    before = len(gpu.built)
    name = "bert.encoder.layer.0.output.dense.bias"
    changed = Checkpoint(
        folder=tiny.folder,
        config=tiny.config,
        max_positions=tiny.max_positions,
        sentence=tiny.sentence,
        weights={**tiny.weights, name: tiny.weights[name] + np.float32(1e-3)},
    )
    opened(on_gpu(), changed).close()
    assert len(gpu.built) == 2 * before


def test_the_cache_tells_what_it_holds(gpu: FakeGpu, on_gpu: MakeSettings, tiny: Checkpoint) -> None:
    settings = on_gpu()
    opened(settings, tiny).close()
    kept = PlanCache(settings.engine.plan_cache).plans()
    assert {each.about.shape for each in kept} == {"1x16", "8x16"}
    assert {each.about.gpu for each in kept} == {"Fake H100"}
    assert all("1.000000 in the mean" in each.about.parity["embedding"] for each in kept)
    assert PlanCache(settings.engine.plan_cache).timings("10.6.0", "Fake-H100-sm90") == b"++"


def test_where_none_is_to_be_built_a_missing_plan_is_told(gpu: FakeGpu, on_gpu: MakeSettings, tiny: Checkpoint) -> None:
    with pytest.raises(PlanMissing, match=r"no plan of 1x16, 8x16 in .*plans"):
        opened(on_gpu(plans="require"), tiny)
    opened(on_gpu(), tiny).close()
    opened(on_gpu(plans="require"), tiny).close()


def test_what_is_not_the_model_is_refused_and_not_kept(gpu: FakeGpu, on_gpu: MakeSettings, tiny: Checkpoint) -> None:
    gpu.spoils = lambda rows: rows[:, ::-1]
    settings = on_gpu()
    with pytest.raises(ParityError, match=r"in fp32 the engine is not the model: embedding: cosine .*, wanted 0.99999"):
        opened(settings, tiny)
    assert PlanCache(settings.engine.plan_cache).plans() == []


def test_a_plan_of_another_version_is_told(gpu: FakeGpu, on_gpu: MakeSettings, tiny: Checkpoint) -> None:
    settings = on_gpu()
    opened(settings, tiny).close()
    assert settings.engine.plan_cache is not None
    for path in settings.engine.plan_cache.glob("*.plan"):
        path.write_bytes(b"of another version")
    with pytest.raises(PlanError, match=r"1x16 can't be loaded on GPU 0 \(Fake H100\): .* not compatible with"):
        opened(on_gpu(plans="require"), tiny)
    before = len(gpu.built)
    opened(settings, tiny).close()  # who may build, mends it
    assert len(gpu.built) == before + 2
    opened(on_gpu(plans="require"), tiny).close()


def test_a_gpu_that_is_not_there_is_told(gpu: FakeGpu, on_gpu: MakeSettings, tiny: Checkpoint) -> None:
    with pytest.raises(EngineUnavailable, match=r"GPU 7: .*invalid device ordinal: does nvidia-smi"):
        opened(on_gpu(devices=(7,)), tiny)


def test_without_recording_each_launch_is_made_anew(
    gpu: FakeGpu, on_gpu: MakeSettings, tiny: Checkpoint, oracle: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.refuses_recording = True
    engine = opened(on_gpu(), tiny)
    assert "not recorded, each launch takes longer: CUDA graph: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED" in caplog.text
    for seed in range(8):  # both lanes of both instances
        windows = some_windows(9, seed=seed)
        np.testing.assert_allclose(answers(engine, windows), answers(oracle, windows), atol=1e-5)
    assert gpu.launches == 0


def test_a_failure_that_passes_costs_one_batch(gpu: FakeGpu, on_gpu: MakeSettings, tiny: Checkpoint) -> None:
    engine = opened(on_gpu(), tiny)
    gpu.fails = Error("cuLaunchKernel failed: invalid argument")
    with pytest.raises(EngineError, match=r"GPU 0 \(Fake H100\): CUDA graph: CUDA_ERROR") as raised:
        answers(engine, some_windows(3))
    assert not isinstance(raised.value, EngineBusy)
    assert np.isfinite(answers(engine, some_windows(3))).all()


def test_a_gpu_without_memory_is_busy(gpu: FakeGpu, on_gpu: MakeSettings, tiny: Checkpoint) -> None:
    engine = opened(on_gpu(), tiny)
    gpu.fails = OutOfMemory("cuMemAlloc failed: out of memory")
    with pytest.raises(EngineBusy, match="CUDA_ERROR_OUT_OF_MEMORY"):
        answers(engine, some_windows(3))
    assert np.isfinite(answers(engine, some_windows(3))).all()


def test_an_error_that_sticks_ends_the_engine(gpu: FakeGpu, on_gpu: MakeSettings, tiny: Checkpoint) -> None:
    engine = opened(on_gpu(), tiny)
    gpu.is_lost = Error("cuCtxSynchronize failed: an illegal memory access was encountered")
    with pytest.raises(EngineLost, match=r"GPU 0 \(Fake H100\): .*illegal memory access"):
        answers(engine, some_windows(3))
    engine.close()
    assert gpu.contexts_detached == 1


def test_a_lost_engine_stays_lost(gpu: FakeGpu, on_gpu: MakeSettings, tiny: Checkpoint) -> None:
    engine = opened(on_gpu(), tiny)
    gpu.is_lost = Error("cuCtxSynchronize failed: an illegal memory access was encountered")
    with pytest.raises(EngineLost):
        answers(engine, some_windows(3))
    gpu.is_lost = None  # whatever the driver says next, the engine stays lost
    with pytest.raises(EngineLost):
        answers(engine, some_windows(3))


def test_no_text_is_blamed_for_a_lost_gpu(gpu: FakeGpu, on_gpu: MakeSettings, tiny: Checkpoint) -> None:
    stage = EncodeStage([opened(on_gpu(), tiny)], row_length=16, max_length=16)
    gpu.is_lost = Error("cuCtxSynchronize failed: an illegal memory access was encountered")
    launches = gpu.launches
    with pytest.raises(EngineLost):
        stage(some_windows(30))
    assert gpu.launches == launches, "no half is tried on a broken GPU"


def test_a_nan_costs_its_text_alone(gpu: FakeGpu, on_gpu: MakeSettings, tiny: Checkpoint) -> None:
    engine = opened(on_gpu(), tiny)
    poison = some_windows(9)
    culprit = answers(engine, [poison[4]])[0]

    def spoil(rows: np.ndarray) -> np.ndarray:
        rows = rows.copy()
        rows[np.abs(rows - culprit).max(axis=1) < 1e-4] = np.nan
        return rows

    gpu.spoils = spoil
    encoded = EncodeStage([engine], row_length=16, max_length=16)(poison)
    assert list(encoded.failed) == [4]


def test_a_micro_batch_goes_to_each_gpu_in_turn(gpu: FakeGpu, on_gpu: MakeSettings, tiny: Checkpoint) -> None:
    engine = opened(on_gpu(devices=(0, 1)), tiny)
    assert isinstance(engine, LaneEngine)
    indices = [cast(Any, lane)._device.index for lane in engine._lanes]
    assert indices == [0, 1] * 4
    engine.close()
    assert gpu.contexts_detached == 2


def test_a_batch_that_tensorrt_does_not_take_is_an_engine_s_failure(
    gpu: FakeGpu, on_gpu: MakeSettings, tiny: Checkpoint
) -> None:
    gpu.refuses_enqueue = True
    with pytest.raises(EngineError, match="TensorRT did not take the batch"):
        opened(on_gpu(), tiny)


def test_the_folder_of_plans_is_the_user_s_where_none_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert PlanCache().folder == tmp_path / "penstock/plans"
