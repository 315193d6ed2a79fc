"""Fill-mask of each family answers what transformers' FillMaskPipeline does.

Answers: fill_mask_references.safetensors, by make_fill_mask_references.py, computed with PyTorch.
"""

from __future__ import annotations

import gzip
import json
import zlib
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
from tests.tasks.test_against_transformers import stored as stored_beside

REFERENCES = Path(__file__).with_name("fill_mask_references.safetensors")
# As make_fill_mask_references.py asks, and of which texts.
ASKED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "top_k": {"top_k": 20},
    "targets": {"targets": ["peace", "war", "peace", "the", "freedom", "unlikelihood", "😀", ""], "top_k": 4},
    "a target": {"targets": "nation"},
}
ASKED_TEXTS = slice(0, 24, 2)
KEYS = [*FAMILIES, "camembert", "bert-untied"]
# Whose weights are written in half precision: they are widened, where others are mapped.
HALVED = ("electra", "bert-untied")


@cache
def stored(name: str) -> Any:
    with safe_open(REFERENCES, framework="numpy") as file:
        if name == "answers":
            return json.loads(gzip.decompress(file.get_tensor(name).tobytes()))
        return json.loads(file.metadata()[name])


def write_masked_model(folder: Path, key: str) -> Path:
    folder.mkdir()
    config = stored("configs")[key]
    (folder / "config.json").write_text(json.dumps(config))
    family = {"camembert": "roberta", "bert-untied": "bert"}.get(key, key)
    (folder / "tokenizer.json").write_text(stored_beside("tokenizers")[family])
    words = config["model_type"] in ("bert", "distilbert", "electra")
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if words else ("<pad>", "<unk>", "<s>", "</s>", "<mask>")
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MAX_LENGTH}
    (folder / "tokenizer_config.json").write_text(json.dumps(about | dict(zip(names, special, strict=True))))
    with safe_open(REFERENCES, framework="numpy") as file:
        tensors = {
            name.removeprefix(f"{key}/"): file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118 - it is no mapping
            if name.startswith(f"{key}/")
        }
    kind = np.float16 if key in HALVED else np.float32
    save_file({name: tensor.astype(kind) for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def masked_texts(key: str) -> list[str]:
    mask = "[MASK]" if key.startswith(("bert", "distilbert", "electra")) else "<mask>"
    return [text.replace("[MASK]", mask) for text in stored("answers")["texts"]]


def settings_of(source: Path, **options: Any) -> EnsembleSettings:
    model = {"name": "it", "source": str(source)} | options.pop("model", {})
    return EnsembleSettings.model_validate({"name": "fill", "models": [model], **options})


def values(answer: Any) -> Any:
    """As the script keeps them, and the score apart."""
    if isinstance(answer, list):
        return [values(each) for each in answer]
    return [answer["token"], answer["token_str"], zlib.crc32(answer["sequence"].encode())]


def scores(answer: Any, place: Any) -> list[float]:
    if isinstance(answer, list) and answer and isinstance(answer[0], list) and isinstance(answer[0][0], list | dict):
        return [score for each in answer for score in scores(each, place)]
    return [each[place] for each in answer]


def wanted_values(answer: Any) -> Any:
    if isinstance(answer[0], list):
        return [wanted_values(each) for each in answer]
    return [answer[0], *answer[2:]]


@pytest.mark.parametrize("key", KEYS)
def test_masks_are_filled_as_transformers_does(tmp_path: Path, key: str) -> None:
    texts = masked_texts(key)
    requests, wanted = [], []
    for asked, parameters in ASKED.items():
        answers = stored("answers")[f"{key}/{asked}"]
        some = texts[: len(answers)] if asked == "nothing" else texts[ASKED_TEXTS]
        requests += [{"text": text, "parameters": parameters} for text in some]
        wanted += answers
    assert len(wanted) >= (236 if key in FAMILIES else 76)
    settings = settings_of(write_masked_model(tmp_path / key, key), tokenizer={"long_texts": "truncate"})
    with Ensemble(settings) as ensemble:
        for request, right, found in zip(requests, wanted, ensemble.predict(requests), strict=True):
            if right is None:
                assert isinstance(found, Refused)
                continue
            assert not isinstance(found, Refused), (request, found)
            answer = msgspec.to_builtins(found.outputs["it"])
            assert values(answer) == wanted_values(right), request
            np.testing.assert_allclose(scores(answer, "score"), scores(right, 1), atol=1e-4)
    best = [answer[0][0] for answer in wanted if answer and not isinstance(answer[0][0], list)]
    assert len(set(best)) > 10, "the texts are answered differently"
