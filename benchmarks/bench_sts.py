"""Spearman's rank correlation of a model's similarities with people's, on the STS benchmark.

    python -m benchmarks.bench_sts sts-test.csv                  # of Stsbenchmark.tar.gz (SemEval 2017, task 1)
    python -m benchmarks.bench_sts test.jsonl --model ./my-model # of mteb/stsbenchmark-sts

all-MiniLM-L6-v2 has 0.820 on the test set by its own authors. The set is not shipped. Prints JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench_engine import MINILM
from benchmarks.machine import machine
from pipeline.ensemble import Ensemble, Refused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", default=MINILM, help="a model's folder or package")
    options = parser.parse_args()
    try:
        pairs, scores = read_pairs(options.file)
    except (OSError, ValueError, KeyError, IndexError) as err:
        sys.exit(f"{options.file}: not the STS benchmark: {err or type(err).__name__}")
    with Ensemble.of_model(options.model, "sentence-embedding") as ensemble:
        correlation = spearman(similarities(ensemble, pairs), scores)
    result = {"benchmark": "sts", "machine": machine(), "model": options.model, "pairs": len(pairs)}
    print(json.dumps(result | {"spearman": round(correlation, 4)}, indent=1))


def read_pairs(file: Path) -> tuple[list[tuple[str, str]], NDArray[np.float64]]:
    """Sentences, and how alike people found them, from 0 to 5. Raises ValueError, KeyError, IndexError."""
    lines = file.read_text(encoding="utf-8").splitlines()
    if file.suffix == ".jsonl":
        objects = [json.loads(line) for line in lines if line]
        pairs = [(each["sentence1"], each["sentence2"]) for each in objects]
        return pairs, np.array([each["score"] for each in objects], np.float64)
    # genre, file, year, number, score, sentence, sentence, and sometimes where from; quotes are part of sentences.
    rows = [*csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)]
    return [(row[5], row[6]) for row in rows], np.array([float(row[4]) for row in rows])


def similarities(ensemble: Ensemble, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
    """The cosine of each pair's vectors."""
    vectors = []
    for answer in ensemble.predict([sentence for pair in pairs for sentence in pair]):
        if isinstance(answer, Refused):
            sys.exit(f"{answer.reason}: {answer.error}")
        vectors.append(next(iter(answer.outputs.values())))
    unit = np.array(vectors)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines: NDArray[np.float64] = (unit[::2] * unit[1::2]).sum(axis=1)
    return cosines


def spearman(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Pearson's correlation of the ranks; equal numbers share the mean of theirs."""
    return float(np.corrcoef(_ranks(one), _ranks(other))[0, 1])


def _ranks(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    _, place, count = np.unique(numbers, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    ranks: NDArray[np.float64] = (last - (count - 1) / 2)[place]
    return ranks


if __name__ == "__main__":
    main()
