"""Wanted topics against those of a broker: librdkafka's mock cluster for metadata, a stand-in for the admin API."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from pipeline import topics
from pipeline.settings import EnsembleSettings
from pipeline.topics import TopicDifference, TopicError, compare_topics, create_topics, speech_topics, wanted_topics

NAMES = ["e.requests", "e.tokens", "e.encodings", "e.results", "e.dead-letters"]


def ensemble(**options) -> EnsembleSettings:
    return EnsembleSettings.model_validate({"name": "e", "models": [{"name": "a", "source": "m"}], **options})


def test_the_wanted_topics_in_the_order_of_the_data_path():
    wanted = wanted_topics(ensemble(topics={"partitions": 8, "replication_factor": 3}))
    assert [topic.name for topic in wanted] == NAMES
    assert {(topic.partitions, topic.replication_factor) for topic in wanted} == {(8, 3)}


def test_fused_stages_have_no_topics_between_them():
    assert [topic.name for topic in wanted_topics(ensemble(), fused=True)] == [NAMES[0], NAMES[3], NAMES[4]]


def test_topics_between_the_stages_take_large_packs_and_keep_them_as_long_as_requests_are_kept():
    wanted = {topic.name: topic.config for topic in wanted_topics(ensemble(requests={"max_text_bytes": 1000}))}
    packs = {"max.message.bytes": "16777216", "cleanup.policy": "delete"}
    assert wanted["e.tokens"] == wanted["e.encodings"] == packs
    assert not any("retention.ms" in config for config in wanted.values())
    assert wanted["e.requests"] == {"max.message.bytes": str(2000 + 1024 * 1024)}
    assert wanted["e.results"]["max.message.bytes"] == wanted["e.dead-letters"]["max.message.bytes"] == "16777216"


def test_whatever_may_come_in_may_go_out_again():
    wanted = {topic.name: topic for topic in wanted_topics(ensemble(requests={"max_text_bytes": 4 << 20}))}
    sizes = {name: int(topic.config["max.message.bytes"]) for name, topic in wanted.items()}
    assert sizes["e.requests"] <= sizes["e.results"] == sizes["e.dead-letters"]


def test_state_is_compacted_and_has_the_ensembles_partitions():
    wanted = {topic.name: topic for topic in speech_topics(ensemble(topics={"partitions": 8}))}
    assert [*wanted] == ["e.speech", "e.transcripts", "e.transcripts-streams-changelog"]
    assert {topic.partitions for topic in wanted.values()} == {8}
    config = wanted["e.transcripts-streams-changelog"].config
    assert config["cleanup.policy"] == "compact"
    assert int(config["max.message.bytes"]) < int(config["segment.bytes"]) < 1 << 30, "less than Kafka's default"


# --- librdkafka's mock cluster: metadata, and no admin API ---


@pytest.fixture(scope="module")
def mock_admin():
    return AdminClient({"test.mock.num.brokers": 1, "log_level": 0})


@pytest.mark.broker
def test_missing_topics_of_the_mock_cluster_are_told_and_not_made_by_asking(mock_admin):
    for _ in range(2):
        differences = compare_topics(mock_admin, wanted_topics(ensemble(name="new")))
        assert [(each.topic.removeprefix("new."), each.missing) for each in differences] == [
            (name.removeprefix("e."), True) for name in NAMES
        ]
        assert str(differences[0]) == "new.requests: doesn't exist"


@pytest.mark.broker
def test_topics_of_the_mock_cluster_are_compared_by_their_partitions(mock_admin):
    for name in NAMES:
        mock_admin.list_topics(name, timeout=10)  # asking for one by name makes it, with 4 partitions
    assert compare_topics(mock_admin, wanted_topics(ensemble())) == []
    assert [str(each) for each in compare_topics(mock_admin, wanted_topics(ensemble(topics={"partitions": 3})))] == [
        f"{name}: has 4 partitions, wanted are 3 (topics.partitions): all topics of an ensemble have the same number"
        for name in NAMES
    ]
    assert create_topics(mock_admin, wanted_topics(ensemble())) == []


@pytest.mark.broker
def test_the_mock_cluster_can_make_no_topics_and_says_so_at_once(mock_admin):
    with pytest.raises(TopicError) as caught:
        create_topics(mock_admin, wanted_topics(ensemble(name="other"), fused=True))
    assert caught.value.lines == (
        "this broker has no admin API (an embedded one): other.requests, other.results, other.dead-letters "
        "must be made by the process that runs it, see `penstock broker`",
    )


@pytest.mark.broker
def test_no_broker(monkeypatch):
    monkeypatch.setitem(topics.broker_metadata.__kwdefaults__, "timeout_s", 0.1)
    admin = AdminClient({"bootstrap.servers": "127.0.0.1:1", "log_level": 0})
    with pytest.raises(TopicError) as caught:
        compare_topics(admin, wanted_topics(ensemble()))
    assert caught.value.lines == (
        "no broker answers within 0.1 s: Failed to get metadata: Local: Broker transport failure; "
        "see kafka.bootstrap.servers",
    )


# --- A broker with an admin API ---


class Broker:
    """Stands in for AdminClient: topics with their configuration, and what it refuses."""

    def __init__(self) -> None:
        self.topics: dict[str, SimpleNamespace] = {}
        self.configs: dict[str, dict[str, str | None]] = {}
        self.refuses: dict[str, int] = {}
        # The controller has made them, and the next answer is still without them.
        self.made_since: list[str] = []
        self.secretive = False

    def add(self, name: str, partitions: int = 4, replicas: int = 1, error=None, **config) -> None:
        parts = {number: SimpleNamespace(replicas=list(range(replicas))) for number in range(partitions)}
        self.topics[name] = SimpleNamespace(partitions=parts, error=error)
        self.configs[name] = {"max.message.bytes": "16777216", "cleanup.policy": "delete"} | {
            option.replace("_", "."): value for option, value in config.items()
        }

    def list_topics(self, timeout: float) -> SimpleNamespace:
        answer = SimpleNamespace(topics=dict(self.topics), brokers={1: None}, controller_id=1)
        for name in self.made_since:
            self.add(name)
        self.made_since.clear()
        return answer

    def create_topics(self, new, **timeouts: float) -> dict[str, Future]:
        self.made_since += [topic.topic for topic in new if topic.topic not in self.refuses]
        return {topic.topic: self._answer(topic.topic, None) for topic in new}

    def describe_configs(self, resources, **timeouts: float) -> dict[object, Future]:
        return {resource: self._describe(resource.name) for resource in resources}

    def _describe(self, name: str) -> Future:
        entries = {option: SimpleNamespace(value=value) for option, value in self.configs[name].items()}
        if self.secretive:
            self.refuses[name] = KafkaError.TOPIC_AUTHORIZATION_FAILED
        return self._answer(name, entries)

    def _answer(self, name: str, result: object) -> Future:
        future: Future = Future()
        if name in self.refuses:
            future.set_exception(KafkaException(KafkaError(self.refuses[name], "not here")))
        else:
            future.set_result(result)
        return future


@pytest.fixture
def broker():
    broker = Broker()
    for name in NAMES:
        broker.add(name)
    return broker


def compare(broker: Broker, **options) -> list[str]:
    return [str(each) for each in compare_topics(broker, wanted_topics(ensemble(**options)))]


def test_topics_as_wanted_have_no_differences(broker):
    assert compare(broker) == []


def test_all_differences_of_a_topic_are_told(broker):
    broker.add("e.tokens", partitions=3, max_message_bytes="1048588", cleanup_policy="compact,delete")
    assert compare(broker) == [
        "e.tokens: has 3 partitions, wanted are 4 (topics.partitions): all topics of an ensemble have the same number",
        "e.tokens: has max.message.bytes=1048588, wanted are at least 16777216",
        "e.tokens: has cleanup.policy=compact,delete, wanted is delete: its records may have no key",
    ]


def test_results_may_be_compacted_and_sizes_may_be_larger(broker):
    broker.add("e.results", cleanup_policy="compact", max_message_bytes="99999999")
    assert compare(broker) == []


def test_fewer_replicas_than_wanted(broker):
    del broker.topics["e.requests"]
    broker.add("e.requests", replicas=3)
    assert compare(broker, topics={"replication_factor": 3}) == [
        f"{name}: has replication factor 1, wanted is 3" for name in NAMES[1:]
    ]


def test_a_topic_that_may_not_be_used(broker):
    broker.add("e.results", partitions=0, error=KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED, "not for you"))
    assert compare(broker) == ["e.results: can't be used: not for you"]


def test_a_broker_that_shows_no_configuration_is_compared_by_partitions(broker):
    broker.secretive = True
    broker.add("e.tokens", partitions=3, max_message_bytes="1")
    assert len(compare(broker)) == 1


def test_only_missing_topics_are_made(broker):
    del broker.topics["e.tokens"], broker.topics["e.results"]
    assert create_topics(broker, wanted_topics(ensemble())) == ["e.tokens", "e.results"]
    assert compare(broker) == [], "they are there when it returns"


def test_a_topic_that_somebody_else_just_made_is_no_mistake(broker):
    del broker.topics["e.tokens"]
    broker.refuses["e.tokens"] = KafkaError.TOPIC_ALREADY_EXISTS
    assert create_topics(broker, wanted_topics(ensemble())) == []


def test_a_topic_that_the_broker_refuses(broker):
    del broker.topics["e.tokens"]
    broker.refuses["e.tokens"] = KafkaError.INVALID_REPLICATION_FACTOR
    with pytest.raises(TopicError) as caught:
        create_topics(broker, wanted_topics(ensemble()))
    assert caught.value.lines == ("topic e.tokens can't be made: not here",)


def test_a_difference_reads_as_one_line():
    assert str(TopicDifference(topic="t", message="doesn't exist", missing=True)) == "t: doesn't exist"
