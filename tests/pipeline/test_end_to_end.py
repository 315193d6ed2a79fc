"""What a user sees on the topics: every request answered once, in order, keys and headers as they went in."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, Message

from pipeline.ensemble import Ensemble
from pipeline.mock_cluster import ApiKey, EmbeddedBroker
from pipeline.settings import EnsembleSettings
from tests.pipeline.conftest import Topics, running

pytestmark = pytest.mark.broker

MakeSettings = Callable[..., EnsembleSettings]


def request(text: str, **fields: Any) -> bytes:
    return json.dumps({"text": text, **fields}).encode()


def result(message: Message) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(message.value() or b"")
    return value


def headers(message: Message) -> dict[str, str]:
    return {name: (value or b"").decode() for name, value in message.headers() or []}


@pytest.fixture(params=[False, True], ids=["spread", "fused"])
def fused(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_every_request_gets_one_result_in_the_order_of_its_partition(settings: MakeSettings, fused: bool) -> None:
    made = settings()
    topics = Topics(made)
    for number in range(100):
        topics.send(request("word " * (number % 40), id=str(number)), partition=number % 2)
    with running(made, fused=fused):
        results = topics.read(made.topic_names.results, 100)
    for partition in (0, 1):
        ids = [int(result(message)["id"]) for message in results if message.partition() == partition]
        assert ids == list(range(partition, 100, 2))


def test_key_and_headers_come_out_as_they_went_in(settings: MakeSettings, fused: bool) -> None:
    made = settings()
    topics = Topics(made)
    sent = [("traceparent", b"00-ab-cd-01"), ("twice", b"\x00\xff"), ("twice", None)]
    topics.send(request("hello"), key=b"\x00key", headers=sent, partition=1)
    with running(made, fused=fused):
        [answer] = topics.read(made.topic_names.results, 1)
    assert (answer.key(), answer.headers(), answer.partition()) == (b"\x00key", sent, 1)
    assert result(answer)["source"] == {"topic": "reviews.requests", "partition": 1, "offset": 0}
    assert result(answer)["id"] == "reviews.requests/1/0"


def test_topics_and_predict_answer_the_same(settings: MakeSettings, fused: bool) -> None:
    made = settings(partitions=1)
    texts = ["", " ", "a", "one two three", "word " * 100, "🙂 emoji", "ไทย עברית العربية", "\u0000\u0007"]
    topics = Topics(made)
    topics.send(*(request(text, id=str(number)) for number, text in enumerate(texts)))
    with running(made, fused=fused):
        over_topics = [result(message) for message in topics.read(made.topic_names.results, len(texts))]
    with Ensemble(made) as ensemble:
        alone = [answer for text in texts for answer in ensemble.predict([text])]
    for there, here in zip(over_topics, alone, strict=True):
        assert there["outputs"]["vector"] == pytest.approx(here.outputs["vector"], abs=1e-5)
        assert [each["label"] for each in there["outputs"]["verdict"]] == [
            each.label for each in here.outputs["verdict"]
        ]
        assert (there["tokens"], there["chunks"], there["truncated"]) == (here.tokens, here.chunks, here.truncated)
    assert over_topics[4]["chunks"] > 1


BAD = {
    "null value": (None, "null_value"),
    "not UTF-8": (b'{"text": "\xff\xfe"}', "not_utf8"),
    "not JSON": (b"plain words", "not_json"),
    "wrong shape": (b'["text"]', "bad_request"),
    "wrong type": (b'{"text": 1}', "bad_request"),
    "no text": (b'{"id": "1"}', "bad_request"),
    "unknown field": (b'{"text": "a", "txet": "b"}', "bad_request"),
    "empty": (b"", "not_json"),
}


def test_bad_records_go_to_the_dead_letters_and_their_neighbours_are_answered(
    settings: MakeSettings, fused: bool
) -> None:
    made = settings(partitions=1)
    topics = Topics(made)
    for name, (value, _) in BAD.items():
        topics.send(request("before " + name), value, key=name.encode(), headers=[("h", b"v")])
    with running(made, fused=fused) as workers:
        results = topics.read(made.topic_names.results, len(BAD))
        dead = topics.read(made.topic_names.dead_letters, len(BAD))
    assert [message.key() for message in results] == [name.encode() for name in BAD]
    for message, (name, (value, reason)) in zip(dead, BAD.items(), strict=True):
        assert (message.key(), message.value()) == (name.encode(), value)
        told = headers(message)
        assert told["h"] == "v"
        assert told["__dlq.errors.reason"] == reason
        assert told["__dlq.errors.stage"] == "tokenize"
        assert told["__dlq.errors.topic"] == "reviews.requests"
        assert told["__dlq.errors.message"]
        assert int(told["__dlq.errors.offset"]) % 2 == 1
    failures = workers[0].metrics.registry.get_sample_value(
        "nv_inference_request_failure", {"model": "tokenize", "version": "1", "reason": "bad_request"}
    )
    assert failures == 4


def test_a_record_of_5_mib_is_a_dead_letter_with_its_original_bytes(settings: MakeSettings, fused: bool) -> None:
    made = settings(partitions=2)
    topics = Topics(made)
    large = b'{"text": "' + b"x" * 5 * 1024 * 1024 + b'"}'
    # In a partition of its own: the embedded broker drops what lies before it.
    topics.send(large, partition=1, key=b"large")
    topics.send(request("neighbour"), partition=0)
    with running(made, fused=fused):
        topics.read(made.topic_names.results, 1)
        [dead] = topics.read(made.topic_names.dead_letters, 1)
    assert (dead.key(), dead.value()) == (b"large", large)
    assert headers(dead)["__dlq.errors.reason"] == "text_too_large"


def test_a_result_too_large_for_its_topic_is_told_and_counted_under_the_stage_that_made_it(
    settings: MakeSettings, broker: EmbeddedBroker
) -> None:
    made = settings(partitions=1)
    topics = Topics(made)
    topics.send(request("large"))
    broker.push_request_errors(ApiKey.PRODUCE, [KafkaError.MSG_SIZE_TOO_LARGE] * 2)
    with running(made, fused=True) as [worker]:
        [dead] = topics.read(made.topic_names.dead_letters, 1)
    assert headers(dead)["__dlq.errors.stage"] == "postprocess"
    counted = worker.metrics.registry.get_sample_value(
        "penstock_dead_letters_total", {"ensemble": "reviews", "stage": "postprocess", "reason": "result_too_large"}
    )
    assert counted == 1


def test_what_has_arrived_is_committed_when_a_worker_stops(settings: MakeSettings, fused: bool) -> None:
    made = settings(partitions=1)
    topics = Topics(made)
    topics.send(*(request(str(number)) for number in range(30)))
    with running(made, fused=fused):
        topics.read(made.topic_names.results, 30)
    assert topics.committed("reviews.tokenize", made.topic_names.requests) == {0: 30}


def test_a_second_run_answers_only_what_is_new(settings: MakeSettings, fused: bool) -> None:
    made = settings(partitions=1)
    topics = Topics(made)
    topics.send(request("first", id="1"))
    with running(made, fused=fused):
        topics.read(made.topic_names.results, 1)
    topics.send(request("second", id="2"))
    with running(made, fused=fused):
        results = topics.read(made.topic_names.results, 2)
    assert [result(message)["id"] for message in results] == ["1", "2"]


def test_forged_packs_are_dead_letters(settings: MakeSettings) -> None:
    made = settings(partitions=1)
    topics = Topics(made)
    topics.send(b"\x00forged", None, topic=made.topic_names.tokens)
    topics.send(b"\x00forged", topic=made.topic_names.encodings)
    topics.send(request("neighbour"))
    with running(made):
        topics.read(made.topic_names.results, 1)
        dead = topics.read(made.topic_names.dead_letters, 3)
    told = sorted((headers(message)["__dlq.errors.stage"], headers(message)["__dlq.errors.reason"]) for message in dead)
    assert told == [("encode", "bad_pack"), ("encode", "null_value"), ("postprocess", "bad_pack")]
