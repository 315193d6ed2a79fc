"""Health and metrics over real HTTP on loopback."""

from __future__ import annotations

import http.client
import json
import logging
import re
import socket

import pytest

from pipeline import http as served
from pipeline.http import HealthServer, host_refusal
from pipeline.metrics import WorkerMetrics
from pipeline.mistakes import SettingsError


class Worker:
    """Answers what a test wants."""

    def __init__(self) -> None:
        self.metrics = WorkerMetrics("demo")
        self.metrics.stage("encode")
        self.is_live = True
        self.reason: str | None = None

    def live(self) -> bool:
        return self.is_live

    def ready(self) -> str | None:
        return self.reason


@pytest.fixture
def worker():
    return Worker()


@pytest.fixture
def serve(worker):
    servers: list[HealthServer] = []

    def serve(host: str = "127.0.0.1", port: int = 0) -> HealthServer:
        servers.append(HealthServer(host, port, worker.metrics.registry, live=worker.live, ready=worker.ready))
        return servers[-1]

    yield serve
    for server in servers:
        server.close()


def request(server: HealthServer, method: str, path: str, accept: str = "*/*") -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
    connection.request(method, path, headers={"Accept": accept})
    response = connection.getresponse()
    answer = response.status, dict(response.headers), response.read()
    connection.close()
    return answer


def test_metrics(serve):
    status, headers, body = request(serve(), "GET", "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert b"# TYPE nv_inference_count counter\n" in body


def test_metrics_in_the_format_that_prometheus_asks_for(serve):
    _, headers, body = request(serve(), "GET", "/metrics?x=1", "application/openmetrics-text; version=1.0.0")
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_live(serve, worker):
    server = serve()
    status, headers, body = request(server, "GET", "/v2/health/live")
    assert (status, headers["Content-Type"], json.loads(body)) == (200, "application/json", {"live": True})
    worker.is_live = False
    status, _, body = request(server, "GET", "/v2/health/live")
    assert (status, json.loads(body)) == (503, {"live": False})


def test_ready_or_why_not(serve, worker):
    server = serve()
    status, _, body = request(server, "GET", "/v2/health/ready")
    assert (status, json.loads(body)) == (200, {"ready": True})
    worker.reason = "the broker is away"
    status, _, body = request(server, "GET", "/v2/health/ready")
    assert (status, json.loads(body)) == (503, {"ready": False, "reason": "the broker is away"})


def test_head_has_the_headers_and_no_body(serve):
    status, headers, body = request(serve(), "HEAD", "/v2/health/live")
    assert (status, headers["Content-Length"], body) == (200, str(len('{"live": true}')), b"")


@pytest.mark.parametrize("path", ["/", "/v2/health", "/v2/health/live/", "/metrics/x"])
def test_any_other_path_is_not_found(serve, path):
    assert request(serve(), "GET", path)[0] == 404


def test_other_methods_are_refused(serve):
    assert request(serve(), "POST", "/metrics")[0] == 501


def test_no_version_of_python_is_told(serve):
    assert "Python" not in request(serve(), "GET", "/metrics")[1]["Server"]


def test_a_busy_port_is_one_line(serve):
    first = serve()
    with pytest.raises(SettingsError) as caught:
        serve(port=first.port)
    assert caught.value.lines == (
        f"http.port: can't listen on 127.0.0.1, port {first.port}: Address already in use; "
        "allowed: another one, or 0 for any",
    )


def test_a_host_that_is_not_this_machine_is_one_line(serve):
    with pytest.raises(SettingsError) as caught:
        serve(host="192.0.2.1")
    assert len(caught.value.lines) == 1
    assert caught.value.lines[0].startswith("http.host: can't listen on 192.0.2.1, port 0: ")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_a_host_of_this_machine_is_found_out_without_keeping_a_port(host):
    assert host_refusal(host) is None


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid", "a" * 64 + ".org"])
def test_a_host_that_is_not_ours_is_refused_with_the_systems_reason(host):
    refusal = host_refusal(host)
    assert re.fullmatch(rf"can't listen on {host}: \S.*; allowed: an address or a name of this machine", refusal or "")


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_ipv6(serve, host):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    assert request(serve(host), "GET", "/v2/health/live")[0] == 200


def test_a_closed_server_frees_its_port_and_may_be_closed_again(serve):
    first = serve()
    first.close()
    first.close()
    assert serve(port=first.port).port == first.port


def test_a_silent_client_keeps_nobody_waiting(serve):
    server = serve()
    with socket.create_connection((server.host, server.port)):
        assert request(server, "GET", "/v2/health/live")[0] == 200


def test_more_clients_than_the_bound_are_cut_off_and_later_ones_served(serve, monkeypatch):
    monkeypatch.setattr(served, "_MAX_CONNECTIONS", 1)
    server = serve()
    with socket.create_connection((server.host, server.port)) as silent:
        silent.sendall(b"GET ")
        with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
            request(server, "GET", "/v2/health/live")
        silent.sendall(b"/v2/health/live HTTP/1.0\r\n\r\n")
        assert silent.recv(100).startswith(b"HTTP/1.0 200")


def test_requests_leave_no_line_in_the_log(serve, caplog):
    with caplog.at_level(logging.INFO):
        request(serve(), "GET", "/metrics")
        request(serve(), "GET", "/nothing")
    assert not caplog.records


def test_a_worker_that_fails_to_answer_is_not_healthy_and_is_logged(serve, worker, monkeypatch, caplog):
    monkeypatch.setattr(worker, "ready", lambda: 1 / 0)
    server = HealthServer("127.0.0.1", 0, worker.metrics.registry, live=worker.live, ready=worker.ready)
    with pytest.raises(http.client.RemoteDisconnected):
        request(server, "GET", "/v2/health/ready")
    server.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
