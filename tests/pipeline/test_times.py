"""Times as a person writes them."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from pipeline.errors import UserError
from pipeline.times import parse_time, shown_time

NOW = datetime(2026, 11, 25, 14, 0, tzinfo=UTC)
NOW_MS = 1_795_615_200_000


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("2026-11-25T14:00Z", NOW_MS),
        ("2026-11-25T14:00:00.250+00:00", NOW_MS + 250),
        ("2026-11-25T15:00", NOW_MS),  # the local zone
        ("2026-07-01", 1_782_856_800_000),  # in summer
        ("-90s", NOW_MS - 90_000),
        ("-15m", NOW_MS - 900_000),
        ("-2h", NOW_MS - 7_200_000),
        ("-7d", NOW_MS - 604_800_000),
    ],
)
@pytest.mark.usefixtures("berlin")
def test_a_time(text: str, milliseconds: int) -> None:
    assert parse_time("--from", text, now=NOW) == milliseconds


@pytest.mark.parametrize(
    "text", ["", "now", "2h", "-2w", "-h", "-999999d", "2026-13-01", "25.11.2026", "1969-01-01", "0001-01-01"]
)
def test_what_is_no_time_is_told(text: str) -> None:
    with pytest.raises(UserError) as told:
        parse_time("--from", text, now=NOW)
    assert str(told.value).startswith(f"--from: {text!r} is not allowed; allowed: a time in ISO 8601 such as ")


@pytest.mark.usefixtures("berlin")
def test_a_time_is_shown_in_the_local_zone() -> None:
    assert shown_time(NOW_MS) == "2026-11-25T15:00:00+01:00"


@pytest.mark.parametrize("milliseconds", [None, 1 << 62, -(1 << 62)])
def test_a_time_that_is_none_is_a_dash(milliseconds: int | None) -> None:
    assert shown_time(milliseconds) == "-"
