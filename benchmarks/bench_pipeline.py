"""Each task against transformers.pipeline, and sentence-transformers, with PyTorch: the same machine, the same run.

    ref/bin/pip install torch transformers sentence-transformers -e .
    ref/bin/python -m benchmarks.bench_pipeline --rounds 3

Texts a second, one at a time and all at once (theirs in batches of 32), alternating; of each the median of the rounds.
The model is MiniLM-L6 with a random classifier: speed does not depend on it. A ranking counts its passages, zero-shot
classification its labels. With `--source` it is a model of one's own, of any family, by its folder: its sentence
embeddings alone, theirs sorted by length as sentence-transformers does. PyTorch is no dependency of Penstock: this runs
where it is there. Prints JSON. Question answering is not among them: transformers 5 has no pipeline for it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from benchmarks.bench_engine import MINILM
from benchmarks.demo import DEMO
from benchmarks.machine import machine
from engines.checkpoint import find_checkpoint
from pipeline.demo.texts import read_texts
from pipeline.ensemble import Ensemble
from pipeline.settings import EnsembleSettings

BATCH = 32
LABELS = {
    "text-classification": ["NO", "MAYBE", "YES"],
    "token-classification": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"],
    "text-ranking": ["RELEVANT"],
    "zero-shot-classification": ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"],
}
ARCHITECTURES = {"token-classification": "TokenClassification", "fill-mask": "MaskedLM"}
CANDIDATES = ["economy", "foreign policy", "war", "health"]
PASSAGES = 8

OPTIONS: dict[str, dict[str, Any]] = {
    "text-classification": {"top_k": None},
    "token-classification": {"aggregation_strategy": "simple"},
}
MASK = "[MASK]"

# Answers some requests, one at a time or all at once.
Answer = Callable[[Sequence[Any]], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", help="by the names in the results; default: all")
    parser.add_argument("--source", action="append", default=[], metavar="FOLDER")
    options = parser.parse_args()
    texts = list(islice(read_texts(DEMO / "texts.txt.gz"), options.texts))
    pairs = [{"text": one, "text_pair": other} for one, other in zip(texts, texts[1:] + texts[:1], strict=True)]
    sequences = [{"sequence": text, "candidate_labels": CANDIDATES} for text in texts[:: len(CANDIDATES)]]
    queries = [
        {"query": texts[place], "passages": texts[place : place + PASSAGES]}
        for place in range(0, len(texts) - PASSAGES, PASSAGES)
    ]
    masked = [{"text": with_mask(text, number)} for number, text in enumerate(texts)]
    results: list[dict[str, Any]] = []
    for source in options.source:
        requests = [{"text": text} for text in texts]
        results.append({"source": source, **compared(source, "sentence-embedding", requests, 1, options.rounds)})
    with tempfile.TemporaryDirectory() as folder:
        for name, task, requests, each in (
            ("text-classification", "text-classification", [{"text": text} for text in texts], 1),
            ("text-classification of pairs", "text-classification", pairs, 1),
            ("sentence-embedding", "sentence-embedding", [{"text": text} for text in texts], 1),
            ("feature-extraction", "feature-extraction", [{"text": text} for text in texts], 1),
            ("token-classification", "token-classification", [{"text": text} for text in texts], 1),
            ("fill-mask", "fill-mask", masked, 1),
            ("text-ranking", "text-ranking", queries, PASSAGES),
            ("zero-shot-classification", "zero-shot-classification", sequences, len(CANDIDATES)),
        ):
            if options.source or (options.tasks and name not in options.tasks):
                continue
            kind = ARCHITECTURES.get(task, "SequenceClassification")
            source = str(write_model(Path(folder) / name.replace(" ", "-"), LABELS.get(task), f"BertFor{kind}"))
            results.append({"task": name, **compared(source, task, requests, each, options.rounds)})
    import torch  # type: ignore[import-not-found]
    import transformers

    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps({"benchmark": "pipeline", "machine": machine(), "theirs": versions, "results": results}, indent=1))


def with_mask(text: str, number: int) -> str:
    """In place of one of its first words."""
    words = text.split(" ")
    words[number % min(len(words), 20)] = MASK
    return " ".join(words)


def write_model(folder: Path, labels: list[str] | None, architecture: str) -> Path:
    """MiniLM's folder; with labels a classifier's, or a masked language model's."""
    source = find_checkpoint(MINILM, relative_to=None)
    fills = architecture == "BertForMaskedLM"
    own = "*.json" if labels or fills else ""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("model.safetensors", own))
    weights = load_file(source / "model.safetensors")
    if labels is not None or fills:
        draw = np.random.default_rng(5)
        weights = {f"bert.{name.removeprefix('bert.')}": tensor for name, tensor in weights.items()}
        heads = [("bert.pooler.dense", 384), ("classifier", len(labels or []))]
        if fills:
            heads = [("cls.predictions.transform.dense", 384)]
            weights["cls.predictions.transform.LayerNorm.weight"] = np.ones(384, np.float32)
            weights["cls.predictions.transform.LayerNorm.bias"] = np.zeros(384, np.float32)
            weights["cls.predictions.bias"] = np.zeros(
                len(weights["bert.embeddings.word_embeddings.weight"]), np.float32
            )
        for name, rows in heads:
            weights[f"{name}.weight"] = draw.normal(0, 0.05, (rows, 384)).astype(np.float32)
            weights[f"{name}.bias"] = np.zeros(rows, np.float32)
        named = {
            "id2label": dict(enumerate(labels or [])),
            "label2id": {label: place for place, label in enumerate(labels or [])},
        }
        config = json.loads((source / "config.json").read_text())
        config |= {"architectures": [architecture]} | (named if labels else {})
        (folder / "config.json").write_text(json.dumps(config))
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            shutil.copy(source / name, folder / name)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def compared(source: str, task: str, requests: Sequence[Any], each: int, rounds: int) -> dict[str, Any]:
    """Texts a second, by whose and how."""
    alone, together = theirs_of(task, source)
    settings = EnsembleSettings.model_validate(
        {
            "name": "bench",
            "tokenizer": {"max_length": 256},
            "models": [{"name": "it", "source": source, "task": task} | OPTIONS.get(task, {})],
        }
    )
    taken: dict[str, list[float]] = {}
    with Ensemble(settings) as ensemble:

        def ours(some: Sequence[Any]) -> object:
            return [*ensemble.predict(some)]

        ways: dict[str, tuple[Answer, bool]] = {
            "ours_alone": (ours, True),
            "theirs_alone": (alone, True),
            "ours_together": (ours, False),
            "theirs_together": (together, False),
        }
        for turn in range(rounds + 1):
            for name, (answer, one_by_one) in ways.items():
                started_s = time.perf_counter()
                for some in [[request] for request in requests] if one_by_one else [requests]:
                    answer(some)
                if turn:  # the first is warming up
                    taken.setdefault(name, []).append(each * len(requests) / (time.perf_counter() - started_s))
    rates = {name: round(statistics.median(found)) for name, found in taken.items()}
    return rates | {
        "one by one": round(rates["ours_alone"] / rates["theirs_alone"], 2),
        "all at once against one by one": round(rates["ours_together"] / rates["theirs_alone"], 2),
        "all at once": round(rates["ours_together"] / rates["theirs_together"], 2),
    }


def theirs_of(task: str, source: str) -> tuple[Answer, Answer]:
    """One request, and many, as their documentation has it."""
    from sentence_transformers import CrossEncoder, SentenceTransformer  # type: ignore[import-not-found]
    from transformers import pipeline

    if task == "sentence-embedding":
        model = SentenceTransformer(source, device="cpu")
        encode: Answer = lambda some: model.encode([each["text"] for each in some], batch_size=BATCH)  # noqa: E731
        return encode, encode
    if task == "text-ranking":
        encoder = CrossEncoder(source, device="cpu", max_length=256)
        rank: Answer = lambda some: [encoder.rank(each["query"], each["passages"]) for each in some]  # noqa: E731
        pairs: Answer = lambda some: encoder.predict(  # noqa: E731
            [(each["query"], passage) for each in some for passage in each["passages"]], batch_size=BATCH
        )
        return rank, pairs
    pipe: Any = pipeline(task, model=source, tokenizer=source, device="cpu")
    if task == "zero-shot-classification":
        zero_shot: Answer = lambda some: pipe(  # noqa: E731
            [each["sequence"] for each in some], CANDIDATES, batch_size=BATCH
        )
        return zero_shot, zero_shot
    if task == "token-classification":
        strategy: dict[str, Any] = {"aggregation_strategy": "simple"}
        return (
            lambda some: [pipe(each["text"], **strategy) for each in some],
            lambda some: pipe([each["text"] for each in some], batch_size=BATCH, **strategy),
        )
    if task == "fill-mask":
        cut: dict[str, Any] = {"tokenizer_kwargs": {"truncation": True, "max_length": 256}}
        return (
            lambda some: [pipe(each["text"], **cut) for each in some],
            lambda some: pipe([each["text"] for each in some], batch_size=BATCH, **cut),
        )
    if task == "feature-extraction":
        return (
            lambda some: [pipe(each["text"]) for each in some],
            lambda some: pipe([each["text"] for each in some], batch_size=BATCH),
        )
    asked = {"top_k": None, "truncation": True, "max_length": 256}
    return (
        lambda some: [pipe(each, **asked) for each in some],
        lambda some: pipe([*some], batch_size=BATCH, **asked),
    )


if __name__ == "__main__":
    main()
