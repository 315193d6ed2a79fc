"""Each task of each family answers what transformers' pipeline does, or sentence-transformers' CrossEncoder.

Answers: task_references.safetensors, by make_task_references.py, computed with PyTorch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from pipeline.ensemble import Ensemble, Refused
from pipeline.settings import EnsembleSettings

REFERENCES = Path(__file__).with_name("task_references.safetensors")
FAMILIES = ("bert", "distilbert", "electra", "roberta", "xlm-roberta")
CANDIDATES = ["economy", "foreign policy", "war", "health"]
MAX_LENGTH = 64


@cache
def stored(name: str) -> Any:
    with safe_open(REFERENCES, framework="numpy") as file:
        return json.loads(file.metadata()[name])


def write_model(folder: Path, family: str, head: str) -> Path:
    key = f"{family}-{head}"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(stored("configs")[key]))
    (folder / "tokenizer.json").write_text(stored("tokenizers")[family])
    words = stored("configs")[key]["model_type"] in ("bert", "distilbert", "electra")
    special = ("[CLS]", "[SEP]") if words else ("<s>", "</s>")
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MAX_LENGTH}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(about | dict(zip(("cls_token", "sep_token"), special, strict=True)))
    )
    with safe_open(REFERENCES, framework="numpy") as file:
        names = [name for name in file.keys() if name.startswith(f"{key}/")]  # noqa: SIM118 - it is no mapping
        save_file({name.partition("/")[2]: file.get_tensor(name) for name in names}, folder / "model.safetensors")
    return folder


Answers = Callable[..., list[Any]]


@pytest.fixture
def answers(tmp_path: Path) -> Answers:
    """What an ensemble of one model answers, as JSON has it."""

    def answered(family: str, head: str, task: str, requests: Sequence[Any], **model: Any) -> list[Any]:
        settings = EnsembleSettings.model_validate(
            {
                "name": "tasks",
                "tokenizer": {"long_texts": "truncate"},
                "models": [
                    {"name": "it", "source": str(write_model(tmp_path / "model", family, head)), "task": task, **model}
                ],
            }
        )
        with Ensemble(settings) as ensemble:
            results = [*ensemble.predict(requests)]
        assert not any(isinstance(each, Refused) for each in results)
        return [msgspec.to_builtins(each.outputs["it"]) for each in results]  # type: ignore[union-attr]

    return answered


def assert_alike(found: list[dict[Any, float]], wanted: list[dict[Any, float]]) -> None:
    """The same in the same order, but for scores that round alike, which are within 1e-4."""
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose([*ours.values()], [*theirs.values()], atol=1e-4)
        for one, other in zip(ours, theirs, strict=True):
            assert one == other or theirs[one] == pytest.approx(theirs[other], abs=2e-6)


def by_label(answers: list[Any]) -> list[dict[str, float]]:
    return [{each["label"]: each["score"] for each in answer} for answer in answers]


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize("family", FAMILIES)
def test_text_classification(answers: Answers, family: str, function: str) -> None:
    """The function comes from the file for half of the texts, from the request for the others."""
    texts = stored("texts")
    half = len(texts) // 2
    asked = [{"text": text, "parameters": {"function_to_apply": function}} for text in texts[:half]]
    wanted = stored("answers")[f"{family}-classes/texts/{function}"]
    found = answers(
        family, "classes", "text-classification", asked + texts[half:], top_k=None, function_to_apply=function
    )
    assert len(texts) >= 200
    assert_alike(by_label(found), by_label(wanted))
    assert len({theirs[0]["label"] for theirs in wanted}) > 1, "the texts are decided differently"


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs(answers: Answers, family: str) -> None:
    texts = stored("texts")
    pairs = [{"text": one, "text_pair": other} for one, other in zip(texts, texts[7:] + texts[:7], strict=True)]
    found = answers(family, "classes", "text-classification", pairs, top_k=None)
    wanted = by_label(stored("answers")[f"{family}-classes/pairs"])
    # Of one pair at a time transformers leaves an empty second text out; of several it does not, as here.
    kept = [place for place, pair in enumerate(pairs) if pair["text_pair"]]
    assert_alike([by_label(found)[place] for place in kept], [wanted[place] for place in kept])


@pytest.mark.parametrize("family", FAMILIES)
def test_ranking(answers: Answers, family: str) -> None:
    texts = stored("texts")
    requests = [{"query": texts[at], "passages": texts[at + 1 : at + 6]} for at in range(0, 200, 5)]
    wanted = stored("answers")[f"{family}-ranking"]
    found = answers(family, "ranking", "text-ranking", requests)
    assert sum(map(len, found)) >= 200
    ours, theirs = ([{each["index"]: each["score"] for each in one} for one in some] for some in (found, wanted))
    assert_alike(ours, theirs)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_zero_shot_classification(answers: Answers, family: str, multi_label: bool) -> None:
    requests = [
        {"sequence": text, "candidate_labels": CANDIDATES, "parameters": {"multi_label": multi_label}}
        for text in stored("texts")
        if text.strip()
    ]
    wanted = stored("answers")[f"{family}-inference/{multi_label}"]
    found = answers(family, "inference", "zero-shot-classification", requests)
    assert len(found) == len(wanted) >= 200
    assert [each["sequence"] for each in found] == [each["sequence"] for each in wanted]
    ours, theirs = ([dict(zip(one["labels"], one["scores"], strict=True)) for one in some] for some in (found, wanted))
    assert_alike(ours, theirs)
