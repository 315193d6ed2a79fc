"""Tokenize, with the real MiniLM tokenizer: what a model reads of any text, and what becomes of a long one."""

from __future__ import annotations

import functools
import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from engines.checkpoint import Checkpoint
from schemas.errors import BadRecord, Reason
from schemas.packs import TokenPack, decode_token_pack, encode_pack
from schemas.records import InputRecord, Source
from stages.errors import TokenizerError
from stages.text_tokenizer import LongTexts, TextTokenizer, TokenizedText
from stages.tokenize import TokenizeStage

CLS, SEP, UNK = 101, 102, 100
MEGABYTE = 1 << 20

MakeTokenizer = Callable[..., TextTokenizer]


@pytest.fixture(scope="module")
def make(minilm: Checkpoint) -> MakeTokenizer:
    """MiniLM's tokenizer under a policy, loaded once for each."""

    @functools.cache
    def make(*, max_length: int = 256, long_texts: LongTexts = "stride", stride: int = 32) -> TextTokenizer:
        return TextTokenizer(minilm.folder, max_length=max_length, long_texts=long_texts, stride=stride)

    return make


@pytest.fixture(scope="module")
def theirs(minilm: Checkpoint) -> PreTrainedTokenizerFast:
    """transformers' own, as its users call it."""
    tokenizer = AutoTokenizer.from_pretrained(minilm.folder)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


def windows_of(tokenizer: TextTokenizer, text: str) -> list[list[int]]:
    [outcome] = tokenizer([text])
    assert isinstance(outcome, TokenizedText)
    assert all(window.dtype == np.int32 for window in outcome.windows)
    return [window.tolist() for window in outcome.windows]


words = st.sampled_from(
    ["the", "lights", "tokenization", "Straße", "naïve", "北京", "don't", "e-mail", "3.14", "😀", "..."]
)
sentences = st.lists(words, max_size=60).map(" ".join)
anything = st.text(max_size=80)  # of what UTF-8 can carry: a request holds no lone surrogate


# The windows are those that transformers makes.


@pytest.mark.parametrize(("max_length", "stride"), [(256, 32), (16, 4), (16, 0), (8, 5), (4, 1), (3, 0)])
@given(texts=st.lists(sentences | anything, min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_windows_are_those_of_transformers(
    make: MakeTokenizer, theirs: PreTrainedTokenizerFast, max_length: int, stride: int, texts: list[str]
) -> None:
    expected = theirs(
        texts, truncation=True, max_length=max_length, stride=stride, return_overflowing_tokens=True, padding=False
    )
    by_text: list[list[list[int]]] = [[] for _ in texts]
    for sample, ids in zip(expected["overflow_to_sample_mapping"], expected["input_ids"], strict=True):
        by_text[sample].append(ids)
    tokenizer = make(max_length=max_length, stride=stride)
    assert [windows_of(tokenizer, text) for text in texts] == by_text
    outcomes = tokenizer(texts)
    assert [[window.tolist() for window in outcome.windows] for outcome in outcomes] == by_text, "in one batch too"  # type: ignore[union-attr]


@given(text=sentences | anything)
@settings(max_examples=100, deadline=None)
def test_windows_share_stride_tokens_and_together_are_the_whole_text(make: MakeTokenizer, text: str) -> None:
    [whole] = windows_of(make(max_length=512), text)
    windows = windows_of(make(max_length=16, stride=4), text)
    assert all(window[0] == CLS and window[-1] == SEP and len(window) <= 16 for window in windows)
    inner = [window[1:-1] for window in windows]
    for one, other in itertools.pairwise(inner):
        assert one[-4:] == other[:4]
    assert inner[0] + [token for window in inner[1:] for token in window[4:]] == whole[1:-1]


def test_the_file_of_the_model_asks_for_padding_and_truncation_at_128_and_gets_neither(
    make: MakeTokenizer, minilm: Checkpoint
) -> None:
    file = json.loads((minilm.folder / "tokenizer.json").read_text())
    assert file["truncation"]["max_length"] == file["padding"]["strategy"]["Fixed"] == 128
    assert windows_of(make(), "lights") == [[CLS, 4597, SEP]]
    [window] = windows_of(make(), "word " * 200)
    assert len(window) == 202


def test_a_window_is_never_longer_than_the_model_reads(make: MakeTokenizer) -> None:
    assert make(max_length=100_000).max_length == 512
    assert [len(window) for window in windows_of(make(max_length=100_000), "word " * 600)] == [512, 124]


# Long texts, by policy.


@pytest.mark.parametrize("long_texts", ["stride", "truncate", "reject"])
def test_a_text_that_fits_exactly_is_not_a_long_one(make: MakeTokenizer, long_texts: LongTexts) -> None:
    [outcome] = make(max_length=16, long_texts=long_texts, stride=4)(["word " * 14])
    assert isinstance(outcome, TokenizedText)
    assert [len(window) for window in outcome.windows] == [16]
    assert not outcome.truncated


def test_stride_cuts_a_long_text_and_loses_nothing(make: MakeTokenizer) -> None:
    [outcome] = make(max_length=16, stride=4)(["word " * 15])
    assert isinstance(outcome, TokenizedText)
    assert [len(window) for window in outcome.windows] == [16, 7]
    assert not outcome.truncated


def test_truncate_keeps_the_first_window_and_says_so(make: MakeTokenizer) -> None:
    [outcome] = make(max_length=16, long_texts="truncate")(["word " * 15])
    assert isinstance(outcome, TokenizedText)
    assert [window.tolist() for window in outcome.windows] == [[CLS, *[2773] * 14, SEP]]
    assert outcome.truncated


def test_reject_names_the_limit(make: MakeTokenizer) -> None:
    short, long = make(max_length=16, long_texts="reject")(["word", "word " * 15])
    assert isinstance(short, TokenizedText)
    assert isinstance(long, BadRecord)
    assert long.reason is Reason.TEXT_TOO_LONG
    assert long.message == "the text has more than 16 tokens and the ensemble rejects long texts"


def test_a_stride_that_leaves_no_room_is_one_line_for_the_user(make: MakeTokenizer) -> None:
    assert windows_of(make(max_length=16, stride=13), "word " * 16)[2] == [CLS, *[2773] * 14, SEP]
    with pytest.raises(TokenizerError) as raised:
        make(max_length=16, stride=14)
    assert str(raised.value) == (
        "tokenizer.stride: 14 leaves no room in windows of 16 tokens, of which 2 are special; allowed: 0 to 13"
    )


@pytest.mark.parametrize("long_texts", ["truncate", "reject"])
def test_without_stride_windows_a_stride_matters_to_nobody(make: MakeTokenizer, long_texts: LongTexts) -> None:
    assert windows_of(make(max_length=16, long_texts=long_texts, stride=32), "lights") == [[CLS, 4597, SEP]]


def test_a_folder_without_a_tokenizer_is_one_line_for_the_user(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError) as raised:
        TextTokenizer(tmp_path, max_length=16, long_texts="stride", stride=0)
    assert str(raised.value).startswith(f"tokenizer.source: no tokenizer can be loaded from {tmp_path}: ")
    assert "\n" not in str(raised.value)


# Every text has a defined outcome.


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", []),
        (" ", []),
        (" \t\r\n\u00a0\u2003\u3000", []),
        ("a", [1037]),
        (".", [1012]),
        ("\x00\x01\x08\x7f", []),
        ("a\x00b\x1b[2J", [11113, 1031, 1016, 3501]),
        ("\ufeff", []),
        ("\u200b\u200d\u2060", []),
        ("\u202ea", [1037]),
        ("\ufffd", []),
        ("e\u0301", [1041]),
        ("é", [1041]),
        ("\u0301", []),
        ("e" + "\u0301" * 500, [1041]),
        ("LIGHTS", [4597]),
        ("[CLS]", [CLS]),
        ("[PAD] [UNK]", [0, UNK]),
        ("😀", [UNK]),
        ("\U0001f469\u200d\U0001f469\u200d\U0001f467", [UNK]),
        ("\U0001f1e9\U0001f1ea", [UNK]),
        ("\U0010ffff", [UNK]),
        ("x" * 100, None),
        ("x" * 101, [UNK]),
    ],
    ids=ascii,
)
def test_a_text_with_little_in_it_is_still_a_text(make: MakeTokenizer, text: str, ids: list[int] | None) -> None:
    [[first, *inner, last]] = windows_of(make(), text)
    assert (first, last) == (CLS, SEP)
    if ids is not None:
        assert inner == ids


SCRIPTS = {
    "Latin": "Où est la bibliothèque ?",
    "Greek": "Πού είναι η βιβλιοθήκη;",
    "Cyrillic": "Где находится библиотека?",
    "Armenian": "Որտե՞ղ է գրադարանը",
    "Georgian": "სად არის ბიბლიოთეკა?",
    "Hebrew": "איפה הספרייה?",
    "Arabic": "أين المكتبة؟",
    "Syriac": "ܐܝܟܐ ܐܝܬܝܗ",
    "Devanagari": "पुस्तकालय कहाँ है?",
    "Bengali": "লাইব্রেরি কোথায়?",
    "Gurmukhi": "ਲਾਇਬ੍ਰੇਰੀ ਕਿੱਥੇ ਹੈ?",
    "Gujarati": "પુસ્તકાલય ક્યાં છે?",
    "Tamil": "நூலகம் எங்கே?",
    "Telugu": "గ్రంథాలయం ఎక్కడ?",
    "Kannada": "ಗ್ರಂಥಾಲಯ ಎಲ್ಲಿದೆ?",
    "Malayalam": "ലൈബ്രറി എവിടെ?",
    "Sinhala": "පුස්තකාලය කොහේද?",
    "Thai": "ห้องสมุดอยู่ที่ไหน",
    "Lao": "ຫ້ອງສະໝຸດຢູ່ໃສ",
    "Tibetan": "དཔེ་མཛོད་ཁང་ག་པར་ཡོད།",
    "Khmer": "បណ្ណាល័យនៅឯណា?",
    "Ethiopic": "ቤተ መጻሕፍት የት ነው?",
    "Hangul": "도서관은 어디에 있습니까?",
    "Han": "圖書館在哪裡",
    "Kana": "としょかんはどこですか。",
    "Cherokee": "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ",
}


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_every_script_is_read_as_transformers_reads_it(
    make: MakeTokenizer, theirs: PreTrainedTokenizerFast, text: str
) -> None:
    assert len(SCRIPTS) >= 20
    assert windows_of(make(), text) == [theirs(text)["input_ids"]]
    mixed = f"Hello {text} https://example.org/a?b=c&d={text}#e {text[::-1]}"
    assert windows_of(make(), mixed) == [theirs(mixed)["input_ids"]]


@pytest.mark.parametrize(
    ("unit", "windows"),
    [("The quick brown fox. ", 1125), ("a ", 2362), (".", 4724), ("中", 1575), ("\u0301", 1), (" ", 1), ("x", 1)],
    ids=ascii,
)
def test_a_megabyte_of_text_is_read_to_its_end(make: MakeTokenizer, unit: str, windows: int) -> None:
    text = unit * (MEGABYTE // len(unit.encode()))
    found = windows_of(make(), text)
    assert len(found) == windows
    assert max(map(len, found)) <= 256
    if windows == 1:
        assert found[0] in ([CLS, SEP], [CLS, UNK, SEP])


@pytest.mark.parametrize(("long_texts", "windows"), [("truncate", 1), ("reject", 0)])
def test_a_megabyte_is_a_long_text_for_every_policy(make: MakeTokenizer, long_texts: LongTexts, windows: int) -> None:
    [outcome] = make(long_texts=long_texts)(["a " * (MEGABYTE // 2)])
    assert len(outcome.windows if isinstance(outcome, TokenizedText) else []) == windows


def test_texts_that_are_large_together_are_read_in_order_all_the_same(make: MakeTokenizer) -> None:
    texts = [word * (MEGABYTE // 8) for word in ("a ", "b ", "c ", "")] + ["d"] * 3 + ["e " * (MEGABYTE // 8)]
    outcomes = make(long_texts="truncate")(texts)
    firsts = [outcome.windows[0][1] for outcome in outcomes if isinstance(outcome, TokenizedText)]
    assert firsts == [1037, 1038, 1039, SEP, 1040, 1040, 1040, 1041]


def test_no_texts_are_no_windows(make: MakeTokenizer) -> None:
    assert make()([]) == []


def test_a_tokenizer_without_special_tokens_has_nothing_to_show_for_an_empty_text(
    minilm: Checkpoint, tmp_path: Path
) -> None:
    file = json.loads((minilm.folder / "tokenizer.json").read_text()) | {"post_processor": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    shutil.copy(minilm.folder / "config.json", tmp_path)
    tokenizer = TextTokenizer(tmp_path, max_length=16, long_texts="stride", stride=4)
    assert windows_of(tokenizer, "lights") == [[4597]]
    [outcome] = tokenizer([""])
    assert isinstance(outcome, BadRecord)
    assert outcome.reason is Reason.BAD_REQUEST


# The stage: records in, packs and rejected records out.


def record(offset: int, value: bytes | None, *, partition: int = 0) -> InputRecord:
    key = b"key%d" % offset
    return InputRecord(Source("reviews.requests", partition, offset), key, value, [("h", b"%d" % offset)])


def request(text: str) -> bytes:
    return msgspec.json.encode({"text": text})


def stage_of(tokenizer: TextTokenizer) -> TokenizeStage:
    return TokenizeStage(tokenizer, request_format="json", max_text_bytes=1000)


def offsets(pack: TokenPack | None) -> list[int]:
    return [] if pack is None else [text.offset for text in pack.texts]


def test_a_group_becomes_one_pack_that_keeps_who_asked(make: MakeTokenizer) -> None:
    group = [record(7, request("lights"), partition=2), record(9, request("word " * 15), partition=2)]
    [(pack, rejected)] = stage_of(make(max_length=16, stride=4))([group])
    assert pack is not None
    assert not rejected
    assert (pack.topic, pack.partition) == ("reviews.requests", 2)
    first, second = pack.texts
    assert (first.id, first.key, first.headers, first.offset) == ("reviews.requests/2/7", b"key7", [("h", b"7")], 7)
    assert (first.chunks, first.tokens, first.truncated) == (1, 3, False)
    assert (second.chunks, second.tokens, second.truncated) == (2, 16 + 7, False)
    assert [window.tolist() for window in pack.chunk_ids()] == [
        [CLS, 4597, SEP],
        [CLS, *[2773] * 14, SEP],
        [CLS, *[2773] * 5, SEP],
    ]
    assert decode_token_pack(encode_pack(pack)) == pack


def test_truncation_is_told_with_the_text(make: MakeTokenizer) -> None:
    [(pack, _)] = stage_of(make(max_length=16, long_texts="truncate"))([[record(0, request("word " * 99))]])
    assert pack is not None
    assert (pack.texts[0].chunks, pack.texts[0].tokens, pack.texts[0].truncated) == (1, 16, True)


def test_bad_records_leave_their_neighbours_alone_and_come_in_their_order(make: MakeTokenizer) -> None:
    values = [request("word " * 15), request("lights"), None, request("a" * 1001), b"\xff", request(""), b"no json"]
    group = [record(offset, value) for offset, value in enumerate(values)]
    [(pack, rejected)] = stage_of(make(max_length=16, long_texts="reject"))([group])
    assert offsets(pack) == [1, 5]
    assert [(each.record.source.offset, each.error.reason) for each in rejected] == [
        (0, Reason.TEXT_TOO_LONG),
        (2, Reason.NULL_VALUE),
        (3, Reason.TEXT_TOO_LARGE),
        (4, Reason.NOT_UTF8),
        (6, Reason.NOT_JSON),
    ]
    assert [each.record for each in rejected] == [group[0], *group[2:5], group[6]]


def test_a_group_of_nothing_but_bad_records_has_no_pack(make: MakeTokenizer) -> None:
    [(pack, rejected)] = stage_of(make(max_length=16, long_texts="reject"))(
        [[record(0, None), record(1, request("word " * 15))]]
    )
    assert pack is None
    assert len(rejected) == 2


@given(
    groups=st.lists(
        st.lists(st.one_of(st.none(), st.binary(max_size=5), sentences.map(request)), min_size=1, max_size=5),
        max_size=5,
    )
)
@settings(max_examples=40, deadline=None)
def test_groups_tokenized_together_are_what_they_are_alone(
    make: MakeTokenizer, groups: Sequence[Sequence[bytes | None]]
) -> None:
    stage = stage_of(make(max_length=16, stride=4))
    records = [
        [record(offset, value, partition=partition) for offset, value in enumerate(group)]
        for partition, group in enumerate(groups)
    ]
    together = stage(records)
    assert len(together) == len(groups)
    for group, (pack, rejected) in zip(records, together, strict=True):
        [(alone, _)] = stage([group])
        assert pack == alone
        assert sorted([*offsets(pack), *(each.record.source.offset for each in rejected)]) == list(range(len(group)))
