"""Clients, where librdkafka's own defaults would lose something."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
from confluent_kafka import Message, TopicPartition

from pipeline import clients
from pipeline.dead_letters import DeadLetters
from pipeline.errors import WorkerFailure
from pipeline.metrics import WorkerMetrics
from pipeline.mock_cluster import EmbeddedBroker
from pipeline.settings import EnsembleSettings
from schemas.errors import BadRecord, Reason
from schemas.packs import PackedText
from schemas.records import Source
from schemas.requests import decode_request
from tests.pipeline.conftest import WAIT_S, Topics

pytestmark = pytest.mark.broker

MakeSettings = Callable[..., EnsembleSettings]


@pytest.fixture
def retained(settings: MakeSettings) -> EnsembleSettings:
    """The embedded broker keeps 5 MiB a partition: of 12 MB, the first records are gone."""
    made = settings(partitions=1)
    Topics(made).send(*(b"%02d" % number + b"x" * 1_000_000 for number in range(12)))
    return made


def dead_letters(settings: EnsembleSettings) -> DeadLetters:
    return DeadLetters(
        settings.kafka.consumer_settings(),
        topic="dead",
        stage="encode",
        group="reviews.encode",
        metrics=WorkerMetrics("reviews").stage("encode"),
    )


def test_a_reader_whose_next_record_is_gone_goes_on_with_the_oldest_left(retained: EnsembleSettings) -> None:
    topic = retained.topic_names.requests
    reader = clients.reader(retained.kafka.consumer_settings(), client_id="reader")
    oldest, _ = reader.get_watermark_offsets(TopicPartition(topic, 0), timeout=WAIT_S)
    assert oldest > 0, "some records are gone"
    reader.assign([TopicPartition(topic, 0, 0)])
    message = reader.poll(WAIT_S)
    reader.close()
    assert message is not None
    assert (message.error(), message.offset()) == (None, oldest)


class OddMessage:
    """A record whose header name is not UTF-8: confluent-kafka can't read any of its headers."""

    def topic(self) -> str:
        return "requests"

    def partition(self) -> int:
        return 2

    def offset(self) -> int:
        return 7

    def key(self) -> bytes:
        return b"k"

    def value(self) -> bytes:
        return b"v"

    def headers(self) -> None:
        raise SystemError("returned a result with an exception set")


def test_a_header_whose_name_is_no_utf_8_is_a_flaw_of_the_record() -> None:
    record = clients.input_record(cast(Message, OddMessage()))
    assert (record.key, record.value, record.headers) == (b"k", b"v", [])
    with pytest.raises(BadRecord, match="bad_headers"):
        decode_request(record, format="text", max_text_bytes=100)


def test_an_original_that_was_never_there_is_told_from_a_broker_that_does_not_answer(
    retained: EnsembleSettings, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.dead_letters._FETCH_TIMEOUT_S", 2.0)
    letters = dead_letters(retained)
    error = BadRecord(Reason.ENGINE_FAILED, "no")
    beyond = Source(retained.topic_names.requests, 0, 1_000_000)
    assert letters.of_text(beyond, None, error, []).value is None
    broker.set_down()
    with pytest.raises(WorkerFailure, match="can't be read"):
        letters.of_text(beyond, None, error, [])
    letters.close()


def test_a_dead_letter_whose_original_is_gone_says_so_and_keeps_key_and_headers(retained: EnsembleSettings) -> None:
    letters = dead_letters(retained)
    text = PackedText("id", b"key", [("h", b"v")], 0, 1, 3, False)
    source = Source(retained.topic_names.requests, 0, 0)
    letter = letters.of_text(source, text, BadRecord(Reason.ENGINE_FAILED, "no"), [])
    letters.close()
    assert (letter.key, letter.value, letter.headers[0]) == (b"key", None, ("h", b"v"))
    assert b"no longer in reviews.requests" in (dict(letter.headers)["__dlq.errors.message"] or b"")
