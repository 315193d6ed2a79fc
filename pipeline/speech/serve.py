"""`penstock transcripts`, from settings to exit: its topics, its name in the group, its signals."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import math
import signal
import sys
import time
from typing import TYPE_CHECKING

from pipeline.broker import is_embedded
from pipeline.errors import UserError, WorkerFailure
from pipeline.instance import claim_instance
from pipeline.parent import parent_gone
from pipeline.reach import reach_broker
from pipeline.settings import EnsembleSettings
from pipeline.topics import WantedTopic, broker_metadata, speech_topics, wanted_topics
from pipeline.up import make_missing
from schemas.requests import request_kind

if TYPE_CHECKING:
    from pipeline.speech.app import TranscriptsApp

log = logging.getLogger("penstock.transcripts")

# How soon the supervisor's death, or a failure, is noticed.
_LOOK_S = 0.5
# Under the 30 s between SIGTERM and SIGKILL.
_STOP_BUDGET_S = 20.0
# Libraries that tell each rebalance in a dozen lines, and those that tell each attempt to reconnect.
_TALKATIVE = ("faust", "mode", "pipeline.speech")
_REPETITIVE = ("aiokafka.consumer", "aiokafka.producer")
_TELL_EVERY_S = 10.0


def serve_transcripts(settings: EnsembleSettings, *, instance_name: str | None = None) -> None:
    """Run until SIGTERM or SIGINT, then finish what is begun and leave.

    Raises UserError where a person must act, WorkerFailure where a fresh start may help.
    """
    require_speech(settings)
    admin = reach_broker(settings.kafka)
    for topic in make_missing(settings, admin, [*_ensemble_topics(settings), *speech_topics(settings)]):
        log.info("made topic %s", topic)
    embedded = is_embedded(broker_metadata(admin).topics)
    instance = claim_instance(settings.transcripts_group, wanted=instance_name)
    _quieten_libraries()
    log.info("transcripts of %s as %s", settings.name, instance.name or "a new member")
    try:
        asyncio.run(_run(settings, instance.name, embedded=embedded))
    finally:
        instance.release()


async def _run(settings: EnsembleSettings, instance: str | None, *, embedded: bool) -> None:
    from pipeline.speech.app import TranscriptsApp

    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    app = TranscriptsApp(settings, instance=instance, embedded=embedded, stopped=stopped)
    starting = asyncio.create_task(app.start())
    while not stopped.is_set():
        if starting.done() and not starting.cancelled() and (err := starting.exception()) is not None:
            raise WorkerFailure(f"transcripts can't start: {type(err).__name__}: {err}") from err
        if parent_gone():
            log.warning("the supervisor is gone: stopping")
            break
        if (crash := app.crash_reason) is not None:
            app.failure = crash
            break
        try:
            await asyncio.wait_for(stopped.wait(), _LOOK_S)
        except TimeoutError:
            continue
    await _stop(app, starting)
    if app.failure is not None:
        raise WorkerFailure(f"transcripts: {type(app.failure).__name__}: {app.failure}") from app.failure
    log.info("stopped: %s", ", ".join(f"{name} {count}" for name, count in sorted(app.desk.counts.items())) or "idle")


async def _stop(app: TranscriptsApp, starting: asyncio.Task[None]) -> None:
    if not starting.done():
        starting.cancel()
    try:
        await asyncio.wait_for(app.stop(), _STOP_BUDGET_S)
    except TimeoutError:
        log.warning("Faust does not stop within %g s: left as it is", _STOP_BUDGET_S)


class _Seldom(logging.Filter):
    """One line in so many seconds: that the broker is away."""

    def __init__(self) -> None:
        super().__init__()
        self._told_s = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002 - logging's signature
        now_s = time.monotonic()
        if now_s - self._told_s < _TELL_EVERY_S:
            return False
        self._told_s = now_s
        return True


def _quieten_libraries() -> None:
    if log.isEnabledFor(logging.DEBUG):
        return
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in _REPETITIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    aiokafka = logging.getLogger("aiokafka")
    aiokafka.setLevel(logging.ERROR)
    aiokafka.addFilter(_Seldom())


def require_speech(settings: EnsembleSettings) -> None:
    """Raises UserError where Faust is not installed, or the ensemble reads no texts."""
    _require_faust()
    _require_texts(settings)


def _require_faust() -> None:
    for module, package in (("faust", "faust-streaming"), ("cramjam", "cramjam")):
        # Faust is found no more once it is imported: it takes its module's place.
        if module not in sys.modules and importlib.util.find_spec(module) is None:
            raise UserError(f"transcripts: {package} is not installed: pip install faust-streaming cramjam")


def _require_texts(settings: EnsembleSettings) -> None:
    """As far as the file says it: where it leaves the task to the model, a wrong one makes dead letters."""
    for index, model in enumerate(settings.models):
        if model.task is not None and request_kind([model.task]) != "text":
            message = f"{model.task} reads no texts, and speech is texts: put it into an ensemble of its own"
            raise settings.mistake("models", index, "task", message=message)


def _ensemble_topics(settings: EnsembleSettings) -> list[WantedTopic]:
    names = settings.topic_names
    mine = (names.requests, names.results, names.dead_letters)
    return [topic for topic in wanted_topics(settings, fused=True) if topic.name in mine]
