"""compose.yaml: a valid file, whose services are locked in, wait for each other and have the time that they need."""

from __future__ import annotations

import base64
import copy
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.apache_kafka.jars import KAFKA_VERSION
from pipeline.settings import PROCESSES, STAGES, load_ensemble
from pipeline.up import drain_budget_s
from tests.deploy.deployment import ROOT, STAGE_SERVICES, of, read_compose, read_dockerfile, seconds
from tests.json_schema import check

SCHEMA = json.loads(Path(__file__).with_name("compose-spec.json").read_text())
PENSTOCK_SERVICES = ("topics", *STAGE_SERVICES, "encode-gpu", "transcripts")
ENSEMBLES = ("ensemble.yaml", "ensemble-gpu.yaml")


@pytest.fixture
def compose() -> dict[str, Any]:
    return read_compose()


@pytest.fixture
def services(compose: dict[str, Any]) -> dict[str, Any]:
    return compose["services"]


def test_it_is_valid(compose: dict[str, Any]) -> None:
    assert check(compose, SCHEMA) == []


def test_it_is_valid_before_variables_are_put_in() -> None:
    assert check(YAML(typ="safe", pure=True).load(ROOT / "compose.yaml"), SCHEMA) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["services", "encode", "readonly"], True),
        (["services", "encode", "read_only"], []),
        (["services", "encode", "cap_drop"], ["ALL", "ALL"]),
        (["services", "encode", "depends_on", "kafka", "condition"], "service_ready"),
        (["services", "encode", "depends_on", "kafka"], {}),
        (["services", "encode", "healthcheck", "start_intervall"], "2s"),
        (["services", "kafka", "ports"], {"9092": 9092}),
        (["services", "kafka", "environment", "KAFKA_NODE_ID"], [1]),
        (["volumes", "kafka"], "local"),
        (["service"], {}),
    ],
)
def test_the_schema_finds_a_mistake(compose: dict[str, Any], path: list[str], value: object) -> None:
    changed = copy.deepcopy(compose)
    part = changed
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    assert check(changed, SCHEMA)


def test_its_kafka_is_the_one_that_the_tests_run(services: dict[str, Any]) -> None:
    assert services["kafka"]["image"] == f"apache/kafka:{KAFKA_VERSION}"


def test_kafkas_cluster_id_is_one(services: dict[str, Any]) -> None:
    assert len(base64.urlsafe_b64decode(services["kafka"]["environment"]["CLUSTER_ID"] + "==")) == 16


def test_kafkas_data_outlives_its_container(compose: dict[str, Any]) -> None:
    kafka = compose["services"]["kafka"]
    assert f"kafka:{kafka['environment']['KAFKA_LOG_DIRS']}" in kafka["volumes"]
    assert "kafka" in compose["volumes"]


def test_nothing_is_published_beyond_loopback(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_another_port_is_published_and_advertised() -> None:
    kafka = read_compose({"PENSTOCK_KAFKA_PORT": "19999"})["services"]["kafka"]
    assert kafka["ports"] == ["127.0.0.1:19999:9092"]
    assert "HOST://127.0.0.1:19999" in kafka["environment"]["KAFKA_ADVERTISED_LISTENERS"].split(",")


def test_penstock_has_no_rights(services: dict[str, Any]) -> None:
    for name in PENSTOCK_SERVICES:
        service = services[name]
        assert service["read_only"] is True
        assert service["tmpfs"].startswith("/tmp:")
        assert all(volume.endswith(":ro") for volume in service["volumes"] if not volume.startswith("plans:"))


def test_no_service_can_get_more_rights(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not service.keys() & {"privileged", "cap_add", "network_mode", "pid", "user"}, name


def test_the_image_is_built_once_and_not_looked_for_elsewhere(services: dict[str, Any]) -> None:
    assert [name for name, service in services.items() if "build" in service] == ["topics", "encode-gpu"]
    assert services["encode-gpu"]["image"] != services["topics"]["image"]
    for stage in STAGES:
        assert services[stage]["image"] == services["topics"]["image"]
        assert services[stage]["pull_policy"] == "never"


def test_every_other_image_has_a_version(services: dict[str, Any]) -> None:
    for name in services.keys() - set(PENSTOCK_SERVICES):
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+", services[name]["image"])


def test_what_it_mounts_is_in_the_repository(services: dict[str, Any]) -> None:
    volumes = [volume for service in services.values() for volume in service.get("volumes", ())]
    files = {volume.split(":")[0] for volume in volumes if volume.startswith(".")}
    assert "./deploy/ensemble.yaml" in files
    for file in files:
        assert (ROOT / file).is_file()
        # Where Docker finds no file it makes a folder of that name.
        assert subprocess.run(["git", "check-ignore", "--quiet", file], cwd=ROOT).returncode == 1


def test_each_stage_is_a_service_that_scales(services: dict[str, Any]) -> None:
    assert set(STAGE_SERVICES) == set(STAGES)
    for stage in STAGES:
        assert services[stage]["command"] == f"run {stage} /etc/penstock/ensemble.yaml"
        # A container's name and a published port can be had once.
        assert not services[stage].keys() & {"container_name", "ports", "hostname", "deploy", "scale"}


def test_transcripts_are_a_profile_and_scale(services: dict[str, Any]) -> None:
    differing = {"command", "profiles"}
    plain = {name: value for name, value in services["tokenize"].items() if name not in differing}
    service = services["transcripts"]
    assert {name: value for name, value in service.items() if name not in differing} == plain
    assert service["profiles"] == ["speech"]
    assert service["command"] == "transcripts --instance= /etc/penstock/ensemble.yaml"


def test_encode_on_a_gpu_is_encode_with_a_gpu(services: dict[str, Any]) -> None:
    differing = {"profiles", "image", "build", "volumes", "deploy", "healthcheck"}
    plain = {name: value for name, value in services["encode"].items() if name not in differing}
    assert {name: value for name, value in services["encode-gpu"].items() if name not in differing} == plain
    assert services["encode-gpu"]["profiles"] == ["gpu"]
    assert services["encode-gpu"]["volumes"][:-1] == services["encode"]["volumes"]
    assert services["encode-gpu"]["healthcheck"]["test"] == services["encode"]["healthcheck"]["test"]
    (device,) = services["encode-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_the_ensemble_for_a_gpu_differs_in_its_engine_only() -> None:
    plain, gpu = (load_ensemble(ROOT / "deploy" / name) for name in ENSEMBLES)
    assert gpu.engine.kind == "tensorrt"
    for name in type(plain).model_fields.keys() - {"engine", "batching"}:
        assert getattr(plain, name) == getattr(gpu, name), name
    service = read_compose({"PENSTOCK_ENSEMBLE": "./deploy/ensemble-gpu.yaml"})["services"]
    for stage in (*STAGES, "topics", "encode-gpu"):
        assert service[stage]["volumes"][0] == "./deploy/ensemble-gpu.yaml:/etc/penstock/ensemble.yaml:ro"


def test_stages_start_when_the_topics_are_there(services: dict[str, Any]) -> None:
    assert services["topics"]["depends_on"] == {"kafka": {"condition": "service_healthy"}}
    for stage in STAGES:
        assert services[stage]["depends_on"]["topics"] == {"condition": "service_completed_successfully"}
        assert services[stage]["depends_on"]["kafka"] == {"condition": "service_healthy"}


def test_what_runs_on_is_started_again(services: dict[str, Any]) -> None:
    restarts = {name: service["restart"] for name, service in services.items()}
    assert restarts.pop("topics") == "no"
    assert set(restarts.values()) == {"unless-stopped"}


def test_stages_have_the_time_to_drain(services: dict[str, Any]) -> None:
    budget_s = drain_budget_s(load_ensemble(ROOT / "deploy/ensemble.yaml"))
    for stage in STAGES:
        assert seconds(services[stage]["stop_grace_period"]) >= budget_s


def test_health_is_asked_as_the_image_asks_it(services: dict[str, Any]) -> None:
    (of_image,) = of(read_dockerfile()["image"], "HEALTHCHECK")
    *options, command = re.split(r" (?=--|CMD )", f" {of_image.rest}")[1:]
    for stage in STAGES:
        health = services[stage]["healthcheck"]
        assert health["test"] == ["CMD", *json.loads(command.removeprefix("CMD "))]
        for option in options:
            name, _, value = option.removeprefix("--").partition("=")
            assert health[name.replace("-", "_")] == value


def test_stages_listen_for_others_than_their_own_container() -> None:
    settings = load_ensemble(ROOT / "deploy/ensemble.yaml")
    assert settings.http.host == "0.0.0.0"


def test_prometheus_knows_each_stages_port() -> None:
    settings = load_ensemble(ROOT / "deploy/ensemble.yaml")
    jobs = YAML(typ="safe", pure=True).load(ROOT / "deploy/prometheus.yml")["scrape_configs"]
    found = {config["names"][0]: config["port"] for job in jobs for config in job["dns_sd_configs"]}
    assert found == {process: settings.http_port(process) for process in PROCESSES}


def test_kubernetes_example_fits_the_ensemble() -> None:
    settings = load_ensemble(ROOT / "deploy/ensemble.yaml")
    (example,) = re.findall(r"```yaml\n(apiVersion: .*?)```", (ROOT / "docs/deploy.md").read_text(), flags=re.DOTALL)
    spec = YAML(typ="safe", pure=True).load(example)["spec"]
    pod = spec["template"]["spec"]
    (worker,) = pod["containers"]
    assert spec["replicas"] <= settings.topics.partitions
    assert pod["terminationGracePeriodSeconds"] >= drain_budget_s(settings)
    assert worker["ports"] == [{"name": "http", "containerPort": settings.http_port("encode")}]
    assert worker["readinessProbe"]["httpGet"] == {"path": "/v2/health/ready", "port": "http"}
    assert worker["livenessProbe"]["httpGet"] == {"path": "/v2/health/live", "port": "http"}
