"""A classifier's scores follow its problem type, as they do in transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.assembly import open_postprocess_stage
from pipeline.settings import settings_for_model
from schemas.packs import PackedText, encoding_pack, token_pack
from schemas.results import Label

LOGITS = np.array([[2.0, -1.0, 0.5]], np.float32)


@pytest.mark.parametrize(
    ("problem_type", "best"),
    [
        (None, float(np.exp(2.0) / np.exp(LOGITS).sum())),
        ("single_label_classification", float(np.exp(2.0) / np.exp(LOGITS).sum())),
        ("multi_label_classification", 1 / (1 + float(np.exp(-2.0)))),
        ("regression", 2.0),
    ],
)
def test_the_problem_type_chooses_the_function(
    small_model: Path, tmp_path: Path, problem_type: str | None, best: float
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(small_model, folder)
    config = json.loads((folder / "config.json").read_text()) | {"problem_type": problem_type}
    (folder / "config.json").write_text(json.dumps(config))
    stage = open_postprocess_stage(settings_for_model(str(folder), "text-classification"))
    text = PackedText(id="1", key=None, headers=[], offset=0, chunks=1, tokens=1, truncated=False)
    pack = token_pack(topic="t", partition=0, texts=[text], chunks=[np.array([1], np.int32)])
    [result] = stage(encoding_pack(pack, {"model": LOGITS}))
    [first, *_] = result.outputs["model"]
    assert isinstance(first, Label)
    assert (first.label, first.score) == ("NO", pytest.approx(best, abs=1e-6))
