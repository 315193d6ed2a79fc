"""Token classification: each token's logits become entities, as `transformers`' TokenClassificationPipeline answers.

    tokens -> (words, by the strategies that know words) -> groups of one entity -> without those to be ignored

A word is a token and those that continue it. Where the vocabulary marks what continues a word (WordPiece), that says
so; elsewhere, as in `transformers`, whatever has no space before it continues a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.errors import BadRecord, Reason
from schemas.packs import SPECIAL, PackedText
from schemas.parameters import NOTHING_ASKED, AggregationStrategy, asked_or
from schemas.results import Entity, EntityGroup, Output
from stages.classification import softmax
from stages.token_words import TokenWords

# As `transformers` has it: what is no entity.
IGNORED = ("O",)


class _Token(NamedTuple):
    """A token, or a word of several: what it is found to be, `at` which place (special tokens count), and whether it
    `continues` the word before it."""

    at: int
    label: str
    score: float
    word: str
    start: int
    end: int
    continues: bool


class TokenClassification:
    """Entities of a text: of each token (`none`), or of tokens of one entity that follow one another, each token for
    itself (`simple`) or each word at once: by its `first` token's scores, its tokens' `average`, or those of the one
    that is surest (`max`)."""

    def __init__(
        self,
        labels: tuple[str, ...],
        words: TokenWords,
        *,
        aggregation_strategy: AggregationStrategy,
        ignore_labels: tuple[str, ...] = IGNORED,
    ) -> None:
        self._labels = labels
        self._words = words
        self._strategy: AggregationStrategy = aggregation_strategy
        self._ignored = ignore_labels

    def of_tokens(self, rows: NDArray[np.float64], details: NDArray[np.int32], text: PackedText) -> Output:
        if rows.shape[1] != len(self._labels):
            raise BadRecord(Reason.BAD_PACK, f"{rows.shape[1]} logits for {len(self._labels)} labels")
        asked = text.parameters or NOTHING_ASKED
        strategy = asked_or(asked.aggregation_strategy, self._strategy)
        ignored = asked_or(asked.ignore_labels, self._ignored)
        if not text.echo or len(text.echo) != 1:
            raise BadRecord(Reason.BAD_PACK, "the pack has not the text itself: do all stages run the same file?")
        [sentence] = text.echo
        scores = softmax(rows)
        tokens = self._tokens(scores, details, sentence)
        if strategy == "none":
            return [
                Entity(each.label, each.score, each.at, each.word, each.start, each.end)
                for each in tokens
                if each.label not in ignored
            ]
        if strategy != "simple":
            tokens = [self._word(word, scores, strategy) for word in _words(tokens)]
        groups = [self._group(group) for group in _groups(tokens)]
        return [group for group in groups if group.entity_group not in ignored]

    def _tokens(self, scores: NDArray[np.float64], details: NDArray[np.int32], sentence: str) -> list[_Token]:
        """Of the text, without special ones."""
        best, highest = scores.argmax(axis=1).tolist(), scores.max(axis=1).tolist()
        tokens: list[_Token] = []
        for at, (number, place, start, end) in enumerate(details.tolist()):
            if place == SPECIAL:
                continue
            word = self._words.token(number)
            if number == self._words.unknown:
                word, continues = sentence[start:end], False
            elif self._words.marks_subwords:
                continues = len(word) != len(sentence[start:end])
            else:
                continues = start > 0 and " " not in sentence[start - 1 : start + 1]
            tokens.append(_Token(at, self._labels[best[at]], highest[at], word, start, end, continues))
        return tokens

    def _word(self, tokens: Sequence[_Token], scores: NDArray[np.float64], strategy: AggregationStrategy) -> _Token:
        word = self._words.joined([token.word for token in tokens])
        labelled = tokens[0]
        if strategy == "max":
            labelled = max(tokens, key=lambda token: token.score)
        label, score = labelled.label, labelled.score
        if strategy == "average":
            mean = scores[[token.at for token in tokens]].mean(axis=0)
            label, score = self._labels[mean.argmax()], float(mean.max())
        return _Token(tokens[0].at, label, score, word, tokens[0].start, tokens[-1].end, continues=False)

    def _group(self, pieces: Sequence[_Token]) -> EntityGroup:
        return EntityGroup(
            entity_group=pieces[0].label.split("-", 1)[-1],
            score=sum(piece.score for piece in pieces) / len(pieces),
            word=self._words.joined([piece.word for piece in pieces]),
            start=pieces[0].start,
            end=pieces[-1].end,
        )


def _words(tokens: Sequence[_Token]) -> Iterator[list[_Token]]:
    word: list[_Token] = []
    for token in tokens:
        if word and not token.continues:
            yield word
            word = []
        word.append(token)
    if word:
        yield word


def _groups(pieces: Sequence[_Token]) -> Iterator[list[_Token]]:
    """Of one entity; one that begins (B-) is another one."""
    group: list[_Token] = []
    for piece in pieces:
        if group and (piece.label.startswith("B-") or _kind(piece.label) != _kind(group[-1].label)):
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def _kind(label: str) -> str:
    return label[2:] if label.startswith(("B-", "I-")) else label
