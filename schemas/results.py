"""Results: what Penstock writes to `<ensemble>.results`, one JSON object a request.

An output has the shape that `transformers.pipeline` gives for one text: text classification a list of
`{"label", "score"}`, a sentence embedding a list of floats.
"""

from __future__ import annotations

import msgspec

from schemas.records import Source


class Label(msgspec.Struct, frozen=True, gc=False):
    """One class and its probability."""

    label: str
    score: float


Output = list[Label] | list[float]


class Result(msgspec.Struct, frozen=True, gc=False):
    """The answer to one request. `tokens` counts what the model read, special tokens included; `chunks` says
    into how many windows the text was cut; `truncated` says that its end was not read."""

    id: str
    outputs: dict[str, Output]
    tokens: int
    truncated: bool
    chunks: int
    source: Source


_encoder = msgspec.json.Encoder()


def encode_result(result: Result) -> bytes:
    """UTF-8 JSON, no line break in it."""
    return _encoder.encode(result)
