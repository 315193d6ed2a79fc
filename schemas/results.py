"""Results: what Penstock writes to `<ensemble>.results`, one JSON object a request.

An output has the shape that `transformers.pipeline` gives for one text: text classification a list of
`{"label", "score"}`, a sentence embedding a list of numbers, feature extraction such a list for each token, token
classification its entities, fill-mask what may stand in a mask's place, zero-shot classification its labels and scores,
question answering its answer, or a list of them. Text ranking answers as text-embeddings-inference does.
"""

from __future__ import annotations

from typing import Any

import msgspec

from schemas.records import Source
from schemas.urgency import Unanswered


class Label(msgspec.Struct, frozen=True, gc=False):
    """One class and its probability."""

    label: str
    score: float


class Entity(msgspec.Struct, frozen=True, gc=False):
    """One token: what it is, its place among the text's tokens, and its characters in the text."""

    entity: str
    score: float
    index: int
    word: str
    start: int
    end: int


class EntityGroup(msgspec.Struct, frozen=True, gc=False):
    """Tokens that are one entity, and their characters in the text."""

    entity_group: str
    score: float
    word: str
    start: int
    end: int


class Filled(msgspec.Struct, frozen=True, gc=False):
    """A token that may stand in a mask's place: its probability, its number, and the text with it."""

    score: float
    token: int
    token_str: str
    sequence: str


class Ranked(msgspec.Struct, frozen=True, gc=False):
    """One passage, by its place in the request, and its score."""

    index: int
    score: float


class ZeroShot(msgspec.Struct, frozen=True, gc=False):
    """The sequence and its candidate labels, the best first."""

    sequence: str
    labels: list[str]
    scores: list[float]


class Answer(msgspec.Struct, frozen=True, gc=False):
    """A part of the context that answers the question, and its characters there; nothing where it has no answer."""

    score: float
    start: int
    end: int
    answer: str


# By task, in one of several shapes where its parameters choose.
TASK_OUTPUTS: dict[str, tuple[Any, ...]] = {
    "text-classification": (list[Label],),
    "sentence-embedding": (list[float],),
    "feature-extraction": (list[list[float]],),
    "token-classification": (list[Entity], list[EntityGroup]),
    "fill-mask": (list[Filled], list[list[Filled]]),
    "text-ranking": (list[Ranked],),
    "zero-shot-classification": (ZeroShot,),
    "question-answering": (Answer, list[Answer]),
}
Output = (
    list[Label]
    | list[float]
    | list[list[float]]
    | list[Ranked]
    | list[Entity]
    | list[EntityGroup]
    | list[Filled]
    | list[list[Filled]]
    | ZeroShot
    | Answer
    | list[Answer]
)


class Result(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The answer to one request. `tokens` counts what the model read, special tokens included; `chunks` says
    into how many windows the text was cut; `truncated` says that its end was not read. One that is `unanswered`,
    `expired` or `superseded`, has no outputs."""

    id: str
    outputs: dict[str, Output]
    tokens: int
    truncated: bool
    chunks: int
    source: Source
    unanswered: Unanswered | None = None


_encoder = msgspec.json.Encoder()


def encode_result(result: Result) -> bytes:
    """UTF-8 JSON, no line break in it."""
    return _encoder.encode(result)
