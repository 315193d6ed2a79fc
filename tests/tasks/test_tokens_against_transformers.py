"""What is answered of each token, against transformers' pipelines: each family, every way to put tokens together.

Answers: token_references.safetensors, by make_token_references.py, computed with PyTorch.
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
