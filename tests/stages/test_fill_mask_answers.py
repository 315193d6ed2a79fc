"""What fill-mask makes of logits: the best of a large vocabulary, many masks at once, targets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from engines.masked_lm import MaskedLanguageModelHead
from schemas.errors import BadRecord
from schemas.packs import PackedText
from schemas.parameters import Parameters
from schemas.records import Source
from schemas.results import Filled
from stages import fill_mask
from stages.errors import TokenizerError
from stages.fill_mask import FillMask
from stages.mask_tokens import MaskVocabulary, mask_of_folder

VOCAB, WIDTH = 5_000, 8
SOURCE = Source("reviews.requests", 1, 7)
MASK, PAD = 1, 0
DRAW = np.random.default_rng(11)


def tokenizer_of(**special: str) -> PreTrainedTokenizerFast:
    words = {"[PAD]": PAD, "[MASK]": MASK, "[UNK]": 2} | {f"w{number}": number for number in range(3, VOCAB)}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **special)


@pytest.fixture(scope="module")
def vocabulary() -> MaskVocabulary:
    return MaskVocabulary(tokenizer_of(mask_token="[MASK]", pad_token="[PAD]"))


HEAD = MaskedLanguageModelHead(
    dense=np.eye(WIDTH, dtype=np.float32),
    dense_bias=np.zeros(WIDTH, np.float32),
    activation="relu",
    norm_weight=np.ones(WIDTH, np.float32),
    norm_bias=np.zeros(WIDTH, np.float32),
    norm_epsilon=1e-12,
    decoder=DRAW.normal(size=(VOCAB, WIDTH)).astype(np.float32),
    bias=DRAW.normal(size=VOCAB).astype(np.float32),
)


def scores(hidden: NDArray[np.float32]) -> NDArray[np.float64]:
    value = np.maximum(hidden, 0).astype(np.float64)
    value = (value - value.mean(axis=1, keepdims=True)) / value.std(axis=1, keepdims=True)
    exponentials = np.exp(value @ HEAD.decoder.T.astype(np.float64) + HEAD.bias)
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def details_of(ids: list[int]) -> NDArray[np.int32]:
    return np.array([[number, place, place, place + 1] for place, number in enumerate(ids)], np.int32)


def text_of(**parameters: object) -> PackedText:
    return PackedText("id", None, [], 0, 1, 1, truncated=False, parameters=Parameters(**parameters))  # type: ignore[arg-type]


def test_the_best_of_many_at_once(vocabulary: MaskVocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of one mask and of several, with their own parameters, in blocks that end within a text."""
    monkeypatch.setattr(fill_mask, "_MOST_LOGITS", 3 * VOCAB)
    sentences = [[5, MASK], [MASK, 6, PAD, MASK], [7, MASK, 8], [MASK] * 5]
    asked = [{"top_k": 3}, {}, {"targets": ["w9", "w8", "w9", "w4000"], "top_k": 9}, {"top_k": 300}]
    rows = [DRAW.normal(size=(ids.count(MASK), WIDTH)).astype(np.float32) for ids in sentences]
    answers = FillMask(HEAD, vocabulary, top_k=2).of_chosen(
        rows, [details_of(ids) for ids in sentences], [text_of(**each) for each in asked], [SOURCE] * len(sentences)
    )
    for ids, hidden, parameters, answer in zip(sentences, rows, asked, answers, strict=True):
        lists = answer if ids.count(MASK) > 1 else [answer]
        assert isinstance(lists, list)
        assert len(lists) == ids.count(MASK)
        masked = [place for place, number in enumerate(ids) if number == MASK]
        for place, of_mask, right in zip(masked, lists, scores(hidden), strict=True):
            choice = np.array([8, 9, 4000]) if "targets" in parameters else np.arange(VOCAB)
            best = choice[np.argsort(-right[choice])]
            wanted = best[: parameters.get("top_k", 2)]
            assert isinstance(of_mask, list)
            assert [each.token for each in of_mask if isinstance(each, Filled)] == wanted.tolist()
            for each in of_mask:
                assert isinstance(each, Filled)
                assert each.score == pytest.approx(right[each.token], rel=1e-4)
                assert each.token_str == vocabulary.word(each.token)
                filled = [*ids[:place], each.token, *ids[place + 1 :]]
                special = (PAD, MASK, 2) if len(masked) == 1 else (PAD,)
                assert each.sequence == " ".join(vocabulary.word(id) for id in filled if id not in special)


@pytest.mark.parametrize("count", [1, 5, 9, 100, VOCAB])
def test_the_highest_of_a_row(count: int) -> None:
    rows = DRAW.permutation(np.arange(4 * VOCAB, dtype=np.float32)).reshape(4, VOCAB)
    np.testing.assert_array_equal(fill_mask._highest(rows, count), np.argsort(-rows, axis=1)[:, :count])


@pytest.mark.parametrize(
    ("ids", "rows", "parameters", "message"),
    [
        ([5, MASK], (1, WIDTH + 1), {}, "a token of 9 numbers, the model's have 8"),
        ([5, MASK], (2, WIDTH), {}, "2 tokens, of 1 that are masked: do all stages run the same ensemble file?"),
        ([5, 6], (0, WIDTH), {}, "0 tokens, of 0 that are masked: do all stages run the same ensemble file?"),
        ([MASK], (1, WIDTH), {"targets": ""}, "parameters.targets: none that the tokenizer reads as a token"),
    ],
)
def test_what_does_not_fit_is_refused(
    vocabulary: MaskVocabulary, ids: list[int], rows: tuple[int, int], parameters: dict[str, object], message: str
) -> None:
    with pytest.raises(BadRecord, match=message.replace("?", r"\?")):
        FillMask(HEAD, vocabulary, top_k=2).of_chosen(
            [np.zeros(rows, np.float32)], [details_of(ids)], [text_of(**parameters)], [SOURCE]
        )


def test_a_target_beyond_the_models_vocabulary_is_refused(vocabulary: MaskVocabulary) -> None:
    small = MaskedLanguageModelHead(
        **{name: getattr(HEAD, name) for name in HEAD.__dataclass_fields__ if name not in ("decoder", "bias")},
        decoder=HEAD.decoder[:100],
        bias=HEAD.bias[:100],
    )
    with pytest.raises(BadRecord, match=r"parameters\.targets: one is token 4000, the model has 100"):
        FillMask(small, vocabulary, top_k=2).of_chosen(
            [np.zeros((1, WIDTH), np.float32)], [details_of([MASK])], [text_of(targets=["w4", "w4000"])], [SOURCE]
        )


def test_a_target_that_is_no_token_is_the_first_of_those_it_is_read_as(
    vocabulary: MaskVocabulary, caplog: pytest.LogCaptureFixture
) -> None:
    assert [vocabulary.target(name, SOURCE) for name in ("w7", "w8 w9", "w8 w9", " ", "w7")] == [7, 8, 8, None, 7]
    assert [record.message for record in caplog.records] == [
        "reviews.requests/1/7: a target is no token of the vocabulary: 'w8' is taken in its place",
        "reviews.requests/1/7: a target is no token of the vocabulary: nothing is taken in its place",
    ]


def test_a_tokenizer_must_have_a_mask(tmp_path: Path) -> None:
    tokenizer_of().save_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match=r"^tokenizer\.source: this tokenizer has no mask token"):
        mask_of_folder(tmp_path)


def test_spaces_are_tidied_where_transformers_tidies_them() -> None:
    tokenizer = tokenizer_of(mask_token="[MASK]")
    tokenizer.clean_up_tokenization_spaces = True
    tokenizer.add_tokens([" ."])
    number = tokenizer.convert_tokens_to_ids(" .")
    assert MaskVocabulary(tokenizer).texts([[3, number]], skip_special_tokens=True) == [tokenizer.decode([3, number])]
