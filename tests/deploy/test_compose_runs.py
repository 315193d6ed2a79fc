"""What compose.yaml starts, started without Docker: Apache Kafka with its settings, then each service's own command.

Names of the compose network become addresses of this machine, mounted files copies in a folder, and `penstock`, the
image's entry point, this checkout's. What only an image can show is not seen here: its user, its file system.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource  # type: ignore[attr-defined]

from pipeline.apache_kafka.broker import ApacheBroker
from pipeline.apache_kafka.runtime import Runtime
from pipeline.deadline import Deadline
from pipeline.settings import PROCESSES, load_ensemble
from pipeline.topics import wanted_topics
from tests.deploy.deployment import ROOT, image_command, image_environment, read_compose

pytestmark = [pytest.mark.apache, pytest.mark.processes, pytest.mark.slow]

# Longer than anything here takes; a test that waits for so long has failed.
WAIT_S = 60.0
SERVICES = read_compose()["services"]
SETTINGS = load_ensemble(ROOT / "deploy/ensemble.yaml")
PARTITIONS = range(SETTINGS.topics.partitions)


class Container:
    """One service's command as a process, with the environment that its container would have."""

    def __init__(self, service: str, addresses: dict[str, str], folder: Path) -> None:
        self.service = SERVICES[service]
        self._log = folder / "log"
        for volume in self.service["volumes"]:
            source, target, _ = volume.split(":")
            file = folder / target.removeprefix("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, file)
        program, *arguments = image_command(self.service["command"].replace("/etc/", f"{folder}/etc/"))
        assert program == "penstock"
        environment = {name: addresses.get(value, value) for name, value in self.service["environment"].items()}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pipeline.cli", *arguments],
                cwd=ROOT,
                # HOME is the image's /tmp, which is a container's own: so is this. So are its places in a group.
                env={"PATH": os.defpath} | image_environment() | environment | {"TMPDIR": str(folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def said(self) -> str:
        return self._log.read_text()

    def ends(self) -> int:
        return self.process.wait(WAIT_S)

    def await_ready(self) -> None:
        """As compose does before `up --wait` ends: the health check's own command, on the port that the log names."""
        _, *check = self.service["healthcheck"]["test"]
        check = [str(ROOT / "deploy/ready.py") if each == "/opt/penstock/ready.py" else each for each in check]
        assert check[0] == "python"
        deadline = Deadline(WAIT_S)
        while True:
            assert self.process.poll() is None, self.said()
            assert not deadline.expired, self.said()
            if port := re.search(r"http on 0\.0\.0\.0:(\d+)", self.said()):
                done = subprocess.run([sys.executable, *check[1:], port[1]], stdout=subprocess.DEVNULL, timeout=WAIT_S)
                if done.returncode == 0:
                    return
            time.sleep(0.1)


@dataclass(frozen=True)
class Kafka:
    """Apache Kafka with the settings of the service `kafka`."""

    broker: ApacheBroker
    settings: dict[str, str]
    addresses: dict[str, str]
    """Where those in compose.yaml are on this machine."""

    @property
    def host_address(self) -> str:
        return self.addresses["127.0.0.1:9092"]


@pytest.fixture(scope="module")
def kafka(apache_runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    variables: dict[str, str] = SERVICES["kafka"]["environment"]
    listeners = dict(re.findall(r"(\w+)://:(\d+)", variables["KAFKA_LISTENERS"]))
    stages, host, controller = free_ports(3)
    ports = {listeners["STAGES"]: stages, listeners["HOST"]: host, listeners["CONTROLLER"]: controller}

    def here(value: object) -> str:
        for port, free in ports.items():
            value = re.sub(rf"(kafka|127\.0\.0\.1)?:{port}\b", f"127.0.0.1:{free}", str(value))
        return str(value)

    settings = {
        # The rule of the image apache/kafka; the folder is this test's.
        name.removeprefix("KAFKA_").replace("_", ".").lower(): here(value)
        for name, value in variables.items()
        if name.startswith("KAFKA_") and name != "KAFKA_LOG_DIRS"
    }
    data = tmp_path_factory.mktemp("compose-kafka")
    with ApacheBroker(data, port=int(stages), settings=settings, runtime=apache_runtime) as broker:
        addresses = {"kafka:19092": broker.bootstrap, "127.0.0.1:9092": f"127.0.0.1:{host}"}
        yield Kafka(broker, settings, addresses)


@pytest.fixture
def start(kafka: Kafka, tmp_path: Path) -> Iterator[Callable[[str], Container]]:
    containers: list[Container] = []

    def started(service: str) -> Container:
        containers.append(Container(service, kafka.addresses, tmp_path / f"{service}-{len(containers) + 1}"))
        return containers[-1]

    yield started
    for container in containers:
        container.process.kill()
        container.process.wait()


def test_kafka_knows_every_setting(kafka: Kafka) -> None:
    node = ConfigResource(ConfigResource.Type.BROKER, kafka.settings["node.id"])
    admin = AdminClient({"bootstrap.servers": kafka.host_address})
    (future,) = admin.describe_configs([node]).values()
    found = {name: entry.value for name, entry in future.result(WAIT_S).items()}
    assert {name: found.get(name) for name in kafka.settings} == kafka.settings


def test_topics_are_made_once(start: Callable[[str], Container], kafka: Kafka) -> None:
    first = start("topics")
    assert first.ends() == 0, first.said()
    metadata = AdminClient({"bootstrap.servers": kafka.broker.bootstrap}).list_topics(timeout=WAIT_S)
    for topic in wanted_topics(SETTINGS):
        assert len(metadata.topics[topic.name].partitions) == len(PARTITIONS)
    # As with each further `docker compose up`.
    second = start("topics")
    assert second.ends() == 0, second.said()
    assert second.said().count("  ok\n") == len(wanted_topics(SETTINGS))


def test_stages_become_ready_answer_and_drain(start: Callable[[str], Container], kafka: Kafka) -> None:
    assert start("topics").ends() == 0
    # As with --profile speech --scale encode=2 --scale transcripts=2.
    containers = [start(service) for service in (*PROCESSES, "encode", "transcripts")]
    for container in containers:
        container.await_ready()
    servers = kafka.host_address
    texts = {f"request-{number}": f"What a lovely day number {number} was." for number in range(40)}
    produce(servers, texts)
    results = read(servers, SETTINGS.topic_names.results, len(texts))
    assert {result["id"] for result in results} == texts.keys()
    for result in results:
        assert len(result["outputs"]["embedding"]) == 384
        assert result["outputs"]["sentiment"][0]["label"] == "POSITIVE"
    speak(servers, "call-7", "What a lovely day.")
    told = read(servers, SETTINGS.speech_topic_names.transcripts, 2)
    assert [each["type"] for each in told] == ["utterance", "transcript"]
    assert told[0]["outputs"]["sentiment"][0]["label"] == "POSITIVE"
    # As `docker compose down` does: within the grace period, or they are killed.
    for container in containers:
        container.process.send_signal(signal.SIGTERM)
    for container in containers:
        assert container.ends() == 0, container.said()


def produce(servers: str, texts: dict[str, str]) -> None:
    producer = Producer({"bootstrap.servers": servers})
    for number, (name, text) in enumerate(texts.items()):
        value = json.dumps({"id": name, "text": text})
        producer.produce(SETTINGS.topic_names.requests, value, partition=number % len(PARTITIONS))
    assert producer.flush(WAIT_S) == 0


def speak(servers: str, stream_id: str, text: str) -> None:
    said = {"stream_id": stream_id, "utterance_id": "0", "revision": 0, "is_final": True, "text": text}
    producer = Producer({"bootstrap.servers": servers})
    for event in (said, {"stream_id": stream_id, "end_of_stream": True}):
        producer.produce(SETTINGS.speech_topic_names.speech, json.dumps(event), stream_id)
    assert producer.flush(WAIT_S) == 0


def read(servers: str, topic: str, count: int) -> list[dict[str, Any]]:
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "reader", "enable.auto.commit": False})
    try:
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in PARTITIONS])
        deadline = Deadline(WAIT_S)
        results: list[dict[str, Any]] = []
        while len(results) < count and not deadline.expired:
            if (message := consumer.poll(0.2)) is not None:
                assert message.error() is None
                results.append(json.loads(message.value() or b""))
        return results
    finally:
        consumer.close()


def free_ports(count: int) -> list[str]:
    """Below the ports that clients connect from, so that none is given away before Kafka listens."""
    found: list[str] = []
    for port in random.sample(range(20_000, 32_768), 1000):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(str(port))
            if len(found) == count:
                return found
    raise AssertionError("no ports are free")
