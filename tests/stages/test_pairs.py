"""Pairs: windows and token types are those of the tokenizers library, and what a model makes of them is PyTorch's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from engines.engine import open_source
from engines.heads import PooledOutput
from engines.onnx_model import read_onnx
from engines.source import of_onnx
from schemas.errors import BadRecord, Reason
from schemas.packs import SECOND_TEXT
from stages.packing import pack_rows
from stages.text_tokenizer import TextTokenizer, TokenizedText
from tests.onnx_files import VOCAB, WIDTH, exported
from tests.tasks.test_against_transformers import stored, write_model

MAX_LENGTH = 24
word = st.sampled_from(["the", "nation", "naïve", "北京", "don't", "😀", "[SEP]", "x" * 30])
texts = st.one_of(st.lists(word, max_size=30).map(" ".join), st.text(max_size=60))


@pytest.fixture(scope="module", params=["bert", "roberta", "xlm-roberta"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[TextTokenizer, Tokenizer]:
    folder = write_model(tmp_path_factory.mktemp("pairs") / "model", request.param, "classes")
    ours = TextTokenizer(folder, max_length=MAX_LENGTH, long_texts="stride", stride=4)
    theirs = Tokenizer.from_str(stored("tokenizers")[request.param])
    return ours, theirs


@given(pairs=st.lists(st.tuples(texts, texts), min_size=1, max_size=4), only_first=st.booleans())
@settings(max_examples=150, deadline=None)
def test_windows_are_the_tokenizers(
    both: tuple[TextTokenizer, Tokenizer], pairs: list[tuple[str, str]], only_first: bool
) -> None:
    ours, theirs = both
    strategy = "only_first" if only_first else "longest_first"
    for pair, outcome in zip(pairs, ours.pairs(pairs, truncation=strategy), strict=True):
        theirs.no_truncation()
        whole = theirs.encode(*pair)
        room = MAX_LENGTH - sum(whole.special_tokens_mask)
        if only_first and len(theirs.encode(pair[1], add_special_tokens=False).ids) >= room:
            continue  # it has nothing left of the first text to cut, and says so
        theirs.enable_truncation(MAX_LENGTH, strategy=strategy)
        wanted = theirs.encode(*pair)
        assert isinstance(outcome, TokenizedText)
        [window] = outcome.windows
        assert (window % SECOND_TEXT).tolist() == wanted.ids
        assert (window // SECOND_TEXT).tolist() == wanted.type_ids
        assert outcome.truncated == (len(whole.ids) > MAX_LENGTH)


def test_a_second_text_without_room_for_the_first_is_cut_too(both: tuple[TextTokenizer, Tokenizer]) -> None:
    [outcome] = both[0].pairs([("one", "word " * 60)], truncation="only_first")
    assert isinstance(outcome, TokenizedText)
    assert len(outcome.windows[0]) == MAX_LENGTH
    assert outcome.truncated


def test_a_long_pair_is_refused_where_long_texts_are(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "bert", "classes")
    tokenizer = TextTokenizer(folder, max_length=16, long_texts="reject", stride=0)
    short, long = tokenizer.pairs([("a", "b"), ("word " * 9, "word " * 9)])
    assert isinstance(short, TokenizedText)
    assert isinstance(long, BadRecord)
    assert long.reason is Reason.TEXT_TOO_LONG
    assert long.message == "the pair has more than 16 tokens and the ensemble rejects long texts"


def test_a_window_too_small_for_a_pair_refuses_it(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "bert", "classes")
    [outcome] = TextTokenizer(folder, max_length=3, long_texts="truncate", stride=0).pairs([("a", "b")])
    assert isinstance(outcome, BadRecord)
    assert outcome.message == "text_pair: this ensemble's tokenizer reads no pairs"


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino"])
def test_token_types_reach_an_onnx_file(tmp_path: Path, kind: str) -> None:
    output = PooledOutput(name="it", pooling="mean", normalize=False)
    source = of_onnx(read_onnx(exported(tmp_path / "model.onnx")), [output], vocab_size=VOCAB, max_positions=20)
    engine = open_source(kind, source, threads=1, instances=1)  # type: ignore[arg-type]
    ids = np.arange(1, 8, dtype=np.int32)
    marked = ids + np.where(ids > 4, SECOND_TEXT, 0).astype(np.int32)
    [group] = pack_rows([ids, marked], row_length=32)
    found = engine.run(group.rows)["it"][np.argsort(group.windows)]
    # Its table of types is 0 .. 2W - 1: a token of the second type is W higher in each number.
    np.testing.assert_allclose(found[1] - found[0], np.full(WIDTH, 3 / 7 * WIDTH), atol=1e-5)
