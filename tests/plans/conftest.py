"""A fake GPU, and an ensemble of the tiny model on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.heads import PooledOutput
from pipeline.settings import EnsembleSettings
from tests.engines.conftest import VOCAB

OUTPUT = PooledOutput(name="embedding", pooling="mean", normalize=True)

MakeSettings = Callable[..., EnsembleSettings]


@pytest.fixture
def on_gpu(tmp_path: Path, tiny_folder: Path) -> MakeSettings:
    """Settings of the tiny model with TensorRT, some options of `engine` given."""

    def made(**engine: Any) -> EnsembleSettings:
        return EnsembleSettings.model_validate(
            {
                "name": "gpu",
                "models": [{"name": OUTPUT.name, "source": str(tiny_folder)}],
                "engine": {"kind": "tensorrt", "precision": "fp32", "plan_cache": tmp_path / "plans", **engine},
                "batching": {"row_length": 16, "max_batch_tokens": 128},
            }
        )

    return made


def some_windows(count: int = 50, *, longest: int = 16, seed: int = 3) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.integers(1, VOCAB, draw.integers(2, longest + 1), np.int32) for _ in range(count)]
