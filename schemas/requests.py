"""Requests: what a producer writes to `<ensemble>.requests`.

JSON `{"text": "...", "id": "..."}` (`id` optional), or, where the ensemble says `format: text`, the text
itself in UTF-8. A request without an id takes it from the CloudEvents header `ce_id`, and where there is none
from its place: `topic/partition/offset`, so that a repeat of the same record carries the same id.
"""

from __future__ import annotations

import codecs
import re
from typing import Literal

import msgspec

from schemas.errors import BadRecord, Reason
from schemas.headers import CLOUDEVENTS_ID
from schemas.records import Headers, InputRecord, Source

RequestFormat = Literal["json", "text"]


class RequestBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """The JSON object in a request record."""

    text: str
    id: str | None = None


class Request(msgspec.Struct, frozen=True, gc=False):
    """One text to be answered, with what its result must give back: id, key, headers and source."""

    id: str
    text: str
    key: bytes | None
    headers: Headers
    source: Source


# Escapes of JSON in a row: a backslash that is escaped or a whole pair is passed over, half of a pair is caught.
_HALF_PAIR = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\."
)

_decoder = msgspec.json.Decoder(RequestBody)


def decode_request(record: InputRecord, *, format: RequestFormat, max_text_bytes: int) -> Request:
    """The request in a record.

    Raises BadRecord: value null, not UTF-8, not JSON, not of the documented shape, or a text of more than
    `max_text_bytes` bytes of UTF-8.
    """
    if record.flaw is not None:
        raise BadRecord(Reason.BAD_HEADERS, record.flaw)
    if record.value is None:
        raise BadRecord(Reason.NULL_VALUE, "the record has no value (a tombstone)")
    body = _decode_json(record.value) if format == "json" else RequestBody(text=_decode_utf8(record.value))
    size_bytes = len(body.text) if body.text.isascii() else len(body.text.encode())
    if size_bytes > max_text_bytes:
        raise BadRecord(
            Reason.TEXT_TOO_LARGE,
            f"the text has {size_bytes} bytes, the ensemble allows {max_text_bytes} (requests.max_text_bytes)",
        )
    return Request(
        id=body.id or _header_id(record.headers) or str(record.source),
        text=body.text,
        key=record.key,
        headers=record.headers,
        source=record.source,
    )


def _decode_json(value: bytes) -> RequestBody:
    try:
        return _decoder.decode(value)
    except msgspec.ValidationError as err:
        raise BadRecord(Reason.BAD_REQUEST, f'{err}; a request is {{"text": "..."}}') from err
    except msgspec.DecodeError as err:
        raise _no_json(value, str(err)) from err
    except UnicodeDecodeError as err:
        raise BadRecord(Reason.NOT_UTF8, str(err)) from err
    except RecursionError as err:
        raise BadRecord(Reason.BAD_REQUEST, "the JSON is nested too deeply") from err


def _no_json(value: bytes, message: str) -> BadRecord:
    """What to say of a value that the decoder can't read; its own words don't fit all."""
    _decode_utf8(value)
    if not value.strip():
        return BadRecord(Reason.NOT_JSON, 'the value is empty; a request is {"text": "..."}')
    if value.startswith(codecs.BOM_UTF8):
        return BadRecord(Reason.NOT_JSON, "the value begins with a byte-order mark, which JSON doesn't allow")
    half = next(filter(None, _HALF_PAIR.findall(value)), None)
    if half:
        return BadRecord(Reason.BAD_REQUEST, f"{half.decode()} is half of a surrogate pair: send both or neither")
    return BadRecord(Reason.NOT_JSON, f"{message}; plain text needs requests.format: text")


def _decode_utf8(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as err:
        raise BadRecord(Reason.NOT_UTF8, str(err)) from err


def _header_id(headers: Headers) -> str | None:
    for name, value in headers:
        if name == CLOUDEVENTS_ID and value:
            return value.decode(errors="replace")
    return None
