"""Changing from spread to fused: packs between the stages are not left behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from confluent_kafka import Consumer, TopicPartition

from pipeline import clients
from pipeline.errors import UserError
from pipeline.reach import require_no_packs, require_transactions
from pipeline.settings import EnsembleSettings
from tests.pipeline.conftest import Topics

pytestmark = pytest.mark.broker

MakeSettings = Callable[..., EnsembleSettings]


def require(settings: EnsembleSettings) -> None:
    require_no_packs(settings, clients.admin(settings.kafka.client_settings()))


def test_packs_that_no_stage_has_answered_are_in_the_way_of_a_fused_start(settings: MakeSettings) -> None:
    made = settings(partitions=2)
    require(made)
    Topics(made).send(b"1", b"2", topic=made.topic_names.encodings, partition=1)
    with pytest.raises(UserError, match=r"^reviews\.encodings: holds packs that postprocess has not answered"):
        require(made)
    consumer = Consumer({"bootstrap.servers": made.kafka.bootstrap_servers, "group.id": "reviews.postprocess"})
    consumer.commit(offsets=[TopicPartition(made.topic_names.encodings, 1, 2)], asynchronous=False)
    consumer.close()
    require(made)


def test_the_embedded_broker_can_t_promise_exactly_once(settings: MakeSettings) -> None:
    made = settings(delivery="exactly_once")
    Topics(made).send(b"1", topic="__penstock.create-topics")
    with pytest.raises(UserError, match="needs a Kafka with transactions"):
        require_transactions(made, clients.admin(made.kafka.client_settings()))
