"""One worker, from settings to exit: its stage, its threads, its HTTP port, its signals.

A worker runs one stage over topics, or, fused, all three from requests to results.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Literal

from pipeline import clients
from pipeline.http import HealthServer, PortTaken
from pipeline.instance import await_instance, claim_instance, host_name
from pipeline.metrics import WorkerMetrics
from pipeline.parent import parent_gone
from pipeline.reach import fit_to_broker, require_no_packs, require_transactions
from pipeline.settings import STAGES, EnsembleSettings, Stage
from pipeline.share_group import prepare_share_group, require_share_group
from pipeline.step_makers import Makers, load_stages
from pipeline.supervisor import RESTARTS
from pipeline.topics import TopicError, broker_metadata, require_topics, wanted_topics
from pipeline.work import WorkerState, work

log = logging.getLogger("penstock.serve")

# What a worker does: one stage, or all of them.
Role = Literal["tokenize", "encode", "postprocess", "fused"]

# How much a worker gives way to `penstock transcripts` on its machine: these pass over what is revised already, and so
# must come first where there is too much for both.
_BEHIND_TRANSCRIPTS = 5

# How late a stop is noticed while a broker is awaited, and how often that is told.
_BROKER_LOOK_S = 0.5
_TELL_EVERY_S = 10.0
# How soon the supervisor's death is noticed.
_PARENT_LOOK_S = 1.0


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
    with _stopped_by_signals(state.stop):
        if instance is None:
            makers = load_stages(settings, stages)
            log.info("%s of %s stands by", role, settings.name)
            instance = await_instance(group, instance_name or f"{host_name()}-0", state.stop.is_set)
            if instance is None:
                return
        http = _open_http(settings, stages[0], http_port, metrics, state)
        name = instance.name or "a new member"
        log.info("%s of %s as %s: http on %s:%d", role, settings.name, name, http.host, http.port)
        try:
            settings = _await_topics(settings, role, state=state)
            if not state.stop.is_set():
                work(settings, stages, metrics, state, instance=instance, makers=makers)
        finally:
            http.close()
            instance.release()


def _open_http(
    settings: EnsembleSettings, stage: Stage, http_port: int | None, metrics: WorkerMetrics, state: WorkerState
) -> HealthServer:
    """At `http_port`, else at the file's port for the stage, else, where another worker of the stage has that, at any.

    Raises SettingsError.
    """

    def listen(port: int) -> HealthServer:
        return HealthServer(settings.http.host, port, metrics.registry, live=state.live, ready=state.not_ready)

    if http_port is not None:
        return listen(http_port)
    port = settings.http_port(stage)
    try:
        return listen(port)
    except PortTaken:
        log.warning("http.port: %d is taken: taking a free one; --http-port chooses", port)
        return listen(0)


def _await_topics(settings: EnsembleSettings, role: Role, *, state: WorkerState) -> EnsembleSettings:
    """Wait for a broker, however long it takes; the settings, fit to it. Raises UserError where its topics, or what
    else it has, are not what the stages need."""
    fused = role == "fused"
    admin = clients.admin(settings.kafka.client_settings())
    wanted = wanted_topics(settings, fused=fused)
    state.waiting_for = f"no broker answers at {settings.kafka.bootstrap_servers}"
    told_s = -math.inf
    while not state.stop.is_set():
        try:
            broker_metadata(admin, timeout_s=_BROKER_LOOK_S)
            require_topics(admin, wanted)
            require_transactions(settings, admin)
            require_share_group(settings, admin, fused=fused)
            if role == "encode" and settings.encode_order == "none":
                prepare_share_group(settings, admin)
            if fused:
                require_no_packs(settings, admin)
            settings = fit_to_broker(settings, admin)
        except TopicError as err:
            if time.monotonic() - told_s >= _TELL_EVERY_S:
                log.warning("%s; trying again", err)
                told_s = time.monotonic()
            continue
        state.waiting_for = "loading"
        break
    return settings


@contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    # The handler runs inside of whatever the main thread does, which may hold the Event's lock: so a thread sets it.
    # SimpleQueue's put is made for that, it may interrupt any call of the queue's.
    signals: SimpleQueue[int] = SimpleQueue()

    def handle(number: int, _frame: FrameType | None) -> None:
        signals.put(number)

    def watch() -> None:
        while not stop.is_set():
            try:
                signals.get(timeout=_PARENT_LOOK_S)
                stop.set()
            except Empty:
                if parent_gone():
                    log.warning("the supervisor is gone: draining")
                    stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    threading.Thread(target=watch, name="signals", daemon=True).start()
    try:
        yield
    finally:
        stop.set()
        for number, handler in before.items():
            signal.signal(number, handler)
