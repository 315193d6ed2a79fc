"""`penstock demo --asr`: recorded speech through everything, at its real pace, and the transcripts as they grow."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import msgspec

from pipeline.broker import BrokerProcess, start_broker_process
from pipeline.deadline import Deadline
from pipeline.demo.interruption import Interruption, logging_to
from pipeline.demo.processes import DemoStopped, StageProcesses
from pipeline.demo.recorded_speech import read_recording, speech
from pipeline.demo.speech_feed import SpeechFeed
from pipeline.demo.speech_screen import Revisions, SpeechScreen, open_speech_screen
from pipeline.ensemble_file import require_regular_file
from pipeline.errors import UserError, WorkerFailure
from pipeline.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED
from pipeline.reach import reach_broker
from pipeline.settings import EnsembleSettings, load_ensemble
from pipeline.speech.serve import require_speech
from pipeline.topics import speech_topics
from pipeline.up import drain_budget_s, make_missing, make_topics

SPEECH_ENSEMBLE = Path(__file__).with_name("speech.yaml")
DEFAULT_STREAMS = 5
DEFAULT_SECONDS = 15.0

_READY_BUDGET_S = 120.0
_READY_LOOK_S = 0.1
# Ten seconds without a word are an hour.
_SILENCE_S = 60.0
_HASTY_DRAIN_S = 3.0


def run_speech_demo(
    *,
    ensemble: Path | None = None,
    bootstrap: str | None = None,
    streams: int | None = None,
    seconds: float | None = None,
    speed: float | None = None,
    as_json: bool = False,
) -> int:
    """Run it, with defaults for what is None; the exit code: 0 only if every final was annotated and every stream has
    its transcript.

    Raises UserError and SettingsError for what a person must change.
    """
    file = SPEECH_ENSEMBLE if ensemble is None else ensemble
    require_regular_file(file)
    settings = load_ensemble(file, bootstrap=bootstrap, environ=os.environ)
    require_speech(settings)
    with ExitStack() as stack:
        interruption = stack.enter_context(Interruption())
        logs = Path(tempfile.mkdtemp(prefix="penstock-demo-"))
        stack.enter_context(logging_to(logs / "demo.log"))
        screen = stack.enter_context(open_speech_screen(as_json=as_json))
        demo = _SpeechDemo(screen, interruption, logs)
        try:
            demo.start(file, settings, embedded=bootstrap is None)
            demo.work(streams=streams or DEFAULT_STREAMS, seconds=seconds or DEFAULT_SECONDS, speed=speed or 1.0)
        except DemoStopped as err:
            demo.stopped = err
        except WorkerFailure as err:
            demo.stopped = DemoStopped(EXIT_FAILED, str(err))
        except UserError:
            shutil.rmtree(logs, ignore_errors=True)
            raise
        finally:
            demo.stop()
        return demo.report(as_json=as_json)


class _SpeechDemo:
    """One run: what it has started, and what of that it must stop."""

    def __init__(self, screen: SpeechScreen, interruption: Interruption, logs: Path) -> None:
        self.stopped: DemoStopped | None = None
        self._screen = screen
        self._interruption = interruption
        self._logs = logs
        self._broker: BrokerProcess | None = None
        self._processes: StageProcesses | None = None
        self._feed: SpeechFeed | None = None
        self._settings: EnsembleSettings | None = None
        self._revisions = Revisions()

    def start(self, file: Path, settings: EnsembleSettings, *, embedded: bool) -> None:
        """Broker, topics, a worker and the transcripts; returns when these take work. Raises DemoStopped, UserError."""
        started_s = time.monotonic()
        if embedded:
            self._broker = start_broker_process()
            settings = load_ensemble(file, bootstrap=self._broker.bootstrap)
        self._settings = settings
        self._interruption.check()
        fused = settings.runs_fused()
        make_topics(settings, fused=fused)
        make_missing(settings, reach_broker(settings.kafka), speech_topics(settings))
        names = settings.speech_topic_names
        kind = "An embedded Kafka broker" if embedded else "Kafka"
        self._screen.say(f"{kind} at {settings.kafka.bootstrap_servers}: {names.speech} in, {names.transcripts} out")
        self._processes = processes = StageProcesses(
            file, settings, fused=fused, logs=self._logs, on_restart=self._tell_restart, transcripts=True
        )
        self._interruption.on_second = processes.kill
        self._interruption.check()
        processes.start()
        self._screen.wait_for("Starting the stages and the transcripts: each loads what it needs")
        deadline = Deadline(_READY_BUDGET_S)
        while waiting := processes.not_ready():
            self._look()
            if deadline.expired:
                reasons = [f"{role}: {reason}" for role, reason in waiting.items()]
                raise DemoStopped(EXIT_FAILED, f"not ready after {_READY_BUDGET_S:g} s", *reasons)
            time.sleep(_READY_LOOK_S)
        self._warm(settings)
        self._screen.say(f"Ready after {time.monotonic() - started_s:.1f} s")

    def work(self, *, streams: int, seconds: float, speed: float) -> None:
        """Say all of it, and wait for the transcripts. Raises DemoStopped, WorkerFailure."""
        assert self._settings is not None
        plan = speech(read_recording(), speakers=streams, seconds=seconds)
        self._screen.say(f"{streams:,} people read aloud for {plan[-1].due_ms / speed / 1e3:.0f} s, x{speed:g}\n")
        self._feed = feed = SpeechFeed(self._settings)
        for record, ms in feed.rehearse(plan, speed=speed):
            self._show(record, ms)
        last_s = time.monotonic()
        while len(feed.ledger.transcripts) < streams:
            found = feed.hear(0.05)
            for record, ms in found:
                self._show(record, ms)
            last_s = time.monotonic() if found else last_s
            self._look()
            if time.monotonic() - last_s > _SILENCE_S:
                assert self._processes is not None
                lines = self._processes.tail(self._processes.roles)
                raise DemoStopped(EXIT_FAILED, f"no transcript came for {_SILENCE_S:g} s", *lines)

    def stop(self) -> None:
        """Stop all that was started."""
        if self._interruption.requested:
            self._screen.wait_for("Stopping; Ctrl-C again does it at once")
        if self._feed is not None:
            self._feed.close()
        if self._processes is not None:
            assert self._settings is not None
            self._processes.stop(_HASTY_DRAIN_S if self.stopped and self._broker else drain_budget_s(self._settings))
        if self._broker is not None:
            self._broker.stop()

    def report(self, *, as_json: bool) -> int:
        """Tell how it ended; the exit code."""
        exit_code = EXIT_FAILED
        if self._feed is not None:
            summary = self._feed.ledger.summary()
            exit_code = 0 if summary.good else EXIT_FAILED
            self._screen.speech_summary(summary)
            if as_json:
                sys.stdout.buffer.write(msgspec.json.encode(summary) + b"\n")
        if self.stopped is not None:
            exit_code = self.stopped.exit_code
            self._screen.warn(str(self.stopped), self.stopped.details)
        if self._interruption.requested:
            exit_code = EXIT_INTERRUPTED
        if exit_code == EXIT_FAILED:
            self._screen.warn(f"the logs of all processes are in {self._logs}")
        else:
            shutil.rmtree(self._logs, ignore_errors=True)
        return exit_code

    def _warm(self, settings: EnsembleSettings) -> None:
        """Returns when a stream of each partition has its transcript: the transcripts have no health of their own."""
        partitions = settings.topics.partitions
        plan = speech(read_recording()[-1:], speakers=2 * partitions, seconds=0, name="warm-up")
        feed = SpeechFeed(settings)
        try:
            for said in plan:
                feed.say(said)
            deadline = Deadline(_READY_BUDGET_S)
            while len(feed.ledger.transcripts) < 2 * partitions:
                feed.hear(_READY_LOOK_S)
                self._look()
                if deadline.expired:
                    raise DemoStopped(EXIT_FAILED, f"no transcript after {_READY_BUDGET_S:g} s")
        finally:
            feed.close()

    def _show(self, record: dict[str, object], ms: float | None) -> None:
        self._interruption.check()
        if ms is not None:
            self._screen.heard(self._revisions.heard(record, ms))

    def _look(self) -> None:
        """What must not go unnoticed while something is awaited."""
        self._interruption.check()
        if self._broker is not None and not self._broker.alive:
            raise DemoStopped(EXIT_FAILED, "the embedded broker has died, and the records with it")
        assert self._processes is not None
        self._processes.look()

    def _tell_restart(self, role: str) -> None:
        self._screen.warn(f"{role} died and is started again")
