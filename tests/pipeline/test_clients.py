"""Clients, where librdkafka's own defaults would lose something."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from confluent_kafka import TopicPartition

from pipeline import clients
from pipeline.dead_letters import DeadLetters
from pipeline.metrics import WorkerMetrics
from pipeline.settings import EnsembleSettings
from schemas.errors import BadRecord, Reason
from schemas.packs import PackedText
from schemas.records import Source
from tests.pipeline.conftest import WAIT_S, Topics

pytestmark = pytest.mark.broker

MakeSettings = Callable[..., EnsembleSettings]


@pytest.fixture
def retained(settings: MakeSettings) -> EnsembleSettings:
    """The embedded broker keeps 5 MiB a partition: of 12 MB, the first records are gone."""
    made = settings(partitions=1)
    Topics(made).send(*(b"%02d" % number + b"x" * 1_000_000 for number in range(12)))
    return made


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


def test_a_dead_letter_whose_original_is_gone_says_so_and_keeps_key_and_headers(retained: EnsembleSettings) -> None:
    metrics = WorkerMetrics("reviews")
    letters = DeadLetters(
        retained.kafka.consumer_settings(),
        topic="dead",
        stage="encode",
        group="reviews.encode",
        metrics=metrics.stage("encode"),
    )
    text = PackedText("id", b"key", [("h", b"v")], 0, 1, 3, False)
    source = Source(retained.topic_names.requests, 0, 0)
    letter = letters.of_text(source, text, BadRecord(Reason.ENGINE_FAILED, "no"), [])
    letters.close()
    assert (letter.key, letter.value, letter.headers[0]) == (b"key", None, ("h", b"v"))
    assert b"no longer in reviews.requests" in (dict(letter.headers)["__dlq.errors.message"] or b"")
