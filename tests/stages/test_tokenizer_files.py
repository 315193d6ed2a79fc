"""A model's folder without a usable tokenizer is refused: it would answer every text with the same nonsense."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stages.errors import TokenizerError
from stages.text_tokenizer import TextTokenizer

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


@pytest.fixture
def folder(small_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_model, tmp_path / "model"))


def load(folder: Path) -> TextTokenizer:
    return TextTokenizer(folder, max_length=32, long_texts="truncate", stride=0)


def test_without_any_of_its_files(folder: Path) -> None:
    for name in FILES:
        (folder / name).unlink()
    with pytest.raises(TokenizerError, match=r"^tokenizer\.source: .*(no vocabulary|can be loaded)") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{}", "[]", "{", ""])
def test_with_a_broken_one(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    (folder / "vocab.txt").unlink()
    with pytest.raises(TokenizerError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
