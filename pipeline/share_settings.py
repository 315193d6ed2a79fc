"""The ensemble file's section `share_group`: how encode workers share partitions where order does not matter."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.ensemble_file import Section

EncodeOrder = Literal["partition", "none"]


class ShareGroupSettings(Section):
    """Of `encode_order: none`; without effect otherwise. The group's own settings are written to the broker when an
    encode worker starts, before it joins."""

    packs_per_poll: int = Field(default=4, ge=1, le=256)
    """Packs that a worker takes in one go. It has two of these: one is computed while the other is fetched. More keep a
    fast engine busy; fewer leave more to the other workers. What it takes it must deliver within `lock_ms`."""

    lock_ms: int = Field(default=60_000, ge=1_000, le=3_600_000)
    """How long a pack is a worker's alone. What is not delivered by then goes to another too, and is answered twice:
    the client can't renew a lock. Only a worker that hangs is noticed so late; one that dies loses its packs at once.
    A broker allows 15 to 60 s, unless its `group.share.max.record.lock.duration.ms` says otherwise."""

    max_deliveries: int = Field(default=4, ge=1, le=8)
    """How often a pack is tried. One that comes back once more (its workers died, or were too slow) is not computed:
    its texts become dead letters, `returned_too_often`. The broker would drop it after the tenth, without a word."""
