"""`penstock describe`: an AsyncAPI document whose schemas say what requests and results really are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from ruamel.yaml import YAML

from pipeline.describe import asyncapi
from pipeline.ensemble import Ensemble, Refused
from pipeline.settings import EnsembleSettings
from tests.cli.conftest import Penstock, WriteEnsemble
from tests.json_schema import check
from tests.tasks.test_against_transformers import write_model
from tests.tasks.test_fill_mask_against_transformers import write_masked_model
from tests.tasks.test_questions_against_transformers import write_question_model
from tests.tasks.test_tokens_against_transformers import write_model as write_token_model


def test_yaml_and_json_are_one_document(penstock: Penstock, ensemble: WriteEnsemble) -> None:
    kafka = {"bootstrap.servers": "one:9092, two:9093", "security.protocol": "SSL"}
    lanes = {"lanes": {"now": 4, "a.b": 1}}
    file = ensemble(kafka=kafka, name="reviews", dead_letters={"header_style": "spring"}, batching=lanes)
    found = penstock("describe", file, "--json")
    assert found.code == 0
    document = json.loads(found.out)
    assert YAML(typ="safe").load(penstock("describe", file).out) == document
    assert document["asyncapi"] == "3.0.0"
    assert document["servers"] == {
        "one-9092": {"host": "one:9092", "protocol": "kafka-secure"},
        "two-9093": {"host": "two:9093", "protocol": "kafka-secure"},
    }
    addresses = {name: channel["address"] for name, channel in document["channels"].items()}
    assert addresses == {
        "requests": "reviews.requests",
        "requests-a-b": "reviews.requests.a.b",
        "results": "reviews.results",
        "deadLetters": "reviews.dead-letters",
    }
    dead_letter = document["components"]["messages"]["deadLetter"]
    assert "kafka_dlt-exception-fqcn" in dead_letter["headers"]["properties"]


SPOKEN = {"stream_id": "s", "utterance_id": "0", "revision": 1, "is_final": True, "text": "a"}
ANNOTATED = {**SPOKEN, "start_ms": None, "end_ms": 5, "outputs": {"m": [0.5]}}
UTTERANCE = {name: value for name, value in ANNOTATED.items() if name != "stream_id"}
TRANSCRIPT = {"type": "transcript", "stream_id": "s", "ended_by": "event", "part": 1, "parts": 1}


def test_speech_is_told_where_the_file_speaks_of_it(small_model: Path) -> None:
    models = [{"name": "m", "source": str(small_model), "task": "sentence-embedding"}]
    data: dict[str, Any] = {"name": "calls", "models": models}
    assert "speech" not in asyncapi(EnsembleSettings.model_validate(data))["channels"]
    document = asyncapi(EnsembleSettings.model_validate(data | {"speech": {"max_text_bytes": 5}}))
    addresses = {name: channel["address"] for name, channel in document["channels"].items()}
    assert (addresses["speech"], addresses["transcripts"]) == ("calls.speech", "calls.transcripts")
    speech, transcript = (document["components"]["messages"][name]["payload"] for name in ("speech", "transcript"))
    for event in (SPOKEN, {"end_of_stream": True}):
        assert [*check(event, speech)] == []
    for wrong in ({"stream_id": "s"}, SPOKEN | {"text": "longer"}):
        assert [*check(wrong, speech)] != []
    for record in ({"type": "utterance", **ANNOTATED}, {**TRANSCRIPT, "utterances": [UTTERANCE]}):
        assert [*check(record, transcript)] == []
    assert [*check({**TRANSCRIPT, "utterances": [{**UTTERANCE, "outputs": {"n": []}}]}, transcript)] != []
    vosk = asyncapi(EnsembleSettings.model_validate(data | {"speech": {"feed": "vosk"}}))
    assert "A message of vosk, as it came." in str(vosk["components"]["messages"]["speech"])


def test_requests_of_text_are_told_as_such(penstock: Penstock, ensemble: WriteEnsemble) -> None:
    document = json.loads(
        penstock("describe", ensemble(requests={"format": "text", "max_text_bytes": 9}), "--json").out
    )
    message = document["components"]["messages"]["request"]
    payload = {"type": "string", "description": "At most 9 bytes of UTF-8.", "maxLength": 9}
    assert "ce_expirytime" in message.pop("headers")["properties"]
    assert message == {"contentType": "text/plain", "payload": payload}


GOOD_AND_BAD: dict[str, tuple[str, list[dict[str, Any]], list[dict[str, Any]]]] = {
    "text-classification": (
        "classes",
        [
            {"text": "a"},
            {"text": "", "text_pair": "b", "id": "1"},
            {"text": "a", "parameters": {"top_k": None, "threshold": 0.5, "function_to_apply": "none"}},
        ],
        [
            {},
            {"text": 1},
            {"text": "a", "more": 1},
            {"text": "a", "parameters": {"top_k": 0}},
            {"text": "a", "parameters": {"truncate_dim": 3}},
            {"text": "a", "parameters": {"function_to_apply": "relu"}},
            {"query": "a", "passages": ["b"]},
        ],
    ),
    "sentence-embedding": (
        "classes",
        [{"text": "a", "parameters": {"truncate_dim": 3, "precision": "binary", "normalize": True}}],
        [
            {"text": "a", "parameters": {"truncate_dim": 25}},
            {"text": "a", "parameters": {"precision": "int8"}},
            {"text": "a", "parameters": {"top_k": 1}},
            {"text": "a", "text_pair": "b" * 257},
            {"text": "a", "parameters": {"precision": "int4"}},
        ],
    ),
    "feature-extraction": ("classes", [{"text": "a b"}], [{"text": "a", "parameters": {"top_k": 1}}]),
    "token-classification": (
        "tokens",
        [{"text": "a b"}, {"text": "a b", "parameters": {"aggregation_strategy": "simple", "ignore_labels": []}}],
        [{"text": "a", "parameters": {"aggregation_strategy": "mean"}}],
    ),
    "fill-mask": (
        "masks",
        [
            {"text": "the [MASK] of"},
            {"text": "[MASK] [MASK]", "parameters": {"top_k": 2, "targets": ["peace", "war"]}},
            {"text": "[MASK]", "parameters": {"targets": "peace"}},
        ],
        [
            {"text": "[MASK]", "text_pair": "a"},
            {"text": "[MASK]", "parameters": {"top_k": None}},
            {"text": "[MASK]", "parameters": {"targets": []}},
            {"text": "[MASK]", "parameters": {"targets": [1]}},
        ],
    ),
    "text-ranking": (
        "ranking",
        [{"query": "a", "passages": ["b", "c"], "parameters": {"top_k": 1}}],
        [{"query": "a", "passages": []}, {"query": "a", "passages": "b"}, {"text": "a"}],
    ),
    "zero-shot-classification": (
        "inference",
        [{"sequence": "a", "candidate_labels": ["b"], "parameters": {"multi_label": True}}],
        [
            {"sequence": "a"},
            {"sequence": "a", "candidate_labels": ["b"], "parameters": {"multi_label": "yes"}},
            {"sequence": "a", "candidate_labels": ["b" * 257]},
            {"sequence": "a", "candidate_labels": ["b"], "parameters": {"hypothesis_template": "no place"}},
        ],
    ),
    "question-answering": (
        "questions",
        [
            {"question": "a", "context": "b c"},
            {"question": "a", "context": "b c", "parameters": {"top_k": 2, "align_to_words": False, "doc_stride": 0}},
        ],
        [
            {"question": "", "context": "b"},
            {"question": "a"},
            {"question": "a", "context": "b", "parameters": {"top_k": None}},
            {"question": "a", "context": "b", "parameters": {"max_answer_len": 513}},
            {"question": "a", "context": "b", "parameters": {"max_seq_len": 513}},
            {"question": "a", "context": "b" * 257},
        ],
    ),
}


@pytest.mark.parametrize("task", GOOD_AND_BAD)
def test_schemas_say_what_is_taken_and_what_is_answered(tmp_path: Path, task: str) -> None:
    head, good, bad = GOOD_AND_BAD[task]
    folder = tmp_path / "model"
    writers = {"tokens": write_token_model, "masks": write_masked_model, "questions": write_question_model}
    source = str(writers[head](folder, "bert") if head in writers else write_model(folder, "bert", head))
    settings = EnsembleSettings.model_validate(
        {
            "name": "t",
            "models": [{"name": "it", "source": source, "task": task}],
            "requests": {"max_text_bytes": 256},
        }
    )
    messages = asyncapi(settings)["components"]["messages"]
    request, result = (messages[name]["payload"] for name in ("request", "result"))
    with Ensemble(settings) as ensemble:
        for body, answer in zip(good, ensemble.predict(good), strict=True):
            assert check(body, request) == []
            assert not isinstance(answer, Refused)
            assert check(msgspec.to_builtins(answer), result) == []
        for body, answer in zip(bad, ensemble.predict(bad), strict=True):
            assert check(body, request) != [], body
            assert isinstance(answer, Refused), body
