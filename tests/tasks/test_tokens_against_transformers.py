"""What is answered of each token, against transformers' pipelines: each family, every way to put tokens together.

Answers: token_references.safetensors, by make_token_references.py, computed with PyTorch.
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

from pipeline.ensemble import Ensemble, Refused
from pipeline.settings import EnsembleSettings
from tests.tasks.test_against_transformers import FAMILIES, MAX_LENGTH

REFERENCES = Path(__file__).with_name("token_references.safetensors")


@cache
def stored(name: str) -> Any:
    with safe_open(REFERENCES, framework="numpy") as file:
        return json.loads(file.metadata()[name])


def tensors(prefix: str) -> dict[str, np.ndarray]:
    with safe_open(REFERENCES, framework="numpy") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - it is no mapping
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}


def write_model(folder: Path, family: str) -> Path:
    folder.mkdir()
    config = stored("configs")[family]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(stored("tokenizers")[family])
    special = {"cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"}
    if config["model_type"] in ("bert", "distilbert", "electra"):
        special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MAX_LENGTH}
    (folder / "tokenizer_config.json").write_text(json.dumps(about | special))
    save_file(tensors(f"{family}/"), folder / "model.safetensors")
    return folder


@cache
def stored_answers() -> Any:
    return json.loads(gzip.decompress(tensors("answers")[""].tobytes()))


Answers = Callable[..., list[Any]]


@pytest.fixture
def answers(tmp_path: Path) -> Answers:
    """What an ensemble of one model answers, as JSON has it."""

    def answered(
        family: str, task: str, requests: Sequence[Any], tokenizer: dict[str, Any] | None = None, **model: Any
    ) -> list[Any]:
        folder = tmp_path / family
        source = str(folder if folder.exists() else write_model(folder, family))
        settings = EnsembleSettings.model_validate(
            {
                "name": "tokens",
                "tokenizer": tokenizer or {"long_texts": "truncate"},
                "models": [{"name": "it", "source": source, "task": task, **model}],
            }
        )
        with Ensemble(settings) as ensemble:
            results = [*ensemble.predict(requests)]
        assert not any(isinstance(each, Refused) for each in results)
        return [msgspec.to_builtins(each.outputs["it"]) for each in results]  # type: ignore[union-attr]

    return answered


@pytest.mark.parametrize("family", FAMILIES)
def test_features(answers: Answers, family: str) -> None:
    texts = stored("features")
    wanted = tensors(f"features/{family}")
    found = answers(family, "feature-extraction", texts)
    assert len(texts) == 40
    assert [len(each) for each in found] == wanted["/lengths"].tolist()
    assert {len(vector) for each in found for vector in each} == {24}
    vectors = np.array([vector[:4] for each in found for vector in each])
    np.testing.assert_allclose(vectors, wanted[""], atol=1e-4)


def test_a_long_texts_features_are_those_of_its_tokens_once(answers: Answers) -> None:
    [text] = [text for text in stored("texts") if text.startswith("word ")]
    [cut] = answers("bert", "feature-extraction", [text])
    [whole] = answers("bert", "feature-extraction", [text], {"long_texts": "stride", "stride": 20})
    assert len(cut) == MAX_LENGTH
    assert len(whole) > 10 * MAX_LENGTH
    # Over half of the first window no other has more of its tokens' context.
    assert whole[: MAX_LENGTH - 12] == cut[: MAX_LENGTH - 12]


def test_features_of_a_pair(answers: Answers) -> None:
    [one, pair] = answers("bert", "feature-extraction", ["peace", {"text": "peace", "text_pair": "peace"}])
    assert len(pair) == 2 * len(one) - 1


def assert_entities(found: list[Any], wanted: list[Any]) -> None:
    """Values in the order of transformers' fields, the score second."""
    for ours, theirs in zip(found, wanted, strict=True):
        ours = [[*each.values()] for each in ours]
        assert [[each[0], *each[2:]] for each in ours] == [[each[0], *each[2:]] for each in theirs]
        np.testing.assert_allclose([each[1] for each in ours], [each[1] for each in theirs], atol=1e-4)


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
@pytest.mark.parametrize("family", FAMILIES)
def test_token_classification(answers: Answers, family: str, strategy: str) -> None:
    """The strategy comes from the file for half of the texts, from the request for the others."""
    texts = stored("texts")
    half = len(texts) // 2
    wanted = stored_answers()[f"{family}/{strategy}"]
    asked = [{"text": text, "parameters": {"aggregation_strategy": strategy}} for text in texts[half:]]
    found = answers(family, "token-classification", texts[:half], aggregation_strategy=strategy)
    found += answers(family, "token-classification", asked)
    assert len(texts) >= 200
    assert_entities(found, wanted)
    fields = ["entity", "score", "index", "word", "start", "end"]
    grouped = ["entity_group", "score", "word", "start", "end"]
    assert {tuple(each) for answer in found for each in answer} == {tuple(fields if strategy == "none" else grouped)}
    assert len({each[0] for answer in wanted for each in answer}) >= 2, "the tokens are decided differently"


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_to_be_ignored(answers: Answers, family: str) -> None:
    parameters = {"aggregation_strategy": "first", "ignore_labels": ["LOC", "O"]}
    asked = [{"text": text, "parameters": parameters} for text in stored("texts")]
    assert_entities(answers(family, "token-classification", asked), stored_answers()[f"{family}/ignored"])
    everything = answers(
        "bert", "token-classification", [{"text": "peace and war", "parameters": {"ignore_labels": []}}]
    )
    assert len(everything[0]) >= 3


@pytest.mark.parametrize("strategy", ["none", "first"])
def test_a_long_texts_entities_are_told_once(answers: Answers, strategy: str) -> None:
    text = " ".join(stored("texts")[:8])
    request = {"text": text, "parameters": {"aggregation_strategy": strategy, "ignore_labels": []}}
    [cut] = answers("roberta", "token-classification", [request])
    [whole] = answers("roberta", "token-classification", [request], {"long_texts": "stride", "stride": 30})
    assert whole[: len(cut) // 2] == cut[: len(cut) // 2]
    assert whole[-1]["end"] == len(text)
    starts = [each["start"] for each in whole]
    assert starts == sorted(starts)
    if strategy == "none":
        assert [each["index"] for each in whole] == [*range(1, len(whole) + 1)]


def test_it_is_what_such_a_checkpoint_is_made_for(tmp_path: Path) -> None:
    with Ensemble.of_model(str(write_model(tmp_path / "model", "electra"))) as ensemble:
        [found, refused] = ensemble.predict(["the nations at peace", {"text": "peace", "text_pair": "war"}])
    assert not isinstance(found, Refused)
    assert all(hasattr(each, "entity") for each in found.outputs["model"])
    assert isinstance(refused, Refused)
    assert refused.error == "text_pair: token-classification reads one text"
