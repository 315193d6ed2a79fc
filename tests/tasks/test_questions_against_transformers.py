"""Question answering against transformers' pipeline: each family, each way to ask, contexts of many windows.

Answers: question_references.safetensors, by make_question_references.py, computed with PyTorch.
"""

from __future__ import annotations

import gzip
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

from pipeline.assembly import open_tokenize_stage
from pipeline.ensemble import Ensemble, Refused
from pipeline.mistakes import SettingsError
from pipeline.settings import EnsembleSettings
from tests.tasks.test_against_transformers import FAMILIES

REFERENCES = Path(__file__).with_name("question_references.safetensors")


@cache
def stored(name: str) -> Any:
    with safe_open(REFERENCES, framework="numpy") as file:
        return json.loads(file.metadata()[name])


@cache
def unzipped(name: str) -> Any:
    with safe_open(REFERENCES, framework="numpy") as file:
        return json.loads(gzip.decompress(file.get_tensor(name).tobytes()))


def write_question_model(folder: Path, family: str, **config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(stored("configs")[family] | config))
    (folder / "tokenizer.json").write_text(stored("tokenizers")[family])
    special = {"cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"}
    if family in ("bert", "distilbert", "electra"):
        special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": stored("longest")[family]}
    (folder / "tokenizer_config.json").write_text(json.dumps(about | special))
    with safe_open(REFERENCES, framework="numpy") as file:
        names = [name for name in file.keys() if name.startswith(f"{family}/")]  # noqa: SIM118 - it is no mapping
        weights = {name.removeprefix(f"{family}/"): file.get_tensor(name).astype(np.float32) for name in names}
    save_file(weights, folder / "model.safetensors")
    return folder


Answer = Callable[..., list[Any]]


@pytest.fixture
def answer(tmp_path: Path) -> Answer:
    """What an ensemble of one model answers; it is told no task."""

    def answered(
        family: str, requests: Sequence[Any], tokenizer: dict[str, Any] | None = None, **model: Any
    ) -> list[Any]:
        folder = tmp_path / family
        source = str(folder if folder.exists() else write_question_model(folder, family))
        settings = EnsembleSettings.model_validate(
            {
                "name": "questions",
                "tokenizer": tokenizer or {},
                "models": [{"name": "it", "source": source, **model}],
            }
        )
        with Ensemble(settings) as ensemble:
            return [*ensemble.predict(requests)]

    return answered


def found(result: Any) -> Any:
    assert not isinstance(result, Refused), result
    return msgspec.to_builtins(result.outputs["it"])


def listed(answers: Any) -> list[dict[str, Any]]:
    """transformers fills up with spans of score 0, no answers at all, where there are fewer than `top_k`."""
    every = answers if isinstance(answers, list) else [answers]
    return [each for each in every if each["score"] > 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_question_answering(answer: Answer, family: str) -> None:
    requests = [*unzipped("requests")[family], *unzipped("requests")["hard"]]
    wanted = unzipped("answers")[family]
    results = answer(family, requests)
    assert len(requests) > 80
    assert max(result.chunks for result in results) >= 3
    for request, result, theirs in zip(requests, results, wanted, strict=True):
        ours = found(result)
        if listed(theirs) and len(listed(theirs)) == len(theirs if isinstance(theirs, list) else [theirs]):
            assert isinstance(ours, list) == isinstance(theirs, list)
        ours, theirs = listed(ours), listed(theirs)
        spans = [[(each["start"], each["end"], each["answer"]) for each in some] for some in (ours, theirs)]
        assert spans[0] == spans[1], request
        np.testing.assert_allclose([each["score"] for each in ours], [each["score"] for each in theirs], atol=1e-4)
        for each in ours:
            assert each["answer"] == request["context"][each["start"] : each["end"]]
            assert [*each] == ["score", "start", "end", "answer"]


ABOUT = "the nations at peace " * 8
LONG = "the nations at peace " * 100


def test_what_cannot_be_answered_is_told(answer: Answer) -> None:
    def request(question: str = "who", context: str = ABOUT, **parameters: Any) -> dict[str, Any]:
        return {"question": question, "context": context, "parameters": parameters}

    refused = {
        "Expected `str` of length >= 1 - at `$.question`; a request is {": request(""),
        "Expected `str` of length >= 1 - at `$.context`; a request is {": request(context=""),
        'a request is {"question": "...", "context": "..."}': {"text": "a"},
        "parameters.top_k: null; question-answering gives 1 to 100 answers": request(top_k=None),
        "parameters.top_k: 101; question-answering gives 1 to 100 answers": request(top_k=101),
        "Expected `int` <= 512 - at `$.parameters.max_answer_len`": request(max_answer_len=513),
        "parameters.max_seq_len: 401; allowed here: at most 400": request(max_seq_len=401),
        "the question leaves no room for the context in windows of 384 tokens": request(LONG * 2),
        "parameters.doc_stride: 16; beside this question a window of 20 tokens has room for": request(
            context=LONG, max_seq_len=20, doc_stride=16
        ),
        "tokens together; allowed: 1000 windows of 500000: send": request(
            context=LONG * 10, max_seq_len=100, doc_stride=94
        ),
        "parameters.multi_label: no model here knows it (question-answering); known: top_k, max_answer_len": request(
            multi_label=True
        ),
    }
    answers = answer("bert", [*refused.values()])
    for message, refusal in zip(refused, answers, strict=True):
        assert isinstance(refusal, Refused), message
        assert message in refusal.error
    too_long = [each.error for each in answers if each.reason == "text_too_long"]
    assert [each.split()[:2] for each in too_long] == [["the", "question"], ["the", "context"]]


def test_a_long_question_leaves_the_context_half_of_what_is_left(answer: Answer) -> None:
    """There transformers fails, its stride being longer than a window's part of the context."""
    question = "who was it " * 8
    [whole, cut] = answer(
        "xlm-roberta",
        [
            {"question": question, "context": LONG},
            {"question": question, "context": ABOUT, "parameters": {"max_question_len": 5}},
        ],
    )
    assert found(whole)["answer"]
    assert not whole.truncated
    assert cut.truncated
    assert cut.chunks == 1


def test_what_the_file_says_holds_where_a_request_says_nothing(answer: Answer) -> None:
    request = {"question": "who was it?", "context": LONG}
    options = {"top_k": 3, "max_answer_len": 4, "handle_impossible_answer": True, "align_to_words": False}
    windows = {"max_seq_len": 50, "doc_stride": 10}
    [asked] = answer("bert", [request | {"parameters": options | windows}])
    [said] = answer("bert", [request], {"max_length": 50, "stride": 10}, **options)
    assert found(asked) == found(said)
    assert asked.chunks == said.chunks > 10
    [cut] = answer("bert", [request], {"max_length": 50, "long_texts": "truncate"})
    assert cut.truncated
    assert cut.chunks == 1
    [refused] = answer("bert", [request], {"max_length": 50, "long_texts": "reject"})
    assert isinstance(refused, Refused)
    assert "the context has" in refused.error


def test_tokenizers_that_it_cannot_read_with_are_refused(tmp_path: Path) -> None:
    folder = write_question_model(tmp_path / "model", "bert")
    about = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(about | {"padding_side": "left"}))
    with pytest.raises(SettingsError) as raised:
        Ensemble.of_model(str(folder))
    assert "has padding_side 'left', with which the question is read last" in str(raised.value)
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    own = {"class": "builtins:list"}
    models = [{"name": "it", "source": str(folder)}]
    with pytest.raises(SettingsError, match=r"tokenizer.class: question-answering reads with the model's own"):
        open_tokenize_stage(EnsembleSettings.model_validate({"name": "t", "tokenizer": own, "models": models}))
