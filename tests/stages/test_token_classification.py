"""Entities: how tokens become words and groups, by hand; the rest is compared with transformers (tests/tasks)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models

from schemas.errors import BadRecord
from schemas.packs import SPECIAL, PackedText
from schemas.parameters import Parameters
from schemas.results import Entity, EntityGroup
from stages.token_classification import TokenClassification
from stages.token_words import TokenWords

VOCABULARY = {"[CLS]": 0, "[SEP]": 1, "[UNK]": 2, "ann": 3, "##a": 4, "paris": 5, "in": 6}
LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TEXT = "Anna Ω in Paris"


@pytest.fixture(scope="module")
def words() -> TokenWords:
    tokenizer = Tokenizer(models.WordPiece(VOCABULARY, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    return TokenWords(tokenizer, unknown=2)


# [CLS] ann ##a [UNK] in paris [SEP]: number, place, start, end.
DETAILS = np.array(
    [
        [0, SPECIAL, 0, 0],
        [3, 0, 0, 3],
        [4, 1, 3, 4],
        [2, 2, 5, 6],
        [6, 3, 7, 9],
        [5, 4, 10, 15],
        [1, SPECIAL, 0, 0],
    ],
    np.int32,
)


def logits(*labels: str) -> np.ndarray:
    """Each is sure of its label, the later the surer."""
    rows = np.zeros((len(labels), len(LABELS)))
    for place, label in enumerate(labels):
        rows[place, LABELS.index(label)] = 2.0 + place
    return rows


def answer(words: TokenWords, rows: np.ndarray, strategy: Any = "none", **parameters: Any) -> Any:
    text = PackedText("id", None, [], 0, 1, len(DETAILS), False, Parameters(**parameters), [TEXT])
    return TokenClassification(LABELS, words, aggregation_strategy=strategy).of_tokens(rows, DETAILS, text)


ROWS = logits("O", "B-PER", "I-LOC", "I-PER", "O", "B-LOC", "O")


def test_each_token_has_its_characters(words: TokenWords) -> None:
    found = answer(words, ROWS)
    assert all(isinstance(each, Entity) for each in found)
    assert [(each.entity, each.index, each.word, TEXT[each.start : each.end]) for each in found] == [
        ("B-PER", 1, "ann", "Ann"),
        ("I-LOC", 2, "##a", "a"),
        ("I-PER", 3, "Ω", "Ω"),  # what the vocabulary lacks is told as the text has it
        ("B-LOC", 5, "paris", "Paris"),
    ]


@pytest.mark.parametrize(
    ("strategy", "wanted"),
    [
        ("simple", [("PER", "ann", 0, 3), ("LOC", "##a", 3, 4), ("PER", "Ω", 5, 6), ("LOC", "paris", 10, 15)]),
        ("first", [("PER", "anna Ω", 0, 6), ("LOC", "paris", 10, 15)]),
        ("max", [("LOC", "anna", 0, 4), ("PER", "Ω", 5, 6), ("LOC", "paris", 10, 15)]),
        ("average", [("LOC", "anna", 0, 4), ("PER", "Ω", 5, 6), ("LOC", "paris", 10, 15)]),
    ],
)
def test_tokens_are_put_together(words: TokenWords, strategy: str, wanted: list[Any]) -> None:
    for found in (answer(words, ROWS, strategy), answer(words, ROWS, aggregation_strategy=strategy)):
        assert all(isinstance(each, EntityGroup) for each in found)
        assert [(each.entity_group, each.word, each.start, each.end) for each in found] == wanted


def test_what_begins_is_another_one(words: TokenWords) -> None:
    rows = logits("O", "B-PER", "I-PER", "B-PER", "I-PER", "I-LOC", "O")
    found = answer(words, rows, "first")
    assert [(each.entity_group, each.word) for each in found] == [("PER", "anna"), ("PER", "Ω in"), ("LOC", "paris")]


def test_labels_that_are_ignored(words: TokenWords) -> None:
    assert [each.entity for each in answer(words, ROWS, ignore_labels=["B-PER", "I-LOC", "I-PER"])] == ["O", "B-LOC"]
    assert [each.entity_group for each in answer(words, ROWS, "first", ignore_labels=["PER"])] == ["O", "LOC"]
    assert len(answer(words, ROWS, ignore_labels=[])) == 5


def test_labels_that_the_file_has_ignored(words: TokenWords) -> None:
    task = TokenClassification(LABELS, words, aggregation_strategy="none", ignore_labels=("O", "B-LOC"))

    def found(asked: Parameters | None) -> list[str]:
        text = PackedText("id", None, [], 0, 1, len(DETAILS), False, asked, [TEXT])
        answered: Any = task.of_tokens(ROWS, DETAILS, text)
        return [each.entity for each in answered]

    assert found(None) == ["B-PER", "I-LOC", "I-PER"]
    assert found(Parameters(ignore_labels=[])) == ["B-PER", "I-LOC", "I-PER", "O", "B-LOC"]


def test_numbers_of_another_model(words: TokenWords) -> None:
    with pytest.raises(BadRecord, match="3 logits for 5 labels"):
        answer(words, np.zeros((7, 3)))


def test_a_token_that_nobody_knows(words: TokenWords) -> None:
    assert [words.token(number) for number in (-1, 99, 3)] == ["", "", "ann"]


@pytest.mark.parametrize("echo", [None, [], ["a", "b"]])
def test_a_pack_without_the_text_is_a_bad_one(words: TokenWords, echo: list[str] | None) -> None:
    text = PackedText("id", None, [], 0, 1, len(DETAILS), False, echo=echo)
    task = TokenClassification(LABELS, words, aggregation_strategy="none")
    with pytest.raises(BadRecord, match="the pack has not the text itself: do all stages run the same file\\?"):
        task.of_tokens(logits(*["O"] * len(DETAILS)), DETAILS, text)
