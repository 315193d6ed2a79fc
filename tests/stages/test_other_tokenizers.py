"""Byte-level BPE (RoBERTa) and Unigram (XLM-R), trained on a few texts: windows are those of transformers."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from benchmarks.demo import DEMO
from pipeline.demo.texts import read_texts
from stages.text_tokenizer import TextTokenizer, TokenizedText

SPECIAL = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>", "cls": "<s>", "sep": "</s>"}
TEXTS = [
    *islice(read_texts(DEMO / "texts.txt.gz"), 150),
    "",
    " ",
    "😀 émigré, e\u0301migre\u0301",
    "<s> </s> <mask> and [CLS]",
    "a" * 300,
    "שלום  עולם",
    "tab\tand\nline",
]


def bpe() -> tuple[Tokenizer, str]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=[*dict.fromkeys(SPECIAL.values())],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer, "RobertaTokenizerFast"


def unigram() -> tuple[Tokenizer, str]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=500, special_tokens=[*dict.fromkeys(SPECIAL.values())], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer, "PreTrainedTokenizerFast"


@pytest.fixture(params=[bpe, unigram])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tokenizer, kind = request.param()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": kind, "model_max_length": 64} | {
        f"{name}_token": word for name, word in SPECIAL.items()
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_windows_are_those_of_transformers(folder: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = TextTokenizer(folder, max_length=64, long_texts="truncate", stride=0)(TEXTS)
    for text, outcome in zip(TEXTS, ours, strict=True):
        assert isinstance(outcome, TokenizedText)
        [window] = outcome.windows
        assert window.tolist() == theirs(text, truncation=True, max_length=64)["input_ids"], text


def test_strides_lose_nothing(folder: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = TextTokenizer(folder, max_length=64, long_texts="stride", stride=8)(TEXTS)
    for text, outcome in zip(TEXTS, ours, strict=True):
        assert isinstance(outcome, TokenizedText)
        joined = outcome.windows[0].tolist()[:-1]
        for window in outcome.windows[1:]:
            joined += window.tolist()[1 + 8 : -1]
        assert [*joined, theirs.sep_token_id] == theirs(text)["input_ids"], text
