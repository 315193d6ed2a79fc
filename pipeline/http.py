"""A worker's HTTP server: `/metrics` for Prometheus, and the health paths of the Open Inference Protocol.

    GET /v2/health/live   200 while the worker's poll thread goes round and no other has failed; 503 is a reason to
                          restart it
    GET /v2/health/ready  200 while it takes work; 503 with {"ready": false, "reason": "..."}

Daemon threads: nothing here ever holds up a worker that stops.
"""

from __future__ import annotations

import errno
import json
import logging
import socket
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry

from pipeline.mistakes import SettingsError
from pipeline.triton_metrics import exposition

log = logging.getLogger("penstock.http")

# Prometheus, an orchestrator's probes and a person with curl; more is a mistake, and threads are not free.
_MAX_CONNECTIONS = 16
# A client that doesn't send its request in this time is cut off.
_REQUEST_TIMEOUT_S = 5.0
# How late close() is noticed, against wake-ups of an idle process.
_POLL_S = 0.2

_OUR_HOSTS = "an address or a name of this machine"
_JSON = "application/json"
_Page = tuple[HTTPStatus, str, bytes]


class PortTaken(SettingsError):
    """Raised when somebody else listens on the port."""


class HealthServer:
    """Serves from the moment it is made until `close`.

    `live` and `ready` are asked at each request, from the server's threads; `ready` answers None, or why not.
    Port 0 takes a free one. Raises PortTaken, or SettingsError where the address can't be had for another reason.
    """

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        *,
        live: Callable[[], bool],
        ready: Callable[[], str | None],
    ) -> None:
        def page(path: str, accept: str) -> _Page:
            if path == "/metrics":
                body, content_type = exposition(registry, accept)
                return HTTPStatus.OK, content_type, body
            if path == "/v2/health/live":
                is_live = live()
                return _status(is_live), _JSON, json.dumps({"live": is_live}).encode()
            if path == "/v2/health/ready":
                reason = ready()
                answer = {"ready": True} if reason is None else {"ready": False, "reason": reason}
                return _status(reason is None), _JSON, json.dumps(answer).encode()
            return HTTPStatus.NOT_FOUND, _JSON, b'{"error": "no such path"}'

        self._server = _open(host, port, page)
        self.host, self.port = self._server.server_address[:2]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_S,), name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening. May be called twice."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def host_refusal(host: str) -> str | None:
    """Why this machine can't listen on an address, by taking a port of it for a moment; None where it can."""
    try:
        family, address = _address(host, 0)
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind(address)
    except (OSError, UnicodeError) as err:
        return f"can't listen on {host}: {_reason(err)}; allowed: {_OUR_HOSTS}"
    return None


class _Server(ThreadingHTTPServer):
    """At most _MAX_CONNECTIONS at a time; one more is closed unanswered."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: Any, family: int, page: Callable[[str, str], _Page]) -> None:
        self.address_family = family
        self.page = page
        self._connections = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own asks the DNS for this machine's name, which takes seconds where there is none.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._connections.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread could be started
            self._connections.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's signature
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            log.warning("a request from %s failed", client_address[0], exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "penstock"
    sys_version = ""
    timeout = _REQUEST_TIMEOUT_S

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        status, content_type, body = self.server.page(path, self.headers.get("Accept", ""))
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if with_body:
            self.wfile.write(body)


def _status(good: bool) -> HTTPStatus:
    return HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE


def _open(host: str, port: int, page: Callable[[str, str], _Page]) -> _Server:
    try:
        family, address = _address(host, port)
        return _Server(address, family, page)
    except (OSError, UnicodeError) as err:
        message = f"can't listen on {host}, port {port}: {_reason(err)}; allowed:"
        if isinstance(err, OSError) and err.errno in (errno.EADDRINUSE, errno.EACCES):
            kind = PortTaken if err.errno == errno.EADDRINUSE else SettingsError
            raise kind([f"http.port: {message} another one, or 0 for any"]) from err
        raise SettingsError([f"http.host: {message} {_OUR_HOSTS}"]) from err


def _address(host: str, port: int) -> tuple[int, Any]:
    name = host.removeprefix("[").removesuffix("]")
    family, _, _, _, address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
    return family, address


def _reason(err: OSError | UnicodeError) -> str:
    return err.strerror if isinstance(err, OSError) and err.strerror else str(err)
