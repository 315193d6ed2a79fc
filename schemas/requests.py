"""Requests: what a producer writes to `<ensemble>.requests`.

JSON `{"text": "...", "text_pair": "...", "parameters": {...}, "id": "..."}`, all but the text optional, or, where the
ensemble says `format: text`, the text itself in UTF-8; of other tasks what they read (RankingRequest,
ZeroShotRequest, QuestionRequest).
A request without an id takes it from the CloudEvents header `ce_id`, and where there is none from its place:
`topic/partition/offset`, so that a repeat of the same record carries the same id.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import suppress
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from schemas.errors import BadRecord, Reason
from schemas.headers import CLOUDEVENTS_ID
from schemas.json_values import JSON_ERRORS, decode_utf8, json_refusal
from schemas.parameters import NOTHING_ASKED, Parameters, allowed_values, asked_or
from schemas.records import Headers, InputRecord, Source

RequestFormat = Literal["json", "text"]


# What an ensemble's requests look like: by what its models' tasks read.
RequestKind = Literal["text", "ranking", "zero-shot", "question"]
# What a tokenizer reads: a text, or a pair of them.
TextInput = str | tuple[str, str]

# Of one request: as many windows as a megabyte of text has.
MAX_PAIRS = 1_000

# As `transformers` has it.
HYPOTHESIS_TEMPLATE = "This example is {}."


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False, kw_only=True):
    """What all requests may say."""

    id: str | None = None
    parameters: Parameters | None = None


class TextRequest(_Body, frozen=True, forbid_unknown_fields=True, gc=False, kw_only=True):
    """A text to be embedded, classified or filled in; `text_pair` is read behind it, as the second of a pair."""

    text: str
    text_pair: str | None = None


class RankingRequest(_Body, frozen=True, forbid_unknown_fields=True, gc=False, kw_only=True):
    """Passages to be put in order by what they say to a query."""

    query: str
    passages: Annotated[list[str], Meta(min_length=1, max_length=MAX_PAIRS)]


class ZeroShotRequest(_Body, frozen=True, forbid_unknown_fields=True, gc=False, kw_only=True):
    """A text, and the labels that may be its."""

    sequence: str
    candidate_labels: Annotated[list[str], Meta(min_length=1, max_length=MAX_PAIRS)]


class QuestionRequest(_Body, frozen=True, forbid_unknown_fields=True, gc=False, kw_only=True):
    """A question, and the text that its answer is a part of."""

    question: Annotated[str, Meta(min_length=1)]
    context: Annotated[str, Meta(min_length=1)]


# Of tasks that read something else than texts.
_KINDS: dict[str, RequestKind] = {
    "text-ranking": "ranking",
    "zero-shot-classification": "zero-shot",
    "question-answering": "question",
}


# They ask for numbers of each token, and for what is known of it.
TOKEN_TASKS = frozenset({"feature-extraction", "token-classification", "fill-mask", "question-answering"})
# And of those, which ask what characters a token is of.
OFFSET_TASKS = frozenset({"token-classification", "fill-mask"})
# They read no pairs.
ONE_TEXT_TASKS = frozenset({"token-classification", "fill-mask"})


def request_kind(tasks: Collection[str]) -> RequestKind:
    """What tasks read together. Raises ValueError where they do not read the same."""
    kinds = {_KINDS.get(task, "text") for task in tasks}
    if len(kinds) != 1:
        raise ValueError(f"{', '.join(sorted(tasks))} read different requests")
    return kinds.pop()


Body = TextRequest | RankingRequest | ZeroShotRequest | QuestionRequest


class Request(msgspec.Struct, frozen=True, gc=False):
    """Texts or pairs to be answered together, with what their result must give back: id, key, headers and source.

    `echo` is what the result repeats, where it does.
    """

    id: str
    inputs: list[TextInput]
    key: bytes | None
    headers: Headers
    source: Source
    parameters: Parameters | None = None
    echo: list[str] | None = None


class _Named(msgspec.Struct, gc=False):
    """What is looked for in a value that is no request."""

    id: str | None = None


# In the decoder's messages.
_PLACE_OF_PARAMETER = re.compile(r" - at `\$\.parameters(?:\.(?P<name>\w+)[^`]*)?`\Z")

BODIES: dict[RequestKind, type[Body]] = {
    "text": TextRequest,
    "ranking": RankingRequest,
    "zero-shot": ZeroShotRequest,
    "question": QuestionRequest,
}
_decoders: dict[RequestKind, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(body) for kind, body in BODIES.items()
}
_named = msgspec.json.Decoder(_Named)
_SHAPES: dict[RequestKind, str] = {
    "text": '{"text": "..."}',
    "ranking": '{"query": "...", "passages": ["..."]}',
    "zero-shot": '{"sequence": "...", "candidate_labels": ["..."]}',
    "question": '{"question": "...", "context": "..."}',
}


def decode_request(
    record: InputRecord,
    *,
    format: RequestFormat,
    max_text_bytes: int,
    kind: RequestKind = "text",
    known_parameters: Collection[str] = Parameters.__struct_fields__,
) -> Request:
    """The request in a record. `known_parameters` is for messages: the names of those that its ensemble knows.

    Raises BadRecord: value null, not UTF-8, not JSON, not of the documented shape, or a text of more than
    `max_text_bytes` bytes of UTF-8.
    """
    if record.flaw is not None:
        raise BadRecord(Reason.BAD_HEADERS, record.flaw)
    if record.value is None:
        raise BadRecord(Reason.NULL_VALUE, "the record has no value (a tombstone)")
    if format == "json":
        body = _decode_json(record.value, kind, known_parameters)
    else:
        body = TextRequest(text=decode_utf8(record.value))
    size_bytes = sum(map(_size_bytes, _texts(body)))
    if size_bytes > max_text_bytes:
        raise BadRecord(
            Reason.TEXT_TOO_LARGE,
            f"the text has {size_bytes} bytes, the ensemble allows {max_text_bytes} (requests.max_text_bytes)",
        )
    inputs, echo = _inputs(body)
    return Request(
        body.id or _header_id(record.headers) or str(record.source),
        inputs,
        record.key,
        record.headers,
        record.source,
        body.parameters,
        echo,
    )


def readable_id(record: InputRecord, *, format: RequestFormat) -> str:
    """A request's id as in `decode_request`, of a record that may be none: as much as can be read of it."""
    named = _Named()
    if format == "json":
        with suppress(*JSON_ERRORS):
            named = _named.decode(record.value or b"")
    return named.id or _header_id(record.headers) or str(record.source)


def _texts(body: Body) -> list[str]:
    """What a request brings, each once."""
    match body:
        case TextRequest():
            return [body.text] if body.text_pair is None else [body.text, body.text_pair]
        case RankingRequest():
            return [body.query, *body.passages]
        case ZeroShotRequest():
            return [body.sequence, *body.candidate_labels]
        case QuestionRequest():
            return [body.question, body.context]


def _inputs(body: Body) -> tuple[list[TextInput], list[str] | None]:
    """What is read, and what is repeated."""
    match body:
        case TextRequest():
            return [body.text if body.text_pair is None else (body.text, body.text_pair)], None
        case RankingRequest():
            return [(body.query, passage) for passage in body.passages], None
        case ZeroShotRequest():
            template = asked_or((body.parameters or NOTHING_ASKED).hypothesis_template, HYPOTHESIS_TEMPLATE)
            if "{}" not in template:
                message = "parameters.hypothesis_template: has no {}, where the label goes"
                raise BadRecord(Reason.BAD_REQUEST, message)
            pairs: list[TextInput] = [(body.sequence, template.replace("{}", label)) for label in body.candidate_labels]
            return pairs, [body.sequence, *body.candidate_labels]
        case QuestionRequest():
            return [(body.question, body.context)], [body.context]


def _decode_json(value: bytes, kind: RequestKind, known: Collection[str]) -> Body:
    try:
        body: Body = _decoders[kind].decode(value)
    except JSON_ERRORS as err:
        raise json_refusal(
            value,
            err,
            wrong=Reason.BAD_REQUEST,
            another_shape=_what_is_right(str(err), kind, known),
            empty=f"; a request is {_SHAPES[kind]}",
            no_json="; plain text needs requests.format: text",
        ) from err
    return body


def _what_is_right(message: str, kind: RequestKind, known: Collection[str]) -> str:
    """What to say behind the decoder's message, which ends with the place."""
    place = _PLACE_OF_PARAMETER.search(message)
    if place is None:
        return f"; a request is {_SHAPES[kind]}"
    if place["name"] is None:
        return f"; known: {', '.join(known) or 'none'}"
    if message.startswith("Expected `array` of length >= 1"):
        return "; give one at least, or leave it out"
    allowed = allowed_values(place["name"]) if message.startswith("Invalid enum value") else []
    return f"; allowed: {', '.join(allowed)}" if allowed else ""


def _size_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _header_id(headers: Headers) -> str | None:
    for name, value in headers:
        if name == CLOUDEVENTS_ID and value:
            return value.decode(errors="replace")
    return None
