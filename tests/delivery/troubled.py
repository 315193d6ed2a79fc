"""An Apache Kafka that trouble can be made on: a way to it that can be cut, one that asks for a password, and rights.

Tests reach it directly and may do all; a worker comes by the way that its test is about.
"""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewPartitions,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)

from pipeline.apache_kafka.broker import ApacheBroker
from pipeline.apache_kafka.java import java_environment
from pipeline.apache_kafka.runtime import Runtime
from pipeline.settings import EnsembleSettings
from tests.eventually import WAIT_S, eventually

# What a worker with a password may be forbidden, each a resource of its own.
WORKER = "User:worker"
PASSWORD = {
    "security.protocol": "SASL_PLAINTEXT",
    "sasl.mechanism": "PLAIN",
    "sasl.username": "worker",
    "sasl.password": "secret",
}


class Cable:
    """TCP to a port of this machine, until it is cut."""

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._hangs = self._refuses = self._ended = False
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def hang(self) -> None:
        """Nothing gets through any more, and nobody is told."""
        self._hangs = True

    def cut(self) -> None:
        """Connections end, and new ones do so at once."""
        self._refuses = True

    def mend(self) -> None:
        self._hangs = self._refuses = False

    def end(self) -> None:
        self._ended = True
        self._thread.join(WAIT_S)
        for each in [self._listener, *self._pairs]:
            each.close()

    def _run(self) -> None:
        while not self._ended:
            if self._refuses:
                for each in [*self._pairs]:
                    self._close(each)
            if self._hangs:
                threading.Event().wait(0.02)
                continue
            for key, _ in self._selector.select(0.02):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    self._pass_on(key.fileobj)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        if self._refuses:
            near.close()
            return
        try:
            far = socket.create_connection(("127.0.0.1", self._to_port))
        except OSError:
            near.close()
            return
        for each, other in ((near, far), (far, near)):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs[each] = other
            self._selector.register(each, selectors.EVENT_READ)

    def _pass_on(self, one: socket.socket) -> None:
        if one not in self._pairs:
            return
        try:
            read = one.recv(1 << 16)
            if read:
                self._pairs[one].sendall(read)
                return
        except OSError:
            pass
        self._close(one)

    def _close(self, one: socket.socket) -> None:
        other = self._pairs.pop(one, None)
        for each in (one, other):
            if each is not None:
                self._pairs.pop(each, None)
                with contextlib.suppress(KeyError, ValueError):  # closed already
                    self._selector.unregister(each)
                each.close()


class TroubledKafka:
    """The broker, its ways in, and what may be done to it."""

    def __init__(self, folder: Path, runtime: Runtime) -> None:
        self._folder = folder
        self._runtime = runtime
        direct, cabled, guarded, controller = random.sample(range(20_000, 32_000), 4)
        self.cable = Cable(cabled)
        self.by_cable = f"127.0.0.1:{self.cable.port}"
        self.with_password = f"127.0.0.1:{guarded}"
        listeners = {"PLAINTEXT": direct, "CABLED": cabled, "GUARDED": guarded, "CONTROLLER": controller}
        advertised = {"PLAINTEXT": direct, "CABLED": self.cable.port, "GUARDED": guarded}
        login = "org.apache.kafka.common.security.plain.PlainLoginModule required user_worker=secret;"
        self.broker = ApacheBroker(
            folder,
            port=direct,
            runtime=runtime,
            settings={
                "listeners": _addresses(listeners),
                "advertised.listeners": _addresses(advertised),
                "listener.security.protocol.map": (
                    "PLAINTEXT:PLAINTEXT,CABLED:PLAINTEXT,GUARDED:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT"
                ),
                "inter.broker.listener.name": "PLAINTEXT",
                "controller.quorum.voters": f"1@127.0.0.1:{controller}",
                "sasl.enabled.mechanisms": "PLAIN",
                "listener.name.guarded.plain.sasl.jaas.config": login,
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                # The broker itself, and whoever comes without a password.
                "super.users": "User:ANONYMOUS",
                "message.timestamp.after.max.ms": str(10**15),
            },
        )
        self.broker.start()
        self.admin = AdminClient({"bootstrap.servers": self.broker.bootstrap})

    def end(self) -> None:
        self.broker.stop()
        self.cable.end()

    def allow(self, kind: ResourceType, name: str) -> None:
        """The worker with a password may do everything with it."""
        for operation in (AclOperation.ALL,):
            binding = AclBinding(
                kind, name, ResourcePatternType.PREFIXED, WORKER, "*", operation, AclPermissionType.ALLOW
            )
            [made] = self.admin.create_acls([binding]).values()
            made.result(WAIT_S)
        mine = AclBindingFilter(
            kind, name, ResourcePatternType.PREFIXED, WORKER, None, AclOperation.ANY, AclPermissionType.ANY
        )
        # It is answered by what decides, which learns of it a moment later.
        eventually(lambda: bool(self.admin.describe_acls(mine).result(WAIT_S)))

    def forbid(self, kind: ResourceType, name: str) -> None:
        """No longer."""
        every = AclBindingFilter(
            kind, name, ResourcePatternType.PREFIXED, WORKER, None, AclOperation.ANY, AclPermissionType.ANY
        )
        [gone] = self.admin.delete_acls([every]).values()
        assert gone.result(WAIT_S)

    def delete_topic(self, name: str) -> None:
        [gone] = self.admin.delete_topics([name], operation_timeout=WAIT_S).values()
        gone.result(WAIT_S)

    def make_topic(self, name: str, partitions: int) -> None:
        [made] = self.admin.create_topics([NewTopic(name, partitions, 1)], operation_timeout=WAIT_S).values()
        made.result(WAIT_S)

    def add_partitions(self, name: str, partitions: int) -> None:
        """Up to so many."""
        [made] = self.admin.create_partitions([NewPartitions(name, partitions)]).values()
        made.result(WAIT_S)

    def set_producer_quota(self, bytes_per_s: int | None) -> None:
        """For each client that isn't named otherwise; None for no quota. librdkafka has no call for it."""
        change = ["--delete-config", "producer_byte_rate"]
        if bytes_per_s is not None:
            change = ["--add-config", f"producer_byte_rate={bytes_per_s}"]
        command = self._runtime.command(
            "kafka.admin.ConfigCommand",
            *("--bootstrap-server", self.broker.bootstrap, "--alter", "--entity-type", "clients", "--entity-default"),
            *change,
            log_file=self._folder / "config-command.log",
        )
        subprocess.run(command, check=True, capture_output=True, env=java_environment(), timeout=WAIT_S)

    def members(self, group: str) -> int:
        """Of a consumer group, as the broker sees it."""
        [described] = self.admin.describe_consumer_groups([group]).values()
        return len(described.result(WAIT_S).members)


def through(settings: EnsembleSettings, bootstrap: str, **more: Any) -> EnsembleSettings:
    """The same ensemble, by another way to its broker."""
    kafka = settings.kafka.model_dump(by_alias=True) | {"bootstrap.servers": bootstrap} | more
    data: Mapping[str, Any] = settings.model_dump(by_alias=True, exclude={"kafka"}, exclude_defaults=True)
    return EnsembleSettings.model_validate({**data, "kafka": kafka})


@contextlib.contextmanager
def troubled_kafka(folder: Path, runtime: Runtime) -> Iterator[TroubledKafka]:
    kafka = TroubledKafka(folder, runtime)
    try:
        yield kafka
    finally:
        kafka.end()


def _addresses(ports: Mapping[str, int]) -> str:
    return ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items())
