"""The demo's head: what it states, and what it makes of plain sentences."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import pipeline.demo
from engines.checkpoint import Checkpoint
from engines.engine import open_engine
from engines.heads import PooledOutput, load_head
from stages.packing import pack_rows
from stages.text_tokenizer import TextTokenizer, TokenizedText

SENTENCES = {
    "On the whole, we have been doing very well.": "POSITIVE",
    "And we are going to persist and we are going to succeed.": "POSITIVE",
    "Let us fulfill and improve the great health and education programs of last year.": "POSITIVE",
    "I congratulate you on the happy and prosperous condition of our country.": "POSITIVE",
    "I love this wonderful day with my friends.": "POSITIVE",
    "And some of them didn't come back.": "NEGATIVE",
    "Such a course will be as cruel to those people as it would be shameful to us.": "NEGATIVE",
    "Some dismiss that goal as misguided idealism.": "NEGATIVE",
    "The war brought misery, hunger and death to millions.": "NEGATIVE",
    "I hate waiting, this is the worst service ever.": "NEGATIVE",
}


@pytest.fixture(scope="module")
def path() -> Path:
    return Path(str(files(pipeline.demo) / "sentiment.safetensors"))


def test_states_its_accuracy_and_source(path: Path) -> None:
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    assert float(metadata["held_out_accuracy_mean"]) >= 0.87
    assert "vaderSentiment==2.5" in metadata["data"]
    assert metadata["data_licence"].startswith("MIT")


def test_plain_sentences(path: Path, minilm: Checkpoint) -> None:
    head = load_head(path)
    outputs = [PooledOutput(name="sentiment", pooling="mean", normalize=True, head=head)]
    engine = open_engine("onnxruntime", minilm, outputs, threads=1, instances=1)
    tokenizer = TextTokenizer(minilm.folder, max_length=256, long_texts="truncate", stride=0)
    windows = [text.windows[0] for text in tokenizer(list(SENTENCES)) if isinstance(text, TokenizedText)]
    (group,) = pack_rows(windows, row_length=64)
    logits = np.zeros((len(windows), 2), np.float32)
    logits[group.windows] = engine.run(group.rows)["sentiment"]
    assert [head.labels[best] for best in logits.argmax(axis=1)] == list(SENTENCES.values())
