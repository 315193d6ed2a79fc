"""The share group of the encode stage (KIP-932): whether there can be one, and the broker's settings for it.

A share group hands single records to any of its members, so there may be more members than partitions. Where it begins,
how long a record is locked and how often it is handed out are settings of the group, kept by the broker.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # they are exported, but not in mypy's sense
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
)

from pipeline.broker import is_embedded
from pipeline.deadline import Deadline
from pipeline.errors import UserError
from pipeline.settings import EnsembleSettings
from pipeline.topics import TopicError, broker_metadata

_ADMIN_TIMEOUT_S = 30.0
_APPLY_S = 10.0
_LOOK_S = 0.05

# How often the broker hands a record out before it drops it: the most that it allows by default. What is above
# max_deliveries are tries to dead-letter it.
DELIVERY_COUNT_LIMIT = 10

# A member gets whole batches of the topic, and more than it can deliver within its lock if one holds many packs: the
# producer of packs makes batches of one. A pack is many texts already.
ONE_PACK_A_BATCH: Mapping[str, int] = {"batch.num.messages": 1}


def require_share_group(settings: EnsembleSettings, admin: AdminClient, *, fused: bool) -> None:
    """Raises UserError where the ensemble wants what can't be had here. TopicError where no broker answers."""
    if settings.encode_order == "partition":
        return
    if fused:
        raise UserError(
            "encode_order: none is for stages that run apart, and --fused runs encode with the others: leave out one"
        )
    if is_embedded(broker_metadata(admin).topics):
        raise UserError(
            "encode_order: none needs Apache Kafka 4.2 or newer, and the embedded broker has no share groups: "
            "start one with `penstock broker --apache`"
        )


def prepare_share_group(settings: EnsembleSettings, admin: AdminClient) -> None:
    """Give the encode stage's group its settings, where it has others. To be done before a member joins: a group begins
    where it is told to then.

    Raises UserError where the broker refuses them; TopicError where it doesn't answer.
    """
    group = settings.group_id("encode")
    wanted = {
        # The default is the end: what was written before the first worker came would never be read.
        "share.auto.offset.reset": "earliest",
        "share.record.lock.duration.ms": str(settings.share_group.lock_ms),
        "share.delivery.count.limit": str(DELIVERY_COUNT_LIMIT),
    }
    changes = _missing(admin, group, wanted)
    if changes:
        _set(admin, group, changes)
    # The broker says yes some hundredths of a second before its own parts know of it.
    deadline = Deadline(_APPLY_S)
    while changes and (changes := _missing(admin, group, wanted)):
        if deadline.expired:
            raise TopicError(f"the broker took the settings of group {group} and does not apply them")
        time.sleep(_LOOK_S)


def _set(admin: AdminClient, group: str, changes: Mapping[str, str]) -> None:
    entries = [ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in changes.items()]
    resource = ConfigResource(ConfigResource.Type.GROUP, group, incremental_configs=entries)
    try:
        for future in admin.incremental_alter_configs([resource], request_timeout=_ADMIN_TIMEOUT_S).values():
            future.result()
    except KafkaException as err:
        error = err.args[0]
        if error.retriable() or error.code() < 0:
            raise TopicError(f"the broker does not take settings of group {group}: {error.str()}") from err
        said = ", ".join(f"{name}={value}" for name, value in changes.items())
        raise UserError(
            f"encode_order: none needs Apache Kafka 4.2 or newer and, of group {group}, {said}; "
            f"the broker refuses that: {error.str()}"
        ) from err


def _missing(admin: AdminClient, group: str, wanted: Mapping[str, str]) -> dict[str, str]:
    """What the group has not, as far as the broker says: if it knows no such settings, it refuses to set them."""
    resource = ConfigResource(ConfigResource.Type.GROUP, group)
    try:
        (future,) = admin.describe_configs([resource], request_timeout=_ADMIN_TIMEOUT_S).values()
        found = {name: entry.value for name, entry in future.result().items()}
    except KafkaException:
        found = {}
    return {name: value for name, value in wanted.items() if found.get(name) != value}
