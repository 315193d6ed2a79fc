"""MPNet and ModernBERT in each task, against transformers' pipelines and sentence-transformers.

Answers: newer_references.safetensors, by make_newer_references.py, computed with PyTorch.
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
from tests.tasks.test_against_transformers import MAX_LENGTH, assert_alike, by_label
from tests.tasks.test_against_transformers import stored as stored_before
from tests.tasks.test_tokens_against_transformers import assert_entities

REFERENCES = Path(__file__).with_name("newer_references.safetensors")
FAMILIES = ("modernbert", "mpnet")


@cache
def metadata(name: str) -> Any:
    with safe_open(REFERENCES, framework="numpy") as file:
        return json.loads(file.metadata()[name])


def tensors(prefix: str) -> dict[str, np.ndarray]:
    with safe_open(REFERENCES, framework="numpy") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - it is no mapping
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}


@cache
def wanted_answers() -> Any:
    return json.loads(gzip.decompress(tensors("answers")[""].tobytes()))


def texts() -> list[str]:
    found: list[str] = stored_before("texts")
    assert len(found) >= 200
    return found


def write_model(folder: Path, family: str, head: str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(metadata("configs")[f"{family}-{head}"]))
    (folder / "tokenizer.json").write_text(metadata("tokenizers")[family])
    special = {"cls_token": "<s>", "sep_token": "</s>", "unk_token": "[UNK]" if family == "mpnet" else "<unk>"}
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MAX_LENGTH}
    (folder / "tokenizer_config.json").write_text(json.dumps(about | special))
    save_file(tensors(f"{family}-{head}/"), folder / "model.safetensors")
    return folder


def write_sentence_transformers(folder: Path, pooling: str) -> None:
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": pooling}))
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    kind = "sentence_transformers.models"
    written = [{"idx": idx, "type": f"{kind}.{name}", "path": path} for idx, (name, path) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(written))


Answers = Callable[..., list[Any]]


@pytest.fixture
def answers(tmp_path: Path) -> Answers:
    """What an ensemble of one model answers, as JSON has it."""

    def answered(
        family: str, head: str, requests: Sequence[Any], *, tokenizer: dict[str, Any] | None = None, **model: Any
    ) -> list[Any]:
        folder = tmp_path / f"{family}-{head}"
        source = str(folder if folder.exists() else write_model(folder, family, head))
        settings = EnsembleSettings.model_validate(
            {
                "name": "newer",
                "tokenizer": tokenizer or {"long_texts": "truncate"},
                "models": [{"name": "it", "source": source} | model],
            }
        )
        with Ensemble(settings) as ensemble:
            results = [*ensemble.predict(requests)]
        assert not any(isinstance(each, Refused) for each in results)
        return [msgspec.to_builtins(each.outputs["it"]) for each in results]  # type: ignore[union-attr]

    return answered


@pytest.mark.parametrize("family", FAMILIES)
def test_text_classification(answers: Answers, family: str) -> None:
    """What such a checkpoint is made for. ModernBERT's reads the mean of its tokens."""
    wanted = wanted_answers()[f"{family}-classes"]
    assert_alike(by_label(answers(family, "classes", texts(), top_k=None)), by_label(wanted))
    assert len({theirs[0]["label"] for theirs in wanted}) > 1, "the texts are decided differently"


@pytest.mark.parametrize("family", FAMILIES)
def test_ranking(answers: Answers, family: str) -> None:
    requests = [{"query": texts()[at], "passages": texts()[at + 1 : at + 6]} for at in range(0, 200, 5)]
    wanted = wanted_answers()[f"{family}-ranking"]
    found = answers(family, "ranking", requests, task="text-ranking")
    ours, theirs = ([{each["index"]: each["score"] for each in one} for one in some] for some in (found, wanted))
    assert_alike(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_token_classification(answers: Answers, family: str) -> None:
    """ModernBERT's has a layer and a norm before the logits."""
    wanted = wanted_answers()[f"{family}-tokens"]
    assert_entities(answers(family, "tokens", texts(), aggregation_strategy="first"), wanted)
    assert len({each[0] for answer in wanted for each in answer}) >= 2, "the tokens are decided differently"


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("family", FAMILIES)
def test_sentence_embeddings(answers: Answers, tmp_path: Path, family: str, pooling: str) -> None:
    write_sentence_transformers(write_model(tmp_path / f"{family}-tokens", family, "tokens"), pooling)
    found = answers(family, "tokens", texts(), task="sentence-embedding")
    assert {len(each) for each in found} == {24}
    np.testing.assert_allclose(np.array(found)[:, :8], tensors(f"vectors/{family}/")[pooling], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_text_s_windows_are_texts(answers: Answers, family: str) -> None:
    """Its answer is the mean of its windows', by their tokens."""
    [long] = [text for text in texts() if text.startswith("word ")]
    asked = {"task": "sentence-embedding", "pooling": "mean"}
    [whole] = answers(family, "tokens", [long], tokenizer={"long_texts": "stride", "stride": 0}, **asked)
    [cut] = answers(family, "tokens", [long], **asked)
    # All windows but the last are of the same words.
    np.testing.assert_allclose(whole, cut, atol=0.2)
    assert whole != cut
