"""What headers say of a request's time, and what they may not say."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import BadRecord, Reason
from schemas.records import Headers
from schemas.urgency import EXPIRY_TIME, FINAL, LANE, REVISION, UTTERANCE, Revision, Urgency, urgency_of


def test_headers_of_others_say_nothing() -> None:
    assert urgency_of([("traceparent", b"00-ab"), ("ce_id", b"\xff"), ("penstock.attempt", None)]) is None
    assert urgency_of([], written_ms=5) is None
    assert urgency_of([], deadline_ms=5) is None, "a record without a time never expires"


@pytest.mark.parametrize(
    ("time", "milliseconds"),
    [
        (b"2026-11-26T10:00:00Z", 1_795_687_200_000),
        (b"2026-11-26T10:00:00.250Z", 1_795_687_200_250),
        (b"2026-11-26T11:00:00+01:00", 1_795_687_200_000),
        (b"1969-12-31T23:59:59Z", 0),
        (b"2026-11-26t10:00:00z", 1_795_687_200_000),
    ],
)
def test_an_expiry_time(time: bytes, milliseconds: int) -> None:
    urgency = urgency_of([(EXPIRY_TIME, time)])
    assert urgency == Urgency(expires_ms=milliseconds)
    assert not urgency.expired(milliseconds - 1)
    assert urgency.expired(milliseconds)


def test_of_two_deadlines_the_earlier_counts() -> None:
    header = (EXPIRY_TIME, b"1970-01-01T00:00:10Z")
    assert urgency_of([header], written_ms=1_000, deadline_ms=2_000) == Urgency(expires_ms=3_000)
    assert urgency_of([header], written_ms=1_000, deadline_ms=20_000) == Urgency(expires_ms=10_000)
    assert urgency_of([], written_ms=1_000, deadline_ms=2_000) == Urgency(expires_ms=3_000)


def test_what_is_final_expires_only_at_a_time_of_its_own() -> None:
    revision: Headers = [(UTTERANCE, b"u"), (REVISION, b"1"), (FINAL, b"true")]
    assert urgency_of(revision, written_ms=0, deadline_ms=5) == Urgency(None, Revision("u", 1, True))
    own = [*revision, (EXPIRY_TIME, b"1970-01-01T00:00:01Z")]
    assert urgency_of(own, written_ms=0, deadline_ms=5) == Urgency(1_000, Revision("u", 1, True))
    assert urgency_of([*revision[:2]], written_ms=0, deadline_ms=5) == Urgency(5, Revision("u", 1, False))


def test_a_revision_and_a_lane() -> None:
    headers: Headers = [(UTTERANCE, "ä/1".encode()), (REVISION, b"007"), (FINAL, b"true"), (LANE, b"bulk")]
    assert urgency_of(headers) == Urgency(None, Revision("ä/1", 7, True), "bulk")
    assert urgency_of(headers[:2]) == Urgency(None, Revision("ä/1", 7, False))
    assert urgency_of([(LANE, b"bulk")]) == Urgency(lane="bulk")
    assert urgency_of([(FINAL, b"true")]) == Urgency(), "final of nothing"


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ([(EXPIRY_TIME, b"tomorrow")], "ce_expirytime: 'tomorrow'; allowed: a time of RFC 3339, such as"),
        ([(EXPIRY_TIME, b"2026-11-26T10:00:00")], "ce_expirytime: "),  # no zone
        ([(EXPIRY_TIME, b"2026-11-26")], "ce_expirytime: "),
        ([(EXPIRY_TIME, b"2026-W48-4T10:00:00Z")], "ce_expirytime: "),
        ([(EXPIRY_TIME, b"20261126T100000Z")], "ce_expirytime: "),
        ([(FINAL, b"maybe")], "penstock.final: 'maybe'; allowed: true, false"),
        ([(EXPIRY_TIME, None)], "ce_expirytime: ''"),
        ([(EXPIRY_TIME, b"\xff")], "ce_expirytime: not UTF-8"),
        ([(UTTERANCE, b"u")], "penstock.revision: missing"),
        ([(REVISION, b"1")], "penstock.utterance: missing or empty"),
        ([(UTTERANCE, b""), (REVISION, b"1")], "penstock.utterance: missing or empty"),
        ([(UTTERANCE, b"u"), (REVISION, b"-1")], "penstock.revision: '-1'; allowed: up to 19 decimal digits"),
        ([(UTTERANCE, b"u"), (REVISION, "²".encode())], "penstock.revision: "),
        (
            [(UTTERANCE, b"u"), (REVISION, b"9" * 19)],
            "penstock.revision: '9999999999999999999'; allowed: up to 19 decimal digits, at most 9223372036854775807",
        ),
        ([(UTTERANCE, b"u"), (REVISION, b"1"), (FINAL, b"yes")], "penstock.final: 'yes'; allowed: true, false"),
    ],
)
def test_what_a_header_may_not_say(headers: Headers, message: str) -> None:
    with pytest.raises(BadRecord) as caught:
        urgency_of(headers)
    assert caught.value.reason is Reason.BAD_HEADERS
    assert caught.value.message.startswith(message)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([EXPIRY_TIME, UTTERANCE, REVISION, FINAL, LANE, "x"]), st.none() | st.binary(max_size=30)
        )
    )
)
def test_any_bytes_are_read_or_refused(headers: Headers) -> None:
    with suppress(BadRecord):
        urgency_of(headers, written_ms=0, deadline_ms=1)


@given(written_ms=st.integers(-(2**63), 2**63 - 1), deadline_ms=st.integers(1, 2**40))
def test_whatever_time_a_producer_claims_a_pack_can_say_it(written_ms: int, deadline_ms: int) -> None:
    urgency = urgency_of([], written_ms=written_ms, deadline_ms=deadline_ms)
    assert urgency is not None
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(urgency), type=Urgency) == urgency
