"""A dead letter's headers in each style: what others read in them, and what is read back."""

from __future__ import annotations

import struct
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import BadRecord, Reason
from schemas.headers import (
    ATTEMPT,
    HeaderStyle,
    attempt_of,
    dead_letter_headers,
    original_headers,
    read_cause,
    with_attempt,
    with_more_said,
)
from schemas.records import Headers, Source

PLACE = Source("reviews.requests", 3, 41)
ERROR = BadRecord(Reason.ENGINE_FAILED, "not finite")
STYLES: tuple[HeaderStyle, ...] = get_args(HeaderStyle)

names = st.sampled_from(
    ["trace", "ce_id", "__dlq.errors.topic", "__connect.errors.topic", "kafka_dlt-original-topic", "kafka_dlt-x"]
) | st.text(max_size=5)
any_headers = st.lists(st.tuples(names, st.none() | st.binary(max_size=9)), max_size=8)


def headers_of(style: HeaderStyle, error: BadRecord = ERROR) -> Headers:
    return dead_letter_headers(error, source=PLACE, stage="encode", group="reviews.encode", style=style)


def test_connect_has_kafka_connects_names_and_numbers_in_digits() -> None:
    assert headers_of("connect") == [
        ("__connect.errors.topic", b"reviews.requests"),
        ("__connect.errors.partition", b"3"),
        ("__connect.errors.offset", b"41"),
        ("__connect.errors.connector.name", b"reviews.encode"),
        ("__connect.errors.stage", b"encode"),
        ("__connect.errors.exception.class.name", b"penstock.encode.engine_failed"),
        ("__connect.errors.exception.message", b"not finite"),
    ]


def test_spring_has_spring_kafkas_names_and_numbers_as_java_writes_them() -> None:
    assert headers_of("spring") == [
        ("kafka_dlt-original-topic", b"reviews.requests"),
        ("kafka_dlt-original-partition", struct.pack(">i", 3)),
        ("kafka_dlt-original-offset", struct.pack(">q", 41)),
        ("kafka_dlt-original-consumer-group", b"reviews.encode"),
        ("kafka_dlt-exception-fqcn", b"penstock.encode.engine_failed"),
        ("kafka_dlt-exception-message", b"not finite"),
    ]


@pytest.mark.parametrize("style", STYLES)
@given(original=any_headers)
def test_whatever_the_original_had_is_given_back_and_the_cause_is_read(style: HeaderStyle, original: Headers) -> None:
    headers = [*original, *headers_of(style)]
    assert original_headers(headers) == original
    cause = read_cause(headers)
    assert cause is not None
    assert cause.source == PLACE
    assert (cause.style, cause.stage, cause.reason) == (style, "encode", "engine_failed")
    assert (cause.group, cause.message) == ("reviews.encode", "not finite")


@given(headers=any_headers)
def test_garbage_has_a_cause_or_none_and_breaks_nothing(headers: Headers) -> None:
    cause = read_cause(headers)
    if cause is None:
        assert original_headers(headers) == headers
    assert attempt_of(headers) == 1


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("value", [b"", b"-1", b"abc", b"\xff", None, b"9" * 30, b"\xff" * 4, b"\xff" * 8])
def test_a_number_that_is_none_is_no_place(style: HeaderStyle, value: bytes | None) -> None:
    headers: Headers = [(name, value if name.endswith("offset") else said) for name, said in headers_of(style)]
    cause = read_cause(headers)
    assert cause is not None
    assert cause.offset is None
    assert cause.source is None


def test_an_exception_of_another_program_is_its_class() -> None:
    headers: Headers = [
        ("kafka_dlt-original-topic", b"orders"),
        ("kafka_dlt-exception-fqcn", b"java.lang.IllegalStateException"),
    ]
    cause = read_cause(headers)
    assert cause is not None
    assert (cause.stage, cause.reason) == (None, "java.lang.IllegalStateException")


@pytest.mark.parametrize("style", STYLES)
def test_more_is_said_in_the_last_message_only(style: HeaderStyle) -> None:
    headers = with_more_said([*headers_of(style), *headers_of(style)], " (its value is left out)")
    assert headers[: len(headers) // 2] == headers_of(style)
    cause = read_cause(headers)
    assert cause is not None
    assert cause.message == "not finite (its value is left out)"


def test_an_attempt_is_counted_in_place_of_the_one_before() -> None:
    headers = with_attempt([("trace", b"1"), (ATTEMPT, b"2"), ("trace", b"2")], 3)
    assert headers == [("trace", b"1"), ("trace", b"2"), (ATTEMPT, b"3")]
    assert attempt_of(headers) == 3


@pytest.mark.parametrize("value", [b"", b"two", b"-4", None, b"9" * 40])
def test_an_attempt_that_can_not_be_read_is_the_first(value: bytes | None) -> None:
    assert attempt_of([(ATTEMPT, value)]) == 1
