"""Small models of each family, against PyTorch: make_family_references.py, make_newer_family_references.py."""

from __future__ import annotations

import json
from dataclasses import replace
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
from engines.precision import EightBits, Numbers
from engines.relative_positions import FARTHEST, by_distance
from stages.packing import pack_rows
from tests.engines.test_precision import OUTPUTS, cosines, quantized, some_rows

pytestmark = pytest.mark.filterwarnings("ignore:.*TensorRT-RTX.*:DeprecationWarning")

REFERENCES = Path(__file__).with_name("family_references.safetensors")
NEWER = Path(__file__).with_name("newer_family_references.safetensors")


@cache
def metadata() -> dict[str, Any]:
    configs: dict[str, Any] = {}
    for path in (REFERENCES, NEWER):
        with safe_open(path, framework="numpy") as file:
            configs |= json.loads(file.metadata()["configs"])
            texts = json.loads(file.metadata()["texts"])
    return {"configs": configs, "texts": texts}  # which both scripts draw alike


NAMES = sorted(metadata()["configs"])


def tensors(name: str, kind: str) -> dict[str, NDArray[np.float32]]:
    newer = metadata()["configs"][name]["model_type"] in ("modernbert", "mpnet")
    with safe_open(NEWER if newer else REFERENCES, framework="numpy") as file:
        keys = [key for key in file.keys() if key.startswith(f"{name}/{kind}")]  # noqa: SIM118 - it is no mapping
        return {key.removeprefix(f"{name}/{kind}").lstrip("/"): file.get_tensor(key) for key in keys}


@pytest.fixture
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoint:
    return written_checkpoint(tmp_path, metadata()["configs"][request.param], tensors(request.param, "weights"))


def written_checkpoint(folder: Path, config: dict[str, Any], weights: dict[str, NDArray[np.float32]]) -> Checkpoint:
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return load_checkpoint(folder)


def windows() -> list[NDArray[np.int32]]:
    return [np.array(ids, np.int32) for ids in metadata()["texts"]]


def answers(kind: EngineKind, checkpoint: Checkpoint) -> dict[str, NDArray[np.float32]]:
    """Of all texts, packed together."""
    outputs = [
        PooledOutput(name="mean", pooling="mean", normalize=False),
        PooledOutput(name="first", pooling="cls", normalize=False),
        PooledOutput(name="largest", pooling="max", normalize=False),
        PooledOutput(
            name="class",
            pooling=checkpoint.classifier_pooling,
            normalize=False,
            head=classification_head(checkpoint),
        ),
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
        "largest": np.stack([hidden[str(place)].max(axis=0) for place in range(len(hidden))]),
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


def test_distances_have_the_buckets_of_transformers() -> None:
    with safe_open(NEWER, framework="numpy") as file:
        wanted = file.get_tensor("buckets")
    numbered = np.arange(32, dtype=np.float32)[:, np.newaxis]
    distances = np.arange(-300, 301)
    found = by_distance(numbered)[np.clip(distances, -FARTHEST, FARTHEST) + FARTHEST, 0]
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("kind", ["fp8", "int8"])
@pytest.mark.parametrize("checkpoint", ["modernbert"], indirect=True)
def test_8_bits_of_a_gated_middle(builder: Any, checkpoint: Checkpoint, kind: EightBits) -> None:
    """Small and random as it is, 8 bits cost it more than a real model."""
    rows = some_rows(checkpoint.config.vocab_size)
    numbers = Numbers(floats="fp16", quantization=quantized(checkpoint, kind, rows))
    assert cosines(checkpoint, numbers, rows).mean() > 0.99
    graph = written_graph(checkpoint, OUTPUTS, numbers=numbers)
    assert build_plan(builder, graph, PlanShape(row_length=32, rows=4).inputs()).plan


@pytest.mark.parametrize("checkpoint", ["modernbert"], indirect=True)
def test_a_graph_is_as_large_as_its_model(checkpoint: Checkpoint) -> None:
    """Whatever a row's length: 8,192 positions take a table of angles, and none of pairs of tokens."""
    longer = replace(checkpoint, max_positions=8192)
    sizes = [len(written_graph(each, OUTPUTS)) for each in (checkpoint, longer)]
    assert sizes[1] - sizes[0] < 8192 * 6 * 4 * 2 + 1000
