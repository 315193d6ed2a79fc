"""One worker, from settings to exit: its stage, its threads, its HTTP port, its signals.

A worker runs one stage over topics, or, fused, all three from requests to results.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import partial
from typing import Literal

from confluent_kafka.admin import AdminClient

from pipeline.instance import await_instance, claim_instance, host_name
from pipeline.metrics import WorkerMetrics
from pipeline.reach import fit_to_broker, require_no_packs, require_transactions
from pipeline.settings import STAGES, EnsembleSettings, Stage
from pipeline.share_group import prepare_share_group, require_share_group
from pipeline.step_makers import Makers, load_stages
from pipeline.supervisor import RESTARTS
from pipeline.topics import require_topics, wanted_topics
from pipeline.work import work
from pipeline.worker_process import WorkerState, await_broker, open_http, stopped_by_signals

log = logging.getLogger("penstock.serve")

# What a worker does: one stage, or all of them.
Role = Literal["tokenize", "encode", "postprocess", "fused"]

# How much a worker gives way to `penstock transcripts` on its machine: these pass over what is revised already, and so
# must come first where there is too much for both.
_BEHIND_TRANSCRIPTS = 5


def serve(
    settings: EnsembleSettings,
    role: Role,
    *,
    http_port: int | None = None,
    instance_name: str | None = None,
    standby: bool = False,
) -> None:
    """Run a worker until SIGTERM or SIGINT, then drain. `instance_name` is its own in the group, in place of the first
    that is free on this machine. A `standby` loads, then waits until the name is free.

    Raises UserError where a person must act (topics, models, settings), WorkerFailure where a fresh start may help.
    """
    stages: Sequence[Stage] = STAGES if role == "fused" else (role,)
    if settings.speech is not None:
        os.nice(_BEHIND_TRANSCRIPTS)
    metrics = WorkerMetrics(settings.name, restarts=int(os.environ.get(RESTARTS, "0")))
    state = WorkerState()
    group = settings.group_id(stages[0])
    makers: Makers | None = None
    instance = None if standby else claim_instance(group, wanted=instance_name)
    with stopped_by_signals(state.stop):
        if instance is None:
            makers = load_stages(settings, stages)
            log.info("%s of %s stands by", role, settings.name)
            instance = await_instance(group, instance_name or f"{host_name()}-0", state.stop.is_set)
            if instance is None:
                return
        http = open_http(settings, settings.http_port(stages[0]), http_port, metrics, state)
        name = instance.name or "a new member"
        log.info("%s of %s as %s: http on %s:%d", role, settings.name, name, http.host, http.port)
        try:
            fit = await_broker(settings, partial(_fit, settings, role), state=state)
            if fit is not None:
                work(fit, stages, metrics, state, instance=instance, makers=makers)
        finally:
            http.close()
            instance.release()


def _fit(settings: EnsembleSettings, role: Role, admin: AdminClient) -> EnsembleSettings:
    """The settings, fit to the broker. Raises UserError where its topics, or what else it has, are not what the stages
    need; TopicError where it doesn't answer."""
    fused = role == "fused"
    require_topics(admin, wanted_topics(settings, fused=fused))
    require_transactions(settings, admin)
    require_share_group(settings, admin, fused=fused)
    if role == "encode" and settings.encode_order == "none":
        prepare_share_group(settings, admin)
    if fused:
        require_no_packs(settings, admin)
    return fit_to_broker(settings, admin)
