"""The demo's processes: started, watched, asked how they are, stopped.

Each worker writes its log to a file, which is shown only when something goes wrong, and serves its metrics at a port
that was free a moment ago: the file's own may be taken, by another demo say. (A worker that finds its port taken in
between says so and ends; with 28,000 ports to choose from that is not worth a protocol.)
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.broker import BrokerProcess
from pipeline.deadline import Deadline
from pipeline.demo.summary import Memory
from pipeline.demo.worker import log_file
from pipeline.exit_codes import EXIT_FAILED, EXIT_USER_ERROR
from pipeline.settings import STAGES, EnsembleSettings
from pipeline.supervisor import RestartPolicy, Supervisor
from pipeline.up import stage_commands

# A worker that dies 3 times in a row, 2 s of loading each, will die again.
_RESTARTS = RestartPolicy(max_deaths=3)
_READY_LOOK_S = 0.1
# Loopback, and a page of 20 KB: later than this it does not come.
_HTTP_TIMEOUT_S = 5.0
_TAIL_LINES = 12
_TAIL_BYTES = 16_384
# What is bound to all addresses answers at the loopback one.
_ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class DemoStopped(Exception):
    """Raised when the demo can't go on, or is not wanted any more: why, and the command's exit code."""

    def __init__(self, exit_code: int, line: str, *details: str) -> None:
        super().__init__(line)
        self.exit_code = exit_code
        self.line = line
        self.details = details


class StageProcesses:
    """The stages' supervised workers; fused, the one worker of all."""

    def __init__(
        self,
        file: Path,
        settings: EnsembleSettings,
        *,
        fused: bool,
        logs: Path,
        on_restart: Callable[[str], None],
        transcripts: bool = False,
    ) -> None:
        """With `transcripts`, these run beside the stages."""
        roles: list[str] = ["fused"] if fused else [*STAGES]
        host = settings.http.host.strip("[]")
        self._host = _ANY_HOST.get(host, host)
        if transcripts:
            roles.append("transcripts")
        self._ports = dict(zip(roles, _free_ports(self._host, len(roles)), strict=True))
        self._logs = {role: log_file(logs, stage=role) for role in roles}
        self._restarts = dict.fromkeys(roles, 0)
        self._on_restart = on_restart
        commands = stage_commands(
            file,
            settings.kafka.bootstrap_servers,
            fused=fused,
            transcripts=transcripts,
            http_ports=self._ports,
            module=("pipeline.demo.worker", str(logs), "--log-level", "warning"),
        )
        self._supervisor = Supervisor(commands, policy=_RESTARTS)

    @property
    def roles(self) -> list[str]:
        """Their names."""
        return [*self._logs]

    @property
    def restarts(self) -> int:
        """How often one died and was started again."""
        return sum(self._restarts.values())

    def start(self) -> None:
        """Start all."""
        self._supervisor.start()

    def look(self) -> None:
        """Start again who died. Raises DemoStopped where that doesn't help."""
        exit_code = self._supervisor.poll()
        for role, count in self._supervisor.restarts.items():
            if count > self._restarts[role]:
                self._restarts[role] = count
                self._on_restart(role)
        if exit_code is None:
            return
        dead = [role for role in self.roles if role not in self._supervisor.pids]
        how = "can't work with these settings" if exit_code == EXIT_USER_ERROR else "died again and again"
        raise DemoStopped(exit_code, f"{' and '.join(dead)} {how}", *self.tail(dead))

    def not_ready(self) -> dict[str, str]:
        """Who does not take work yet, and why not."""
        waiting: dict[str, str] = {}
        for role in self._ports:
            status, body = self._get(role, "/v2/health/ready")
            if status != http.client.OK:
                waiting[role] = _reason(body)
        return waiting

    def await_ready(self, look: Callable[[], None], *, budget_s: float) -> None:
        """Returns when all take work. `look` sees to what must not go unnoticed meanwhile. Raises DemoStopped."""
        deadline = Deadline(budget_s)
        while waiting := self.not_ready():
            look()
            if deadline.expired:
                reasons = [f"{role}: {reason}" for role, reason in waiting.items()]
                raise DemoStopped(EXIT_FAILED, f"not ready after {budget_s:g} s", *reasons)
            time.sleep(_READY_LOOK_S)

    def metrics(self) -> dict[str, str]:
        """Each worker's page of metrics, as far as it answers."""
        pages = {role: self._get(role, "/metrics") for role in self._ports}
        return {role: body for role, (status, body) in pages.items() if status == http.client.OK}

    def memory(self, broker: BrokerProcess | None) -> dict[str, Memory]:
        """Of the workers, the demo itself and its broker, where the system tells."""
        pids = dict(self._supervisor.pids)
        if broker is not None:
            pids["broker"] = broker.pid
        pids["demo"] = os.getpid()
        found = {name: _memory(pid) for name, pid in pids.items()}
        return {name: memory for name, memory in found.items() if memory is not None}

    def tail(self, roles: Sequence[str]) -> list[str]:
        """The last lines that these workers wrote."""
        lines: list[str] = []
        for role in roles:
            if not self._logs[role].exists():
                continue
            with self._logs[role].open("rb") as log:
                log.seek(max(0, self._logs[role].stat().st_size - _TAIL_BYTES))
                written = log.read().decode(errors="replace")
            lines += [f"{role}: {line}" for line in written.splitlines()[-_TAIL_LINES:]]
        return lines

    def stop(self, budget_s: float) -> None:
        """Let them drain, up to the budget; then none is left."""
        self._supervisor.stop(budget_s)

    def kill(self) -> None:
        """End them at once, also from a signal handler."""
        self._supervisor.kill()

    def _get(self, role: str, path: str) -> tuple[int, str]:
        # http.client and not urllib: no proxy stands between processes of one machine.
        connection = http.client.HTTPConnection(self._host, self._ports[role], timeout=_HTTP_TIMEOUT_S)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        except (OSError, http.client.HTTPException):
            return 0, ""
        finally:
            connection.close()


def _reason(body: str) -> str:
    try:
        return str(json.loads(body)["reason"])
    except (ValueError, KeyError, TypeError):
        return "no answer at its port"


def _free_ports(host: str, count: int) -> list[int]:
    """Ports that nobody has. All are held until the last is found, so that they differ."""
    sockets: list[socket.socket] = []
    try:
        for _ in range(count):
            family, kind, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
            sockets.append(socket.socket(family, kind))
            sockets[-1].bind(address)
        return [int(each.getsockname()[1]) for each in sockets]
    except OSError as err:
        raise DemoStopped(
            EXIT_USER_ERROR, f"http.host: can't listen on {host}: {err.strerror}; 127.0.0.1 always works"
        ) from err
    finally:
        for each in sockets:
            each.close()


def _memory(pid: int) -> Memory | None:
    """Linux tells the peak as well, which a worker's metrics don't know."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    kilobytes = {name: value.split()[0] for name, _, value in (line.partition(":") for line in lines) if value.strip()}
    if "VmRSS" not in kilobytes:
        return None
    return Memory(rss=round(int(kilobytes["VmRSS"]) / 1024, 1), peak=round(int(kilobytes["VmHWM"]) / 1024, 1))
