"""Token classification: each token's logits become entities, as `transformers`' TokenClassificationPipeline answers.

    tokens -> (words, by the strategies that know words) -> groups of one entity -> without those to be ignored

A word is a token and those that continue it. Where the vocabulary marks what continues a word (WordPiece), that says
so; elsewhere, as in `transformers`, whatever has no space before it continues a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from schemas.errors import BadRecord, Reason
from schemas.packs import SPECIAL, PackedText
from schemas.parameters import AggregationStrategy, Parameters
from schemas.results import Entity, EntityGroup, Output
from stages.classification import softmax
from stages.token_words import TokenWords

# As `transformers` has it: what is no entity.
_IGNORED = ("O",)


@dataclass(frozen=True, slots=True)
class _Token:
    """`scores` (labels,), and whether it `continues` the word before it."""

    index: int
    word: str
    start: int
    end: int
    scores: NDArray[np.float64]
    continues: bool


@dataclass(frozen=True, slots=True)
class _Labelled:
    """A token or a word, and what it is found to be."""

    label: str
    score: float
    word: str
    start: int
    end: int


class TokenClassification:
    """Entities of a text: of each token (`none`), or of tokens of one entity that follow one another, each token for
    itself (`simple`) or each word at once: by its `first` token's scores, its tokens' `average`, or those of the one
    that is surest (`max`)."""

    def __init__(
        self, labels: tuple[str, ...], words: TokenWords, *, aggregation_strategy: AggregationStrategy
    ) -> None:
        self._labels = labels
        self._words = words
        self._strategy: AggregationStrategy = aggregation_strategy

    def of_tokens(self, rows: NDArray[np.float64], details: NDArray[np.int32], text: PackedText) -> Output:
        if rows.shape[1] != len(self._labels):
            raise BadRecord(Reason.BAD_PACK, f"{rows.shape[1]} logits for {len(self._labels)} labels")
        asked = text.parameters or Parameters()
        strategy = self._strategy if asked.aggregation_strategy is UNSET else asked.aggregation_strategy
        ignored = _IGNORED if asked.ignore_labels is UNSET else asked.ignore_labels
        [sentence] = text.echo or [""]
        tokens = self._tokens(softmax(rows), details, sentence)
        if strategy == "none":
            entities = [(token.index, self._labelled(token.scores, token)) for token in tokens]
            return [
                Entity(each.label, each.score, index, each.word, each.start, each.end)
                for index, each in entities
                if each.label not in ignored
            ]
        if strategy == "simple":
            pieces = [self._labelled(token.scores, token) for token in tokens]
        else:
            pieces = [self._word(word, strategy) for word in _words(tokens)]
        groups = [self._group(group) for group in _groups(pieces)]
        return [group for group in groups if group.entity_group not in ignored]

    def _tokens(self, scores: NDArray[np.float64], details: NDArray[np.int32], sentence: str) -> list[_Token]:
        """Of the text, without special ones. `index` counts those too."""
        tokens: list[_Token] = []
        for index, (number, place, start, end) in enumerate(details.tolist()):
            if place == SPECIAL:
                continue
            word, written = self._words.token(number), sentence[start:end]
            if number == self._words.unknown:
                word, continues = written, False
            elif self._words.marks_subwords:
                continues = len(word) != len(written)
            else:
                continues = start > 0 and " " not in sentence[start - 1 : start + 1]
            tokens.append(_Token(index, word, start, end, scores[index], continues))
        return tokens

    def _word(self, tokens: Sequence[_Token], strategy: AggregationStrategy) -> _Labelled:
        if strategy == "first":
            scores = tokens[0].scores
        elif strategy == "max":
            scores = max((token.scores for token in tokens), key=np.max)
        else:
            scores = np.mean([token.scores for token in tokens], axis=0)
        word = self._words.joined([token.word for token in tokens])
        return self._labelled(scores, _Token(0, word, tokens[0].start, tokens[-1].end, scores, continues=False))

    def _labelled(self, scores: NDArray[np.float64], of: _Token) -> _Labelled:
        best = int(scores.argmax())
        return _Labelled(self._labels[best], float(scores[best]), of.word, of.start, of.end)

    def _group(self, pieces: Sequence[_Labelled]) -> EntityGroup:
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


def _groups(pieces: Sequence[_Labelled]) -> Iterator[list[_Labelled]]:
    """Of one entity; one that begins (B-) is another one."""
    group: list[_Labelled] = []
    for piece in pieces:
        if group and (piece.label.startswith("B-") or _kind(piece.label) != _kind(group[-1].label)):
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def _kind(label: str) -> str:
    return label[2:] if label.startswith(("B-", "I-")) else label
