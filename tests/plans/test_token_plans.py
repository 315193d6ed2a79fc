"""Outputs of tokens on a (fake) GPU: answered as the model does, and judged before they are."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from engines.checkpoint import Checkpoint
from engines.engine import open_engine
from engines.errors import ParityError
from engines.heads import ModelOutput, TokenOutput
from engines.rows import Engine
from pipeline.plans.cache import PlanCache
from pipeline.plans.opening import open_tensorrt_engine
from pipeline.settings import EnsembleSettings
from tests.engines.test_token_outputs import OUTPUTS, TAGS, answers
from tests.fake_gpu import FakeGpu
from tests.plans.conftest import MakeSettings, some_windows


def opened(settings: EnsembleSettings, checkpoint: Checkpoint, outputs: list[ModelOutput]) -> Engine:
    return open_tensorrt_engine(settings, checkpoint, outputs, max_length=16, windows=lambda: some_windows(longest=16))


@pytest.mark.parametrize("outputs", [OUTPUTS, OUTPUTS[1:]], ids=["with texts", "alone"])
def test_they_are_the_models(gpu: FakeGpu, on_gpu: MakeSettings, tiny: Checkpoint, outputs: list[ModelOutput]) -> None:
    engine = opened(on_gpu(), tiny, outputs)
    told = PlanCache(on_gpu().engine.plan_cache).plans()[0].about.parity
    assert re.fullmatch(r"cosine 1\.0+ at least, 1\.0+ in the mean, .*, of \d+ tokens", told["states"])
    oracle = open_engine("numpy", tiny, OUTPUTS, threads=1, instances=1)
    for count in (1, 2, 9, 100):  # the smallest plan, one not full, a full one, more than any holds
        windows = some_windows(count, seed=count)
        for name in ("states", "tags"):
            for found, wanted in zip(answers(engine, name, windows), answers(oracle, name, windows), strict=True):
                np.testing.assert_allclose(found, wanted, atol=1e-5)
    engine.close()


@pytest.mark.parametrize(
    ("output", "message"),
    [(TokenOutput(name="states"), "states: cosine -1.0+, wanted"), (TAGS, "tags: share of equal decisions 0")],
)
def test_what_is_not_the_model_is_refused(
    gpu: FakeGpu, on_gpu: MakeSettings, tiny: Checkpoint, output: TokenOutput, message: str
) -> None:
    def spoil(rows: Any) -> Any:
        return -rows

    gpu.spoils = spoil
    with pytest.raises(ParityError, match=message):
        opened(on_gpu(), tiny, [output])


def test_half_precision_is_answered_in_single(gpu: FakeGpu, on_gpu: MakeSettings, tiny: Checkpoint) -> None:
    engine = open_tensorrt_engine(
        on_gpu(precision="fp16"),
        tiny,
        OUTPUTS,
        max_length=16,
        windows=lambda: some_windows(longest=16),
        gate=lambda parities, _: None,  # random weights are not like a model's
    )
    oracle = open_engine("numpy", tiny, OUTPUTS, threads=1, instances=1)
    windows = some_windows(20)
    for name in ("states", "tags"):
        found, wanted = (np.concatenate(answers(each, name, windows)) for each in (engine, oracle))
        assert found.dtype == np.float32
        assert np.abs(found - wanted).mean() < 0.02
    engine.close()
