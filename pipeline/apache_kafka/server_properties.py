"""The broker's settings: one node that is broker and controller, on loopback, quick to notice who is gone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pipeline.topics import MAX_RECORD_BYTES

NODE_ID = 1

_SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": str(NODE_ID),
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    # 3 s by default, for members that start one after the other.
    "group.initial.rebalance.delay.ms": "0",
    # 50 by default, each a folder.
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.num.partitions": "4",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # 10 s by default: so much later than it timed out a transaction that somebody left open is ended.
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
    # A misspelt name is to be an error.
    "auto.create.topics.enable": "false",
    # A record as large as the ensemble's topics allow, and what a batch adds to it.
    "message.max.bytes": str(MAX_RECORD_BYTES + (1 << 20)),
    # The least that members may ask for; what they get without asking stays Kafka's default.
    "group.min.session.timeout.ms": "100",
    "group.consumer.min.session.timeout.ms": "500",
    "group.consumer.min.heartbeat.interval.ms": "100",
    "group.share.min.session.timeout.ms": "500",
    "group.share.min.heartbeat.interval.ms": "100",
}


def server_properties(*, port: int | None, controller_port: int, log_dir: Path, more: Mapping[str, str]) -> str:
    """The text of server.properties; `more` wins. A controller that runs alone has no `port`.

    The quorum's one voter is named here and not in the data, so that the controller's port may change between starts.
    """
    controller, broker = f"CONTROLLER://127.0.0.1:{controller_port}", f"PLAINTEXT://127.0.0.1:{port}"
    settings = _SETTINGS | {
        "listeners": controller if port is None else f"{broker},{controller}",
        "advertised.listeners": controller if port is None else broker,
        "controller.quorum.voters": f"{NODE_ID}@127.0.0.1:{controller_port}",
        "log.dirs": str(log_dir),
        **more,
    }
    return "".join(f"{name}={_escaped(value)}\n" for name, value in settings.items())


def _escaped(value: str) -> str:
    r"""Java's properties escape as JSON does: \\ for a backslash, \uXXXX for what is not ASCII."""
    return json.dumps(value)[1:-1]
