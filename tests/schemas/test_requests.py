"""What a producer may write to the requests topic, and what becomes of everything else."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import BadRecord, Reason
from schemas.headers import dead_letter_headers
from schemas.records import Headers, InputRecord, Source
from schemas.requests import Request, RequestFormat, decode_request, readable_id

PLACE = Source("reviews.requests", 3, 41)


def decode(
    value: bytes | None,
    *,
    format: RequestFormat = "json",
    headers: Headers | None = None,
    max_text_bytes: int = 1 << 20,
) -> Request:
    record = InputRecord(PLACE, b"key", value, headers or [])
    return decode_request(record, format=format, max_text_bytes=max_text_bytes)


def refusal(value: bytes | None, *, format: RequestFormat = "json", max_text_bytes: int = 1 << 20) -> BadRecord:
    with pytest.raises(BadRecord) as raised:
        decode(value, format=format, max_text_bytes=max_text_bytes)
    return raised.value


def test_a_request_keeps_what_its_result_must_give_back() -> None:
    headers: Headers = [("traceparent", b"00-1-2-01"), ("empty", None), ("traceparent", b"again")]
    request = decode(b'{"text": "Good.", "id": "a1"}', headers=headers)
    assert request == Request(id="a1", inputs=["Good."], key=b"key", headers=headers, source=PLACE)


@given(text=st.text(), id=st.text(min_size=1))
def test_any_text_comes_through_json_as_it_is(text: str, id: str) -> None:
    request = decode(msgspec.json.encode({"text": text, "id": id}))
    assert (request.inputs, request.id) == ([text], id)


@given(text=st.text())
def test_format_text_takes_the_whole_value_as_the_text(text: str) -> None:
    assert decode(text.encode(), format="text").inputs == [text]


def test_json_is_only_text_where_the_format_says_text() -> None:
    assert decode(b'{"text": "a"}', format="text").inputs == ['{"text": "a"}']


# The id of a result.


def test_an_id_in_the_body_comes_first() -> None:
    assert decode(b'{"text": "a", "id": "body"}', headers=[("ce_id", b"header")]).id == "body"


@pytest.mark.parametrize("body", [b'{"text": "a"}', b'{"text": "a", "id": null}', b'{"text": "a", "id": ""}'])
def test_without_one_the_cloudevents_header_names_the_request(body: bytes) -> None:
    assert decode(body, headers=[("other", b"x"), ("ce_id", b"header")]).id == "header"


@pytest.mark.parametrize("headers", [[], [("ce_id", None)], [("ce_id", b"")], [("CE_ID", b"x")]])
def test_without_either_the_place_does_so_that_a_repeat_has_the_same_id(headers: Headers) -> None:
    assert decode(b'{"text": "a"}', headers=headers).id == "reviews.requests/3/41"


def test_the_first_header_that_says_something_counts() -> None:
    assert decode(b'{"text": "a"}', headers=[("ce_id", None), ("ce_id", b"1"), ("ce_id", b"2")]).id == "1"


def test_a_header_that_is_not_utf8_still_names_the_request() -> None:
    assert decode(b'{"text": "a"}', headers=[("ce_id", b"\xff1")]).id == "\N{REPLACEMENT CHARACTER}1"


def test_what_is_no_request_has_an_id_all_the_same() -> None:
    """As much as can be read of it."""
    headers: Headers = [("ce_id", b"header")]
    for value, read in (
        (b'{"id": "body", "parameters": {"top_k": 0}}', "body"),
        (b'{"id": 5}', "header"),
        (b'{"id": "bo', "header"),
        (None, "header"),
    ):
        assert readable_id(InputRecord(PLACE, None, value, headers), format="json") == read
    assert readable_id(InputRecord(PLACE, None, b'{"id": "body"}', []), format="text") == str(PLACE)


def test_format_text_takes_its_id_from_header_or_place() -> None:
    assert decode(b"a", format="text", headers=[("ce_id", b"header")]).id == "header"
    assert decode(b"a", format="text").id == str(PLACE)


# Bad input, each with its reason.

DEEP = 100_000


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, Reason.NULL_VALUE),
        (b"\xff\xfe\x00", Reason.NOT_UTF8),
        (b'{"text": "caf\xe9"}', Reason.NOT_UTF8),
        (b'{"text": "cut off \xf0\x9f\x98"}', Reason.NOT_UTF8),
        (b'{"text": "a surrogate in UTF-8: \xed\xa0\x80"}', Reason.NOT_UTF8),
        (b'{"t\xff": "a"}', Reason.NOT_UTF8),
        ('{"text": "a"}'.encode("utf-16"), Reason.NOT_UTF8),
        (b"", Reason.NOT_JSON),
        (b"   ", Reason.NOT_JSON),
        (b"\x00", Reason.NOT_JSON),
        (b"plain text", Reason.NOT_JSON),
        (b'{"text": "a"', Reason.NOT_JSON),
        (b'{"text": "a",}', Reason.NOT_JSON),
        (b'{"text": "a"} and more', Reason.NOT_JSON),
        (b'{"text": "a"}{"text": "b"}', Reason.NOT_JSON),
        (b"{'text': 'a'}", Reason.NOT_JSON),
        (b'{"text": "a\nb"}', Reason.NOT_JSON),
        (b'\xef\xbb\xbf{"text": "a"}', Reason.NOT_JSON),
        (b'{"text": NaN}', Reason.NOT_JSON),
        (b"Infinity", Reason.NOT_JSON),
        (b'{"text": "\\ud800"}', Reason.BAD_REQUEST),
        (b'{"text": "\\udc00 and more"}', Reason.BAD_REQUEST),
        (b'{"text": "a", "id": "\\ud800 and more"}', Reason.BAD_REQUEST),
        (b"null", Reason.BAD_REQUEST),
        (b"5", Reason.BAD_REQUEST),
        (b'"a"', Reason.BAD_REQUEST),
        (b'["a"]', Reason.BAD_REQUEST),
        (b"{}", Reason.BAD_REQUEST),
        (b'{"id": "1"}', Reason.BAD_REQUEST),
        (b'{"text": null}', Reason.BAD_REQUEST),
        (b'{"text": 5}', Reason.BAD_REQUEST),
        (b'{"text": ["a", "b"]}', Reason.BAD_REQUEST),
        (b'{"text": {"text": "a"}}', Reason.BAD_REQUEST),
        (b'{"text": "a", "id": 7}', Reason.BAD_REQUEST),
        (b'{"text": "a", "lang": "en"}', Reason.BAD_REQUEST),
        (b'{"Text": "a"}', Reason.BAD_REQUEST),
        (b"[" * DEEP, Reason.BAD_REQUEST),
        (b'{"text": ' + b"[" * DEEP, Reason.BAD_REQUEST),
        (b'{"text": ' * DEEP, Reason.BAD_REQUEST),
        (b'{"unknown": ' + b"[" * DEEP, Reason.BAD_REQUEST),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_input_is_refused_with_its_reason(value: bytes | None, reason: Reason) -> None:
    assert refusal(value).reason is reason


@pytest.mark.parametrize(
    ("value", "reason"), [(None, Reason.NULL_VALUE), (b"caf\xe9", Reason.NOT_UTF8), (b"\xed\xa0\x80", Reason.NOT_UTF8)]
)
def test_format_text_refuses_only_what_is_not_text(value: bytes | None, reason: Reason) -> None:
    assert refusal(value, format="text").reason is reason


@given(value=st.binary(max_size=60) | st.text(alphabet='{}[]":, \\utexid0123', max_size=30).map(str.encode))
def test_whatever_the_bytes_are_they_are_a_request_or_a_bad_record(value: bytes) -> None:
    try:
        request = decode(value)
    except BadRecord as error:
        assert error.reason in (Reason.NOT_UTF8, Reason.NOT_JSON, Reason.BAD_REQUEST)  # noqa: PT017 - either is right
    else:
        assert [msgspec.json.decode(value)["text"]] == request.inputs


def test_of_a_field_given_twice_the_last_counts_as_in_most_readers_of_json() -> None:
    assert decode(b'{"text": "first", "text": "last"}').inputs == ["last"]


def test_the_message_tells_plain_text_producers_what_to_do() -> None:
    assert refusal(b"plain text").message.endswith("plain text needs requests.format: text")


@pytest.mark.parametrize("value", [b"", b" ", b"\r\n\t "])
def test_an_empty_value_is_called_so(value: bytes) -> None:
    assert str(refusal(value)) == 'not_json: the value is empty; a request is {"text": "..."}'


@pytest.mark.parametrize("value", [b'\xef\xbb\xbf{"text": "a"}', b"\xef\xbb\xbf"])
def test_a_byte_order_mark_is_called_so(value: bytes) -> None:
    assert str(refusal(value)) == "not_json: the value begins with a byte-order mark, which JSON doesn't allow"


@pytest.mark.parametrize(
    ("value", "half"),
    [
        (rb'{"text": "\ud800"}', r"\ud800"),
        (rb'{"text": "\uDBFF and more"}', r"\uDBFF"),
        (rb'{"text": "\udc00"}', r"\udc00"),
        (rb'{"text": "\ud83d\ude00 \ud83d\ud83d\ude00"}', r"\ud83d"),
        (rb'{"text": "\\\ud800"}', r"\ud800"),
        (rb'{"\ud800": 1}', r"\ud800"),
    ],
)
def test_half_of_a_surrogate_pair_is_named(value: bytes, half: str) -> None:
    assert str(refusal(value)) == f"bad_request: {half} is half of a surrogate pair: send both or neither"


@pytest.mark.parametrize("value", [rb'{"text": "\\ud800"', rb'{"text": "\ud83d\ude00"', b'{"text": "a"'])
def test_json_that_is_cut_off_is_called_so(value: bytes) -> None:
    assert refusal(value).message == "Input data was truncated; plain text needs requests.format: text"


def test_the_message_names_the_field_and_shows_what_a_request_is() -> None:
    message = refusal(b'{"text": "a", "lang": "en"}').message
    assert message == 'Object contains unknown field `lang`; a request is {"text": "..."}'


# The bound on a text.


@pytest.mark.parametrize("text", ["a" * 12, "é" * 6, "語" * 4, "😀" * 3])
def test_max_text_bytes_counts_the_bytes_of_utf8(text: str) -> None:
    assert len(text.encode()) == 12
    values: list[tuple[bytes, RequestFormat]] = [(msgspec.json.encode({"text": text}), "json"), (text.encode(), "text")]
    for value, format in values:
        assert decode(value, format=format, max_text_bytes=12).inputs == [text]
        error = refusal(value, format=format, max_text_bytes=11)
        assert error.reason is Reason.TEXT_TOO_LARGE
        assert error.message == "the text has 12 bytes, the ensemble allows 11 (requests.max_text_bytes)"


def test_the_text_is_bounded_not_the_record_and_not_its_escapes() -> None:
    assert decode(b'{"text": "\\u00e9", "id": "' + b"i" * 100 + b'"}', max_text_bytes=2).inputs == ["é"]


def test_five_mebibytes_are_too_large() -> None:
    assert refusal(b'{"text": "' + b"a" * (5 << 20) + b'"}').reason is Reason.TEXT_TOO_LARGE


# What is said about a bad record travels with it.


@pytest.mark.parametrize(
    "value", [b'{"' + b"x" * (5 << 20) + b'": 1}', b'{"a\\nb\\u001b[2J": 1}', b'{"\\u0000\\u2028": 1}']
)
def test_a_message_is_one_short_printable_line_whatever_the_record_holds(value: bytes) -> None:
    error = refusal(value)
    assert error.reason is Reason.BAD_REQUEST
    assert len(error.message) <= 500
    assert error.message.isprintable()
    assert str(error) == f"bad_request: {error.message}"


def test_a_dead_letter_says_where_it_was_read_which_stage_gave_up_and_why() -> None:
    error = BadRecord(Reason.NOT_UTF8, "byte 5 is é\ud800")
    assert dead_letter_headers(error, source=PLACE, stage="tokenize", group="reviews.tokenize") == [
        ("__dlq.errors.topic", b"reviews.requests"),
        ("__dlq.errors.partition", b"3"),
        ("__dlq.errors.offset", b"41"),
        ("__dlq.errors.group", b"reviews.tokenize"),
        ("__dlq.errors.stage", b"tokenize"),
        ("__dlq.errors.reason", b"not_utf8"),
        ("__dlq.errors.message", b"byte 5 is \xc3\xa9 "),
    ]
