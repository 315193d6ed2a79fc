"""Blame: who a stage's code fails on is found, told without the user's words, and nobody is where it always fails."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import BadRecord, Reason
from schemas.records import InputRecord, Source
from stages.blame import answer_apart, told
from stages.errors import StageError
from stages.text_tokenizer import TokenizedText
from stages.tokenize import TokenizeStage


class Quoting:
    """Upper case; fails on a text with `!` and quotes it, as int() and dicts do."""

    def __init__(self, *, always: bool = False) -> None:
        self.calls = 0
        self._always = always

    def __call__(self, texts: Sequence[str]) -> list[str | BadRecord]:
        self.calls += 1
        for text in texts:
            if "!" in text or self._always:
                raise ValueError(f"invalid literal: {text!r}")
        return [text.upper() for text in texts]


def apart(texts: Sequence[str], answer: Quoting) -> list[str | BadRecord]:
    return answer_apart(texts, answer, harmless=lambda: answer(["a"]), text_of=str)


@given(st.lists(st.booleans(), max_size=70))
def test_who_fails_is_told_and_all_others_are_answered(fails: list[bool]) -> None:
    answer = Quoting()
    outcomes = apart([f"secret{place}{'!' * bad}" for place, bad in enumerate(fails)], answer)
    assert [isinstance(outcome, BadRecord) for outcome in outcomes] == fails
    assert [o for o in outcomes if isinstance(o, str)] == [f"SECRET{n}" for n, bad in enumerate(fails) if not bad]
    if fails:
        assert answer.calls <= sum(fails) * 2 * math.ceil(math.log2(len(fails))) + 1 + any(fails)


def test_the_message_has_the_type_the_words_that_are_not_the_user_s_and_the_line() -> None:
    [outcome] = apart(["My Secret literal!"], Quoting())
    assert isinstance(outcome, BadRecord)
    assert outcome.reason is Reason.STAGE_FAILED
    assert outcome.message.startswith("ValueError: invalid ...: '... ... ...!' (test_blame.py:")


def test_a_message_of_several_lines_is_one_line() -> None:
    assert told(ValueError("one\n\n  two\r\nthree\u2028four\n")) == "ValueError: one two three four"
    assert told(ValueError("\n")) == "ValueError"


@pytest.mark.parametrize("text", ["Zürich, 漢字 and ẞ", "tab\there\nand there", 'it\'s "quoted"'])
@pytest.mark.parametrize("quote", [str, repr, ascii, str.casefold])
def test_no_word_of_the_text_is_told_however_it_is_quoted(text: str, quote: object) -> None:
    assert callable(quote)
    message = told(ValueError(quote(text)), text)
    assert not any(word.isalnum() for word in message.removeprefix("ValueError: "))


def test_where_every_text_fails_nobody_is_blamed_and_nobody_is_quoted() -> None:
    with pytest.raises(StageError) as raised:
        apart(["secret", "more"], Quoting(always=True))
    assert "secret" not in str(raised.value)
    assert str(raised.value).startswith("fails whatever the text: ValueError")


def test_code_that_breaks_for_good_on_the_way_blames_nobody() -> None:
    answer = Quoting()

    def breaking(texts: Sequence[str]) -> list[str | BadRecord]:
        try:
            return answer(texts)
        except ValueError:
            answer._always = True
            raise

    with pytest.raises(StageError):
        answer_apart(["a", "b!", "c"], breaking, harmless=lambda: answer(["a"]))


def test_a_tokenizer_that_fails_on_a_text_makes_one_dead_letter() -> None:
    class Tokenizer:
        max_length = 8

        def __call__(self, texts: Sequence[str]) -> list[TokenizedText | BadRecord]:
            if any("!" in text for text in texts):
                raise IndexError(f"no token for {texts}")
            return [TokenizedText([np.ones(2, np.int32)], truncated=False) for _ in texts]

    stage = TokenizeStage(Tokenizer(), request_format="json", max_text_bytes=100)  # type: ignore[arg-type]
    groups = [
        [record(0, "a"), record(1, "b")],
        [record(0, "c"), record(1, "secret!"), record(2, "d")],
        [record(0, "!")],
    ]
    offsets = [
        ([text.offset for text in pack.texts] if pack else [], [each.record.source.offset for each in rejected])
        for pack, rejected in stage(groups)
    ]
    assert offsets == [([0, 1], []), ([0, 2], [1]), ([], [0])]
    [rejected] = stage(groups)[1][1]
    assert rejected.error.reason is Reason.STAGE_FAILED
    assert "secret" not in rejected.error.message


def record(offset: int, text: str) -> InputRecord:
    return InputRecord(Source("r", 0, offset), None, json.dumps({"text": text}).encode(), [])
