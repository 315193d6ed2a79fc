"""What a command that shows speech starts and stops: broker, stages, transcripts, and the screen that tells of them.

`penstock demo --asr` and `penstock listen` differ in who speaks.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from pipeline.broker import BrokerProcess, start_broker_process
from pipeline.deadline import Deadline
from pipeline.demo.interruption import Interruption, logging_to
from pipeline.demo.processes import DemoStopped, StageProcesses
from pipeline.demo.recorded_speech import read_recording, speech
from pipeline.demo.speech_feed import SpeechFeed
from pipeline.demo.speech_screen import Revisions, SpeechScreen, open_speech_screen
from pipeline.errors import UserError, WorkerFailure
from pipeline.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED
from pipeline.reach import reach_broker
from pipeline.settings import EnsembleSettings, load_ensemble
from pipeline.topics import broker_metadata, speech_topics
from pipeline.up import drain_budget_s, make_missing, make_topics

SPEECH_ENSEMBLE = Path(__file__).with_name("speech.yaml")

_READY_BUDGET_S = 120.0
_LOOK_S = 0.1
# Ten seconds without a word are an hour.
_SILENCE_S = 60.0
_HASTY_DRAIN_S = 3.0


def run_speech_session(show: Callable[[SpeechSession], None], *, as_json: bool) -> int:
    """Call `show`, stop what it has started and report; the exit code: 0 only if every final was annotated and every
    stream has its transcript. Raises UserError and SettingsError for what a person must change."""
    with ExitStack() as stack:
        interruption = stack.enter_context(Interruption())
        logs = Path(tempfile.mkdtemp(prefix="penstock-demo-"))
        stack.enter_context(logging_to(logs / "demo.log"))
        screen = stack.enter_context(open_speech_screen(as_json=as_json))
        session = SpeechSession(screen, interruption, logs)
        try:
            show(session)
        except DemoStopped as err:
            session.stopped = err
        except WorkerFailure as err:
            session.stopped = DemoStopped(EXIT_FAILED, str(err))
        except UserError:
            shutil.rmtree(logs, ignore_errors=True)
            raise
        finally:
            session.stop()
        return session.report(as_json=as_json)


class SpeechSession:
    """One run: what it has started, and what of that it must stop."""

    def __init__(self, screen: SpeechScreen, interruption: Interruption, logs: Path) -> None:
        self.stopped: DemoStopped | None = None
        self.screen = screen
        self.interruption = interruption
        # Whether an interruption is how it is meant to end.
        self.ended_by_hand = False
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
        self.interruption.check()
        fused = settings.runs_fused()
        make_topics(settings, fused=fused)
        make_missing(settings, reach_broker(settings.kafka), speech_topics(settings))
        self._tell_topics("An embedded Kafka broker" if embedded else "Kafka")
        self._processes = processes = StageProcesses(
            file, settings, fused=fused, logs=self._logs, on_restart=self._tell_restart, transcripts=True
        )
        self.interruption.on_second = processes.kill
        self.interruption.check()
        processes.start()
        self.screen.wait_for("Starting the stages and the transcripts: each loads what it needs")
        processes.await_ready(self.look, budget_s=_READY_BUDGET_S)
        self._warm(settings)
        self.screen.say(f"Ready after {time.monotonic() - started_s:.1f} s")

    def join(self, settings: EnsembleSettings) -> None:
        """Use what others run. Raises UserError where the topics are not there."""
        there = broker_metadata(reach_broker(settings.kafka)).topics
        names = settings.speech_topic_names
        if missing := [each for each in (names.speech, names.transcripts) if each not in there]:
            address = settings.kafka.bootstrap_servers
            raise UserError(
                f"no topic {missing[0]} at {address}: run `penstock up` of this ensemble there, with `speech:` in its "
                "file, or leave --bootstrap out to run all of it here"
            )
        self._settings = settings
        self._tell_topics("Kafka")

    def open_feed(self) -> SpeechFeed:
        """The feed that this run is about. Call it once, after `start` or `join`."""
        assert self._settings is not None
        self._feed = SpeechFeed(self._settings)
        return self._feed

    def show(self, found: Iterable[tuple[dict[str, Any], float | None]]) -> None:
        """Show what came."""
        for record, ms in found:
            if ms is not None:
                self.screen.heard(self._revisions.heard(record, ms))

    def await_transcripts(self, count: int, *, check: Callable[[], None]) -> None:
        """Show what comes until so many streams have their transcript. `check` may raise. Raises DemoStopped."""
        assert self._feed is not None
        last_s = time.monotonic()
        while len(self._feed.ledger.transcripts) < count:
            found = self._feed.hear(0.05)
            self.show(found)
            last_s = time.monotonic() if found else last_s
            check()
            if time.monotonic() - last_s > _SILENCE_S:
                lines = self._processes.tail(self._processes.roles) if self._processes else []
                raise DemoStopped(EXIT_FAILED, f"no transcript came for {_SILENCE_S:g} s", *lines)

    def look(self) -> None:
        """What must not go unnoticed while something is awaited. Raises DemoStopped."""
        self.interruption.check()
        self.watch()

    def watch(self) -> None:
        """The same, where an interruption is somebody else's matter."""
        if self._broker is not None and not self._broker.alive:
            raise DemoStopped(EXIT_FAILED, "the embedded broker has died, and the records with it")
        if self._processes is not None:
            self._processes.look()

    def stop(self) -> None:
        """Stop all that was started."""
        if self.interruption.requested and self._processes is not None:
            self.screen.wait_for("Stopping; Ctrl-C again does it at once")
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
            stopped = str(self.stopped) if self.stopped is not None else None
            summary = msgspec.structs.replace(self._feed.ledger.summary(), stopped=stopped)
            exit_code = 0 if summary.good else EXIT_FAILED
            self.screen.speech_summary(summary)
            if as_json:
                sys.stdout.buffer.write(msgspec.json.encode(summary) + b"\n")
        if self.stopped is not None:
            exit_code = self.stopped.exit_code
            self.screen.warn(str(self.stopped), self.stopped.details)
        if self.interruption.requested and not self.ended_by_hand:
            exit_code = EXIT_INTERRUPTED
        if exit_code == EXIT_FAILED:
            self.screen.warn(f"the logs of all processes are in {self._logs}")
        else:
            shutil.rmtree(self._logs, ignore_errors=True)
        return exit_code

    def _warm(self, settings: EnsembleSettings) -> None:
        """Returns when a stream of each partition has its transcript: the transcripts have no health of their own."""
        partitions = settings.topics.partitions
        # Another run's streams have ended, and are remembered by a Kafka that goes on.
        name = f"warm-up-{uuid.uuid4().hex[:8]}"
        plan = speech(read_recording()[-1:], speakers=2 * partitions, seconds=0, name=name)
        feed = SpeechFeed(settings)
        try:
            for said in plan:
                feed.say(said)
            deadline = Deadline(_READY_BUDGET_S)
            while len(feed.ledger.transcripts) < 2 * partitions:
                feed.hear(_LOOK_S)
                self.look()
                if deadline.expired:
                    raise DemoStopped(EXIT_FAILED, f"no transcript after {_READY_BUDGET_S:g} s")
        finally:
            feed.close()

    def _tell_topics(self, kind: str) -> None:
        assert self._settings is not None
        names = self._settings.speech_topic_names
        address = self._settings.kafka.bootstrap_servers
        self.screen.say(f"{kind} at {address}: {names.speech} in, {names.transcripts} out")

    def _tell_restart(self, role: str) -> None:
        self.screen.warn(f"{role} died and is started again")
