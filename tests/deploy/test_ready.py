"""deploy/ready.py, as a container's health check calls it, against real health servers."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from pipeline.http import HealthServer
from pipeline.metrics import WorkerMetrics
from pipeline.settings import PROCESSES, HttpSettings
from tests.deploy.deployment import ROOT

WAIT_S = 30.0


@pytest.fixture
def serve() -> Iterator[Callable[[str | None], int]]:
    """Starts a worker's server that is ready, or says why not; its port."""
    servers: list[HealthServer] = []

    def started(reason: str | None) -> int:
        registry = WorkerMetrics("reviews").registry
        servers.append(HealthServer("0.0.0.0", 0, registry, live=lambda: True, ready=lambda: reason))
        return servers[-1].port

    yield started
    for server in servers:
        server.close()


def ready(*ports: int) -> tuple[int, str]:
    command = [sys.executable, "-I", str(ROOT / "deploy/ready.py"), *map(str, ports)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=WAIT_S)
    return done.returncode, done.stdout


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_worker_that_is_ready(serve: Callable[[str | None], int], free_port: int) -> None:
    port = serve(None)
    assert ready(free_port, port) == (0, f'{port}: {{"ready": true}}\n')


def test_a_worker_that_is_not_ready_says_why(serve: Callable[[str | None], int]) -> None:
    code, said = ready(serve("loading"))
    assert code == 1
    assert "loading" in said


def test_one_of_several_workers_that_is_not_ready(serve: Callable[[str | None], int]) -> None:
    assert ready(serve(None), serve("draining"))[0] == 1


def test_no_worker(free_port: int) -> None:
    assert ready(free_port) == (1, f"nobody listens on {free_port}\n")


def test_one_that_accepts_and_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        code, said = ready(silent.getsockname()[1])
    assert code == 1
    assert "TimeoutError" in said


def test_a_proxy_is_not_asked(serve: Callable[[str | None], int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert ready(serve(None))[0] == 0


def test_the_ports_are_those_of_the_ensemble_file() -> None:
    first = HttpSettings().port
    ports = ", ".join(str(first + number) for number in range(len(PROCESSES)))
    assert f"DEFAULT_PORTS = ({ports})" in (ROOT / "deploy/ready.py").read_text()
