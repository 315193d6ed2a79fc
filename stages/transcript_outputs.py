"""A result's outputs as a transcript has them: of the utterance's text alone, in numbers that a repeat gives again."""

from __future__ import annotations

from typing import Any

import msgspec

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def with_context(text: str, context: str) -> str:
    """What the ensemble reads."""
    return f"{context} {text}" if context else text


def transcript_outputs(outputs: bytes, *, context: str, decimals: int) -> bytes:
    """`outputs` (JSON) with the context taken off and numbers rounded to `decimals`.

    Characters are counted from where the utterance begins; entities that lie in the context are left out, and what
    begins there and ends in the utterance is cut. Numbers of one text differ in their last digits with what else was in
    the batch: unrounded, a transcript would not be the same twice. `index`, an entity's place among tokens, and lists
    of tokens' vectors still count the context.
    """
    shift = len(with_context("", context))
    return _encode({name: _plain(output, shift, decimals) for name, output in _decode(outputs).items()})


def _plain(value: Any, shift: int, decimals: int) -> Any:
    match value:
        case float():
            return round(value, decimals) + 0.0  # no negative zero
        case list():
            return [_plain(each, shift, decimals) for each in value if not _before(each, shift)]
        case dict():
            plain = {name: _plain(each, shift, decimals) for name, each in value.items()}
            if shift and _has_span(value):
                plain |= {"start": max(0, value["start"] - shift), "end": value["end"] - shift}
            return plain
    return value


def _before(value: Any, shift: int) -> bool:
    return bool(shift) and isinstance(value, dict) and _has_span(value) and value["end"] <= shift


def _has_span(value: dict[str, Any]) -> bool:
    return isinstance(value.get("start"), int) and isinstance(value.get("end"), int)
