"""A record's value as JSON, and what is said of one that is none, by whoever reads it."""

from __future__ import annotations

import codecs
import re

import msgspec

from schemas.errors import BadRecord, Reason

# Escapes of JSON in a row: a backslash that is escaped or a whole pair is passed over, half of a pair is caught.
_HALF_PAIR = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\."
)


# Whatever a decoder raises.
JSON_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def json_refusal(
    value: bytes, err: Exception, *, wrong: Reason, another_shape: str, empty: str, no_json: str
) -> BadRecord:
    """What to say of a value that a decoder raised `err`, one of JSON_ERRORS, of; its own words don't fit all.

    Its reason is NOT_UTF8 or NOT_JSON, or `wrong` where it is JSON that is not read. What could stand there is said
    behind: in `another_shape` of JSON that means something else, in `empty` of nothing, in `no_json` of anything else.
    """
    if isinstance(err, msgspec.ValidationError):
        return BadRecord(wrong, f"{err}{another_shape}")
    if isinstance(err, RecursionError):
        return BadRecord(wrong, "the JSON is nested too deeply")
    try:
        decode_utf8(value)
    except BadRecord as no_text:
        return no_text
    if not value.strip():
        return BadRecord(Reason.NOT_JSON, f"the value is empty{empty}")
    if value.startswith(codecs.BOM_UTF8):
        return BadRecord(Reason.NOT_JSON, "the value begins with a byte-order mark, which JSON doesn't allow")
    half = next(filter(None, _HALF_PAIR.findall(value)), None)
    if half:
        return BadRecord(wrong, f"{half.decode()} is half of a surrogate pair: send both or neither")
    return BadRecord(Reason.NOT_JSON, f"{err}{no_json}")


def decode_utf8(value: bytes) -> str:
    """Raises BadRecord."""
    try:
        return value.decode()
    except UnicodeDecodeError as err:
        raise BadRecord(Reason.NOT_UTF8, f"the value is not UTF-8: {why_not_utf8(err)}") from err


def why_not_utf8(err: UnicodeDecodeError) -> str:
    """What is wrong with bytes that should be a text, and where."""
    return f"{err.reason} at its byte {err.start}"
