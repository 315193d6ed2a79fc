"""Small models of each family, against PyTorch: tests/engines/make_family_references.py."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from engines.checkpoint import SUPPORTED_MODEL_TYPES, Checkpoint, load_checkpoint
from engines.engine import EngineKind, open_engine
from engines.graph import written_graph
from engines.heads import PooledOutput, classification_head
from engines.model_config import _as_transformers_reads, _as_written
from engines.plan import build_plan
from engines.plan_shapes import PlanShape
from engines.precision import Numbers
from stages.packing import pack_rows

pytestmark = pytest.mark.filterwarnings("ignore:.*TensorRT-RTX.*:DeprecationWarning")

REFERENCES = Path(__file__).with_name("family_references.safetensors")


@cache
def metadata() -> dict[str, Any]:
    with safe_open(REFERENCES, framework="numpy") as file:
        return {name: json.loads(file.metadata()[name]) for name in ("configs", "texts")}


NAMES = sorted(metadata()["configs"])


def tensors(name: str, kind: str) -> dict[str, NDArray[np.float32]]:
    with safe_open(REFERENCES, framework="numpy") as file:
        keys = [key for key in file.keys() if key.startswith(f"{name}/{kind}")]  # noqa: SIM118 - it is no mapping
        return {key.removeprefix(f"{name}/{kind}").lstrip("/"): file.get_tensor(key) for key in keys}


@pytest.fixture
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoint:
    (tmp_path / "config.json").write_text(json.dumps(metadata()["configs"][request.param]))
    save_file(tensors(request.param, "weights"), tmp_path / "model.safetensors")
    return load_checkpoint(tmp_path)


def windows() -> list[NDArray[np.int32]]:
    return [np.array(ids, np.int32) for ids in metadata()["texts"]]


def answers(kind: EngineKind, checkpoint: Checkpoint) -> dict[str, NDArray[np.float32]]:
    """Of all texts, packed together."""
    outputs = [
        PooledOutput(name="mean", pooling="mean", normalize=False),
        PooledOutput(name="first", pooling="cls", normalize=False),
        PooledOutput(name="class", pooling="cls", normalize=False, head=classification_head(checkpoint)),
    ]
    engine = open_engine(kind, checkpoint, outputs, threads=1, instances=1)
    found = {name: np.zeros((len(windows()), width), np.float32) for name, width in engine.widths.items()}
    for group in pack_rows(windows(), row_length=64):
        for name, answer in engine.run(group.rows).items():
            found[name][group.windows] = answer
    engine.close()
    return found


def test_there_is_a_reference_for_each_family() -> None:
    assert {config["model_type"] for config in metadata()["configs"].values()} == set(SUPPORTED_MODEL_TYPES)


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino", "numpy"])
@pytest.mark.parametrize(("name", "checkpoint"), [(name, name) for name in NAMES], indirect=["checkpoint"])
def test_answers_are_pytorch_s(kind: EngineKind, name: str, checkpoint: Checkpoint) -> None:
    found = answers(kind, checkpoint)
    hidden = tensors(name, "hidden")
    wanted = {
        "mean": np.stack([hidden[str(place)].mean(axis=0) for place in range(len(hidden))]),
        "first": np.stack([hidden[str(place)][0] for place in range(len(hidden))]),
        "class": tensors(name, "logits")[""],
    }
    assert len({int(row.argmax()) for row in wanted["class"]}) > 1, "the texts are decided differently"
    for output, rows in wanted.items():
        np.testing.assert_allclose(found[output], rows, atol=1e-4, rtol=1e-4, err_msg=output)
    np.testing.assert_array_equal(found["class"].argmax(axis=1), wanted["class"].argmax(axis=1))


@pytest.mark.parametrize(("name", "checkpoint"), [(name, name) for name in NAMES], indirect=["checkpoint"])
def test_configs_are_read_as_transformers_reads_them(name: str, checkpoint: Checkpoint) -> None:
    path = checkpoint.folder / "config.json"
    assert _as_written(metadata()["configs"][name]) == _as_transformers_reads(path) == checkpoint.config


@pytest.mark.parametrize(("name", "checkpoint"), [(name, name) for name in NAMES], indirect=["checkpoint"])
def test_the_longest_text_is_what_the_positions_hold(name: str, checkpoint: Checkpoint) -> None:
    assert checkpoint.max_positions == 40 == max(map(len, metadata()["texts"])), name


@pytest.mark.parametrize("checkpoint", NAMES, indirect=True)
def test_tensorrt_builds_them(builder: Any, checkpoint: Checkpoint) -> None:
    outputs = [PooledOutput(name="x", pooling="cls", normalize=False, head=classification_head(checkpoint))]
    graph = written_graph(checkpoint, outputs, numbers=Numbers(floats="fp16"))
    assert build_plan(builder, graph, PlanShape(row_length=64, rows=4).inputs()).plan
