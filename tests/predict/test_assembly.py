"""What each stage loads of a model, and what it makes of the ensemble's options."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.assembly import max_length, open_encode_stage, open_postprocess_stage, open_tokenize_stage
from pipeline.errors import UserError
from pipeline.model_settings import TokenizerSettings
from pipeline.settings import EnsembleSettings, settings_for_model


def settings_of(*models: dict[str, Any], **more: Any) -> EnsembleSettings:
    return EnsembleSettings.model_validate(
        {"name": "e", "tokenizer": {"stride": 4}, "models": list(models), "engine": {"kind": "numpy"}} | more
    )


@pytest.fixture
def folder(small_model: Path, tmp_path: Path) -> Path:
    """A copy of the small model, to be changed."""
    return Path(shutil.copytree(small_model, tmp_path / "model"))


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def test_only_encode_reads_weights(folder: Path) -> None:
    settings = settings_of(
        {"name": "vector", "source": str(folder), "task": "sentence-embedding"},
        {"name": "verdict", "source": str(folder), "task": "text-classification"},
    )
    (folder / "model.safetensors").unlink()
    open_tokenize_stage(settings)
    open_postprocess_stage(settings)
    with pytest.raises(UserError, match=r"no model\.safetensors: fetch the model's weights into this folder"):
        open_encode_stage(settings)


def test_weights_are_read_once_for_all_models_of_a_source(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    from engines import checkpoint

    load = checkpoint.read_weights
    monkeypatch.setattr(checkpoint, "read_weights", lambda folder: read.append(folder) or load(folder))
    settings = settings_of(
        {"name": "vector", "source": str(small_model), "task": "sentence-embedding"},
        {"name": "verdict", "source": str(small_model)},
    )
    open_encode_stage(settings).close()
    assert read == [small_model]


@pytest.mark.parametrize(
    ("architectures", "task"),
    [
        (["BertForSequenceClassification"], "text-classification"),
        (["BertModel"], "sentence-embedding"),
        (None, "sentence-embedding"),
    ],
)
def test_the_task_is_what_the_checkpoint_is_made_for(folder: Path, architectures: object, task: str) -> None:
    change_config(folder, architectures=architectures)
    settings = settings_of({"name": "m", "source": str(folder)})
    stage = open_postprocess_stage(settings)
    kinds = {"TextClassification": "text-classification", "SentenceEmbedding": "sentence-embedding"}
    [found] = stage._tasks.values()
    assert kinds[type(found).__name__] == task


def test_a_window_has_what_the_models_read_at_most(folder: Path) -> None:
    model = {"name": "m", "source": str(folder)}
    assert max_length(settings_of(model)) == 32
    assert max_length(settings_of(model, tokenizer={"max_length": 20, "stride": 4})) == 20
    assert max_length(settings_of(model, tokenizer={"max_length": 200, "stride": 4})) == 32
    (folder / "modules.json").write_text("[]")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    assert max_length(settings_of(model)) == 16


@pytest.mark.parametrize(("stride", "window", "found"), [(None, 256, 32), (None, 32, 8), (0, 32, 0), (9, 32, 9)])
def test_windows_share_32_tokens_or_a_quarter(stride: int | None, window: int, found: int) -> None:
    assert TokenizerSettings(stride=stride).stride_in(window) == found


def test_a_model_of_small_windows_needs_no_settings(folder: Path) -> None:
    open_tokenize_stage(settings_for_model(str(folder)))


@pytest.mark.parametrize(
    ("models", "says"),
    [
        ([{"name": "m", "source": "no-such-model"}], "neither a folder .* nor an installed package"),
        ([{"name": "m", "source": "SMALL", "head": "none.safetensors"}], r"head .*none\.safetensors: no such file"),
    ],
)
def test_what_a_person_must_change_is_one_line(small_model: Path, models: list[dict[str, Any]], says: str) -> None:
    models = [
        model | {"source": str(small_model) if model["source"] == "SMALL" else model["source"]} for model in models
    ]
    for open_stage in (open_encode_stage, open_postprocess_stage):
        with pytest.raises(UserError, match=says) as caught:
            open_stage(settings_of(*models))
        assert len(caught.value.lines) == 1


def test_labels_that_do_not_fit_the_weights_are_told(folder: Path) -> None:
    change_config(folder, id2label={"0": "NO", "1": "YES"})
    with pytest.raises(
        UserError, match=r"'classifier.weight' has shape \(3, 24\) where config.json asks for \(2, 24\)"
    ):
        open_encode_stage(settings_of({"name": "m", "source": str(folder), "task": "text-classification"}))
