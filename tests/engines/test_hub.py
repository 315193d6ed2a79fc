"""Names of the Hugging Face hub: from its cache without a network, else fetched, else a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from engines.checkpoint import find_checkpoint, load_checkpoint
from engines.errors import CheckpointError
from engines.hub import is_hub_name
from pipeline.ensemble_file import validate_settings
from pipeline.settings import EnsembleSettings

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put(cache: Path, folder: Path, *, revision: str = "main") -> None:
    """As the hub's own library would have."""
    repository = cache / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / revision).write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())


@pytest.mark.parametrize(
    ("source", "is_name"),
    [
        ("sentence-transformers/all-MiniLM-L6-v2", True),
        ("someone/tiny@v1.0", True),
        ("someone/tiny@refs/pr/1", True),
        ("tiny", False),
        ("./someone/tiny", False),
        ("../tiny", False),
        ("/someone/tiny", False),
        ("~/tiny", False),
        ("a/b/c", False),
        ("a b/c", False),
    ],
)
def test_what_looks_like_a_name(source: str, is_name: bool) -> None:
    assert is_hub_name(source) is is_name


@pytest.mark.parametrize("revision", ["main", "v1"])
def test_what_is_in_the_cache_needs_no_network(cache: Path, tiny_folder: Path, revision: str) -> None:
    put(cache, tiny_folder, revision=revision)
    source = "someone/tiny" if revision == "main" else "someone/tiny@v1"
    folder = find_checkpoint(source, relative_to=None)
    assert folder.is_relative_to(cache)
    assert load_checkpoint(folder).config.vocab_size


def test_a_folder_of_that_path_comes_first(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone").mkdir()
    (tmp_path / "someone" / "tiny").symlink_to(tiny_folder)
    assert find_checkpoint("someone/tiny", relative_to=None) == tmp_path / "someone" / "tiny"
    data = {"name": "e", "models": [{"name": "m", "source": "someone/tiny"}, {"name": "n", "source": "someone/else"}]}
    settings = validate_settings(data, EnsembleSettings, origin=str(tmp_path / "e.yaml"))
    assert [model.source for model in settings.models] == [str(tmp_path / "someone" / "tiny"), "someone/else"]


def test_without_a_network_it_says_so() -> None:
    with pytest.raises(CheckpointError, match=r"model 'someone/tiny': no such folder, and the hub can't be"):
        find_checkpoint("someone/tiny", relative_to=None)


def answering(tmp_path: Path, answer: Callable[[], Path]) -> Callable[..., str]:
    def snapshot_download(repo: str, **options: Any) -> str:
        assert repo == "someone/tiny"
        if options["local_files_only"]:
            (tmp_path / "empty").mkdir(exist_ok=True)
            return str(tmp_path / "empty")
        return str(answer())

    return snapshot_download


def test_what_is_not_there_is_fetched(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", answering(tmp_path, lambda: tiny_folder))
    assert find_checkpoint("someone/tiny", relative_to=None) == tiny_folder
    monkeypatch.setattr(huggingface_hub, "snapshot_download", answering(tmp_path, lambda: tmp_path))
    with pytest.raises(CheckpointError, match=r"the hub's someone/tiny has no config\.json"):
        find_checkpoint("someone/tiny", relative_to=None)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError, "gives it to who has asked for it only: set HF_TOKEN"),
        (RepositoryNotFoundError, "has none of this name, or not for all"),
        (RevisionNotFoundError, "has no revision 'v2' of it"),
    ],
)
def test_what_the_hub_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception], message: str
) -> None:
    def refuse() -> Path:
        raise error.__new__(error)  # without the response that they are made of

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answering(tmp_path, refuse))
    with pytest.raises(CheckpointError, match=message):
        find_checkpoint("someone/tiny@v2", relative_to=None)
