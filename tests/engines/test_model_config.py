"""A config read by us is what `transformers` reads, and is left to it where it leaves something open."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engines.errors import CheckpointError
from engines.model_config import _as_transformers_reads, _as_written, model_config

WRITTEN: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "hidden_act": "gelu",
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}


def write(folder: Path, written: dict[str, Any]) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(written))
    return path


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"architectures": ["BertForSequenceClassification"], "id2label": {"1": "b", "0": "a", "10": "k", "2": "c"}},
        {"architectures": None, "id2label": None, "problem_type": None},
        {"problem_type": "multi_label_classification", "is_decoder": True},
        {"dtype": "float16", "transformers_version": "4.8.2", "position_embedding_type": "absolute", "unheard_of": 1},
        {"problem_type": "guessing"},
    ],
)
def test_what_is_written_out_is_read_as_transformers_reads_it(tmp_path: Path, more: dict[str, Any]) -> None:
    written = WRITTEN | more
    path = write(tmp_path, written)
    assert _as_written(written) == _as_transformers_reads(path) == model_config(path, written)


@pytest.mark.parametrize("name", [name for name in WRITTEN if name != "model_type"])
def test_what_is_left_out_is_transformers_default(tmp_path: Path, name: str) -> None:
    from transformers import BertConfig

    written = {key: value for key, value in WRITTEN.items() if key != name}
    assert getattr(model_config(write(tmp_path, written), written), name) == getattr(BertConfig(), name)


def test_a_count_of_labels_gives_them_names(tmp_path: Path) -> None:
    written = WRITTEN | {"num_labels": 3}
    labels = {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert model_config(write(tmp_path, written), written).id2label == labels


@pytest.mark.parametrize(
    ("model_type", "more", "first"),
    [
        ("bert", {"pad_token_id": 0}, 0),
        ("roberta", {"pad_token_id": 1}, 2),
        ("xlm-roberta", {}, 2),
        ("camembert", {"pad_token_id": 3}, 4),
        ("mpnet", {"pad_token_id": 3, "relative_attention_num_buckets": 32}, 2),
    ],
)
def test_positions_begin_after_the_padding_token_s(
    tmp_path: Path, model_type: str, more: dict[str, Any], first: int
) -> None:
    written = WRITTEN | {"model_type": model_type} | more
    assert model_config(write(tmp_path, written), written).first_position == first


@pytest.mark.parametrize("name", ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"])
def test_there_is_no_model_of_nothing(tmp_path: Path, name: str) -> None:
    written = WRITTEN | {name: 0}
    with pytest.raises(CheckpointError, match=rf"config\.json: {name} is 0: fetch the model again"):
        model_config(write(tmp_path, written), written)


def test_labels_are_words_whoever_reads_them(tmp_path: Path) -> None:
    written = WRITTEN | {"id2label": {"0": 0, "1": 5}}
    left_out = {name: value for name, value in written.items() if name != "hidden_act"}
    for each in (written, left_out):
        assert model_config(write(tmp_path, each), each).id2label == {0: "0", 1: "5"}


@pytest.mark.parametrize(
    "written",
    [
        {
            "model_type": "of-nobody",
            "auto_map": {"AutoConfig": "configuration_x.XConfig"},
            "max_position_embeddings": 64,
        },
        {"model_type": "t5"},
        {},
        {"model_type": "luke", "vocab_size": 9, "id2label": {"0": "a"}, "architectures": ["LukeForX"]},
    ],
)
def test_a_model_of_any_kind_is_read_as_far_as_it_goes(tmp_path: Path, written: dict[str, Any]) -> None:
    """And runs no code that lies beside it."""
    (tmp_path / "configuration_x.py").write_text("raise SystemExit('run')")
    found = model_config(write(tmp_path, written), written, any_model=True)
    assert found.max_position_embeddings == written.get("max_position_embeddings", 0)
    assert found.vocab_size == written.get("vocab_size", 0)
    assert found.first_position == (2 if written.get("model_type") == "luke" else 0)


def test_what_is_wrong_of_any_kind_is_one_line(tmp_path: Path) -> None:
    written = {"model_type": "luke", "vocab_size": "many"}
    with pytest.raises(CheckpointError, match=r"config\.json: can't be made out \(vocab_size is 'many'\)"):
        model_config(write(tmp_path, written), written, any_model=True)


@pytest.mark.parametrize(
    "wrong", [{"hidden_size": "many"}, {"vocab_size": None}, {"id2label": {"a": "b"}}, {"id2label": ["a"]}]
)
def test_what_is_wrong_is_told_as_transformers_tells_it(tmp_path: Path, wrong: dict[str, Any]) -> None:
    written = WRITTEN | wrong
    with pytest.raises(CheckpointError, match=r"config\.json: transformers can't read it") as raised:
        model_config(write(tmp_path, written), written)
    assert "\n" not in str(raised.value)


def test_a_model_is_read_without_transformers(tmp_path: Path) -> None:
    write(tmp_path, WRITTEN)
    command = (
        "import sys; from pathlib import Path; from engines.checkpoint import read_config;"
        "read_config(Path(sys.argv[1])); print('transformers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", command, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
