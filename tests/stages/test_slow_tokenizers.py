"""Tokenizers that transformers has in Python alone, and folders of which it makes a fast one."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from pipeline.assembly import open_tokenize_stage, open_tokenizer
from pipeline.errors import UserError
from pipeline.settings import EnsembleSettings, settings_for_model
from schemas.packs import SECOND_TEXT
from stages.errors import TokenizerError
from stages.text_tokenizer import TextTokenizer, TokenizedText
from tests.engines.conftest import TINY_CONFIG

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"helo wrda", "<new>"]
TEXTS = ["hello", "", "hello world [SEP] hello", "h" * 30, "[MASK]a 日本", "a <new> word"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a BERT of characters."""
    (tmp_path / "config.json").write_text(json.dumps(TINY_CONFIG))
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))
    kind = {
        "tokenizer_class": "BertJapaneseTokenizer",
        "word_tokenizer_type": "basic",
        "subword_tokenizer_type": "character",
        "model_max_length": int(1e30),
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(kind))
    return tmp_path


def window(outcome: Any) -> list[int]:
    assert isinstance(outcome, TokenizedText)
    [only] = outcome.windows
    return [number & ~SECOND_TEXT for number in only.tolist()]


def test_windows_are_those_of_transformers(folder: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    assert not theirs.is_fast
    ours = TextTokenizer(folder, max_length=9, long_texts="truncate", stride=0)
    assert (ours.slow, ours.has_offsets) == ("BertJapaneseTokenizer", False)
    for text, outcome in zip(TEXTS, ours(TEXTS), strict=True):
        assert window(outcome) == theirs(text, truncation=True, max_length=9)["input_ids"], text


def test_strides_lose_nothing(folder: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = TextTokenizer(folder, max_length=9, long_texts="stride", stride=3)
    for text, outcome in zip(TEXTS, ours.with_details(TEXTS), strict=True):
        assert isinstance(outcome, TokenizedText)
        assert outcome.details is not None
        joined = outcome.windows[0].tolist()[:-1]
        for each in outcome.windows[1:]:
            joined += each.tolist()[1 + 3 : -1]
        assert [*joined, 3] == theirs(text)["input_ids"], text
        places = [place for each in outcome.details for place in each[1:-1, 1].tolist()]
        assert sorted({*places}) == [*range(len(theirs(text)["input_ids"]) - 2)]


@pytest.mark.parametrize("longest", [5, 8, 9, 12, 40])
def test_pairs_are_those_of_transformers(folder: Path, longest: int) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = TextTokenizer(folder, max_length=longest, long_texts="truncate", stride=0)
    pairs = [("hello", "world hello"), ("hello hello", "world"), ("hello", "world"), ("a", ""), ("", "a")]
    for (first, second), outcome in zip(pairs, ours.pairs(pairs), strict=True):
        assert window(outcome) == theirs(first, second, truncation=True, max_length=longest)["input_ids"]
        assert isinstance(outcome, TokenizedText)
        assert outcome.windows[0][-1] == 3 + SECOND_TEXT


def test_it_is_said_that_it_is_slow(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="penstock.tokenizer"):
        open_tokenize_stage(settings_for_model(str(folder)))
    assert [record.getMessage() for record in caplog.records] == [
        "predict: BertJapaneseTokenizer is a slow tokenizer, in Python, a text at a time"
    ]


def test_tasks_of_characters_are_refused(folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        open_tokenize_stage(settings_for_model(str(folder), "token-classification"))
    assert caught.value.lines == (
        "--model: models[0].source: BertJapaneseTokenizer does not tell which characters a token is of, as this task "
        "must know: choose a model with a tokenizer.json",
    )


def test_the_model_s_limit_is_the_limit(folder: Path) -> None:
    """And not the 1e30 of the tokenizer's file."""
    assert open_tokenizer(settings_for_model(str(folder))).max_length == TINY_CONFIG["max_position_embeddings"]
    data = {"name": "e", "models": [{"name": "m", "source": str(folder)}], "tokenizer": {"max_length": 9_999}}
    assert open_tokenizer(EnsembleSettings.model_validate(data)).max_length == TINY_CONFIG["max_position_embeddings"]
    kind = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(kind | {"model_max_length": 7}))
    assert open_tokenizer(settings_for_model(str(folder))).max_length == 7


def test_a_vocabulary_alone_makes_a_fast_one(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "tokenizer_config.json").unlink()
    (folder / "vocab.txt").write_text("\n".join([*VOCABULARY, "hello", "##a"]))
    ours = TextTokenizer(folder, max_length=9, long_texts="truncate", stride=0)
    assert (ours.slow, ours.has_offsets) == ("", True)
    assert [window(each) for each in ours(["Hello helloa"])] == [[2, len(VOCABULARY), len(VOCABULARY), 16, 3]]
    assert not caplog.records


def test_words_and_merges_make_a_fast_one(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "he"]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta", "max_position_embeddings": 20}))
    (tmp_path / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh e\n")
    ours = TextTokenizer(tmp_path, max_length=9, long_texts="truncate", stride=0)
    assert ours.slow == ""
    [found] = map(window, ours(["hehe"]))
    assert found == [0, len(tokens) - 1, len(tokens) - 1, 2]


@pytest.mark.skipif(importlib.util.find_spec("sentencepiece") is not None, reason="SentencePiece is installed")
def test_a_sentencepiece_model_alone(folder: Path) -> None:
    (folder / "vocab.txt").rename(folder / "sentencepiece.bpe.model")
    with pytest.raises(TokenizerError, match=r"SentencePiece model alone.* pip install sentencepiece"):
        TextTokenizer(folder, max_length=9, long_texts="truncate", stride=0)
