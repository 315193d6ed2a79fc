"""What a misspelt setting of librdkafka may mean."""

from __future__ import annotations

import pytest

from pipeline import kafka_names
from pipeline.kafka_names import close_name, known_names
from pipeline.kafka_settings import _UNKNOWN, _refusal


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("fetch.wait.max.mss", "fetch.wait.max.ms"),
        ("linger_ms", "linger.ms"),  # an alias
        ("sasl.pasword", "sasl.password"),  # without a default
        ("session.timeout", "session.timeout.ms"),
        ("ack", "acks"),
        ("zzz", None),
    ],
)
def test_the_nearest_name(written: str, meant: str | None) -> None:
    assert close_name(written) == meant


def test_librdkafka_knows_every_name_that_is_suggested() -> None:
    names = known_names()
    assert len(names) > 150
    assert not any(name.endswith("_cb") for name in names)
    assert not [name for name in names if _UNKNOWN in (_refusal("consumer", {name: "x"}) or "")]


def test_a_system_that_can_not_tell_suggests_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_names.ctypes, "CDLL", lambda _path: object())
    known_names.cache_clear()
    try:
        assert close_name("fetch.wait.max.mss") is None
    finally:
        known_names.cache_clear()
