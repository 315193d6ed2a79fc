"""What requests ask for: by name, validated against the tasks, each told in words that a producer can act on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.ensemble import Ensemble, Refused
from pipeline.mistakes import SettingsError
from pipeline.settings import EnsembleSettings
from stages.embeddings import SentenceEmbedding
from tests.tasks.test_against_transformers import write_model

Ask = Callable[..., Any]


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """One request's answer of an ensemble with these models, given as (task, head, options)."""

    def asked(request: dict[str, Any], *models: tuple[str, str, dict[str, Any]]) -> Any:
        written = []
        for number, (task, head, options) in enumerate(models):
            folder = tmp_path / f"{head}-{number}"
            source = str(folder if folder.exists() else write_model(folder, "bert", head))
            written.append({"name": f"m{number}", "source": source, "task": task, **options})
        with Ensemble(EnsembleSettings.model_validate({"name": "t", "models": written})) as ensemble:
            [answer] = ensemble.predict([request])
        return answer

    return asked


CLASSES = ("text-classification", "classes", {})
FEATURES = ("feature-extraction", "classes", {})
VECTOR = ("sentence-embedding", "classes", {})
RANKING = ("text-ranking", "ranking", {})
INFERENCE = ("zero-shot-classification", "inference", {})


def test_top_k_and_threshold(ask: Ask) -> None:
    def labels(**parameters: Any) -> list[Any]:
        found: list[Any] = ask({"text": "a nation", "parameters": parameters}, CLASSES).outputs["m0"]
        return found

    everything = labels(top_k=None)
    assert len(labels()) == 1
    assert len(everything) == 3
    assert labels(top_k=2) == everything[:2]
    middle = everything[1].score
    assert labels(top_k=None, threshold=middle) == everything[:2]
    assert labels(threshold=1.0) == []


def test_embeddings_are_cut_and_quantised(ask: Ask) -> None:
    def vector(**parameters: Any) -> np.ndarray:
        return np.array(ask({"text": "a nation", "parameters": parameters}, VECTOR).outputs["m0"])

    whole = vector()
    np.testing.assert_array_equal(vector(truncate_dim=8), whole[:8])
    short = vector(truncate_dim=8, normalize=True)
    np.testing.assert_allclose(short, whole[:8] / np.linalg.norm(whole[:8]), atol=1e-7)
    # As sentence-transformers' quantize_embeddings: signs, eight to a number, and 128 less.
    np.testing.assert_array_equal(vector(precision="ubinary"), np.packbits(whole > 0))
    np.testing.assert_array_equal(vector(precision="binary"), np.packbits(whole > 0).astype(int) - 128)
    np.testing.assert_array_equal(vector(precision="float16"), whole.astype(np.float16).astype(float).round(8))


def test_whole_numbers_are_sentence_transformers() -> None:
    rows = np.random.default_rng(3).normal(size=(50, 6))
    ranges = np.array([rows.min(axis=0), rows.max(axis=0)], np.float32).astype(np.float64)
    steps = (ranges[1] - ranges[0]) / 255
    inside = rows.clip(ranges[0], ranges[1])
    for precision, wanted in {
        "uint8": ((inside - ranges[0]) / steps).astype(np.uint8),
        "int8": ((inside - ranges[0]) / steps - 128).astype(np.int8),
    }.items():
        task = SentenceEmbedding(width=6, normalize=False, precision=precision, ranges=ranges.astype(np.float32))  # type: ignore[arg-type]
        np.testing.assert_array_equal(task(rows), wanted)
    # Outside of the ranges NumPy begins anew at the other end.
    assert task(rows + 99) == [[127] * 6] * 50


def test_a_models_options_are_the_defaults(ask: Ask, tmp_path: Path) -> None:
    np.save(tmp_path / "ranges.npy", np.array([[-9] * 24, [9] * 24], np.float32))
    options = {"truncate_dim": 4, "precision": "int8", "ranges": str(tmp_path / "ranges.npy")}
    [*found] = ask({"text": "a nation"}, ("sentence-embedding", "classes", options)).outputs["m0"]
    assert len(found) == 4
    assert all(isinstance(number, int) for number in found)


def test_each_model_takes_what_its_task_knows(ask: Ask) -> None:
    answer = ask({"text": "a nation", "parameters": {"top_k": 3, "truncate_dim": 5}}, CLASSES, VECTOR)
    assert len(answer.outputs["m0"]) == 3
    assert len(answer.outputs["m1"]) == 5


def test_a_ranking_of_the_best(ask: Ask) -> None:
    request = {"query": "a nation", "passages": ["peace", "war", "work"], "parameters": {"top_k": 2}}
    assert len(ask(request, RANKING).outputs["m0"]) == 2
    raw = ask(request | {"parameters": {"function_to_apply": "none"}}, RANKING).outputs["m0"]
    assert [each.score for each in raw] == sorted((each.score for each in raw), reverse=True)


def test_a_hypothesis_of_ones_own(ask: Ask) -> None:
    request = {"sequence": "a nation", "candidate_labels": ["war", "peace"]}
    usual = ask(request, INFERENCE).outputs["m0"]
    said = ask(request | {"parameters": {"hypothesis_template": "This example is {}."}}, INFERENCE).outputs["m0"]
    other = ask(request | {"parameters": {"hypothesis_template": "{} it is"}}, INFERENCE).outputs["m0"]
    assert usual == said != other


@pytest.mark.parametrize(
    ("request_", "models", "message"),
    [
        (
            {"text": "a", "parameters": {"truncate_dim": 5}},
            [CLASSES],
            "parameters.truncate_dim: no model here knows it (text-classification); known: top_k, function_to_apply, "
            "threshold",
        ),
        ({"text": "a", "parameters": {"top_k": 0}}, [CLASSES], "Expected `int` >= 1 - at `$.parameters.top_k`"),
        # What a pack can't carry would stop each worker that reads it.
        ({"text": "a", "parameters": {"top_k": 2**64}}, [CLASSES], "Expected `int` <= 2147483647"),
        ({"text": "a", "parameters": {"truncate_dim": 2**40}}, [VECTOR], "Expected `int` <= 2147483647"),
        ({"text": "a", "parameters": {"topk": 1}}, [CLASSES], "unknown field `topk` - at `$.parameters`"),
        (
            {"text": "a", "parameters": {"normalize": False}},
            [("sentence-embedding", "classes", {"normalize": True})],
            "parameters.normalize: false; the model's own vectors have length 1: leave it out",
        ),
        ({"query": "a", "passages": [""] * 1001}, [RANKING], "Expected `array` of length <= 1000 - at `$.passages`"),
        (
            {"sequence": "a", "candidate_labels": ["b"] * 1001},
            [INFERENCE],
            "Expected `array` of length <= 1000 - at `$.candidate_labels`",
        ),
        (
            {"sequence": "a", "candidate_labels": ["b"], "parameters": {"hypothesis_template": "{}" * 501}},
            [INFERENCE],
            "Expected `str` of length <= 1000 - at `$.parameters.hypothesis_template`",
        ),
        (
            {"text": "a", "parameters": {"precision": "int4"}},
            [VECTOR],
            "precision`; allowed: float32, float16, int8, uint8, binary, ubinary",
        ),
        (
            {"text": "a", "parameters": {"topk": 1}},
            [CLASSES, VECTOR],
            "`$.parameters`; known: truncate_dim, normalize, precision, top_k, function_to_apply, thr",
        ),
        ({"text": "a", "parameters": 5}, [FEATURES], "got `int` - at `$.parameters`; known: none"),
        ({"text": "a", "txt": "b"}, [CLASSES], 'unknown field `txt`; a request is {"text": "..."}'),
        (
            {"text": "a", "parameters": {"precision": "int8"}},
            [VECTOR],
            "parameters.precision: int8 and uint8 need the ensemble file's ranges",
        ),
        (
            {"text": "a", "parameters": {"truncate_dim": 25}},
            [VECTOR],
            "parameters.truncate_dim: 25; the model's vectors have 24 numbers",
        ),
        (
            {"text": "a", "parameters": {"ignore_labels": []}},
            [FEATURES],
            "parameters.ignore_labels: no model here knows it (feature-extraction); known: none",
        ),
        (
            {"text": "a", "parameters": {"aggregation_strategy": "last"}},
            [FEATURES],
            "value 'last' - at `$.parameters.aggregation_strategy`; allowed: none, simple, f",
        ),
        ({"text": "a"}, [RANKING], 'a request is {"query": "...", "passages": ["..."]}'),
        ({"query": "a", "passages": []}, [RANKING], "Expected `array` of length >= 1 - at `$.passages`"),
        ({"text": "a"}, [INFERENCE], 'a request is {"sequence": "...", "candidate_labels": ["..."]}'),
        (
            {"sequence": "a", "candidate_labels": ["b"], "parameters": {"hypothesis_template": "so"}},
            [INFERENCE],
            "parameters.hypothesis_template: has no {}, where the label goes",
        ),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_a_wrong_request_is_told_what_is_wrong(ask: Ask, request_: Any, models: Any, message: str) -> None:
    answer = ask(request_, *models)
    assert isinstance(answer, Refused)
    assert answer.reason == "bad_request"
    assert message in answer.error


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([CLASSES, RANKING], "models[1].task: text-classification, text-ranking read different requests"),
        (
            [CLASSES, ("token-classification", "classes", {})],
            ": no classifier of tokens in the weights (architectures: BertForSequence",
        ),
        ([("text-ranking", "classes", {})], "models[0].task: text-ranking wants one label, and "),
        ([("zero-shot-classification", "classes", {})], "no label of NO, MAYBE, YES begins with 'entail': choose"),
        (
            [("question-answering", "classes", {})],
            ": no head for answers in the weights (architectures: BertForSequence",
        ),
        ([("question-answering", "classes", {"top_k": None})], "models[0].top_k: null; question-answering gives 1 to"),
        ([("text-ranking", "ranking", {"pooling": "cls"})], "models[0].pooling: has no effect on the checkpoint's own"),
        ([("text-classification", "classes", {"threshold": float("nan")})], "models[0].threshold: "),
        ([("sentence-embedding", "classes", {"truncate_dim": 25})], "models[0].truncate_dim: 25; the model's vectors"),
        ([("sentence-embedding", "classes", {"ranges": "/none.npy"})], "models[0].ranges: /none.npy can't be read"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(ask: Ask, models: Any, message: str) -> None:
    with pytest.raises((SettingsError, ValidationError)) as raised:
        ask({"text": "a"}, *models)
    if isinstance(raised.value, SettingsError):
        [line] = raised.value.lines
        assert message in line


@pytest.mark.parametrize("model", [RANKING, INFERENCE])
def test_plain_texts_are_no_requests_of_pairs(tmp_path: Path, model: tuple[str, str, dict[str, Any]]) -> None:
    task, head, _ = model
    source = str(write_model(tmp_path / "model", "bert", head))
    settings = {"name": "t", "requests": {"format": "text"}, "models": [{"name": "m", "source": source, "task": task}]}
    with pytest.raises(SettingsError, match=rf"requests\.format: 'text' is no request of {task}; allowed: json"):
        Ensemble(EnsembleSettings.model_validate(settings))


def test_a_query_counts_once(ask: Ask) -> None:
    """Of the 1 MiB that a request may have."""
    answer = ask({"query": "a" * 20_000, "passages": ["b"] * 60}, RANKING)
    assert len(answer.outputs["m0"]) == 60


def test_vectors_of_each_token_of_a_book_are_refused_before_they_are_made(ask: Ask) -> None:
    """1.4 million numbers: 58,333 tokens of 24."""
    answer = ask({"text": "a " * 60_000}, ("feature-extraction", "classes", {}))
    assert answer.reason == "result_too_large"
    assert answer.error.endswith(" tokens, of which feature-extraction answers a vector each; allowed here: 58333")


def test_float16_has_no_infinity() -> None:
    task = SentenceEmbedding(width=2, normalize=False, precision="float16")
    assert task(np.array([[1e5, -1e9]])) == [[65504.0, -65504.0]]
