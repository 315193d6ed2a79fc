"""`penstock demo`: a broker, the stages as processes, a producer and a consumer, from start to end.

It ends by itself: all answered, or something wrong, or interrupted. Whatever happens, it stops what it started, in
this order: the workers, which drain, then the broker. Should it be killed itself, these see that their parent is gone.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec

from pipeline.broker import BrokerProcess, start_broker_process
from pipeline.demo.interruption import Interruption, logging_to
from pipeline.demo.ledger import Ledger
from pipeline.demo.load import Load
from pipeline.demo.processes import DemoStopped, StageProcesses
from pipeline.demo.screen import Screen, open_screen
from pipeline.demo.summary import Counters, Summary, summarize
from pipeline.demo.texts import SHIPPED_TEXTS, count_texts, read_texts
from pipeline.ensemble_file import require_regular_file
from pipeline.errors import UserError, WorkerFailure
from pipeline.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED
from pipeline.settings import EnsembleSettings, load_ensemble
from pipeline.up import drain_budget_s, make_topics

DEMO_ENSEMBLE = Path(__file__).with_name("ensemble.yaml")
# Of the 20,000 shipped texts: 8 s of computing on two cores that nobody shares, 13 s on shared ones.
DEFAULT_COUNT = 2_000

# Predictions on the screen, and dead letters that are told one by one.
_SHOWN = 6
# Loading MiniLM takes 3 s; an engine that must be built first takes minutes.
_READY_BUDGET_S = 600.0
# Something is awaited and nothing came for so long: nothing will.
_SILENCE_S = 60.0
# How often the processes are looked after.
_LOOK_S = 0.2
# A second answer comes from a worker's second try, right behind the first.
_SETTLE_S = 0.3
# After a stop before its time; an embedded broker forgets all anyway.
_HASTY_DRAIN_S = 2.0


def run_demo(
    *,
    ensemble: Path | None = None,
    texts: Path | None = None,
    count: int | None = None,
    rate: float | None = None,
    bootstrap: str | None = None,
    fused: bool = False,
    as_json: bool = False,
) -> int:
    """Run it; the exit code: 0 only if every request got exactly one result, in order.

    1 where one did not, or where workers gave up; 130 after an interruption. `count` defaults to 2,000 of the
    shipped texts, or to all of `texts` once. Raises UserError and SettingsError for what a person must change.
    """
    file = DEMO_ENSEMBLE if ensemble is None else ensemble
    require_regular_file(file)
    settings = load_ensemble(file, bootstrap=bootstrap, environ=os.environ)
    fused = settings.runs_fused(fused)
    source = SHIPPED_TEXTS if texts is None else texts
    default = DEFAULT_COUNT if texts is None else None
    found = count_texts(source, at_most=count or default)
    with ExitStack() as stack:
        interruption = stack.enter_context(Interruption())
        logs = Path(tempfile.mkdtemp(prefix="penstock-demo-"))
        stack.enter_context(logging_to(logs / "demo.log"))
        screen = stack.enter_context(open_screen(as_json=as_json))
        demo = _Demo(screen, interruption, logs)
        try:
            demo.start(file, settings, embedded=bootstrap is None, fused=fused)
            demo.work(read_texts(source), count=count or found, rate=rate)
        except DemoStopped as err:
            demo.stopped = err
        except WorkerFailure as err:
            demo.stopped = DemoStopped(EXIT_FAILED, str(err))
        except UserError:
            shutil.rmtree(logs, ignore_errors=True)
            raise
        finally:
            summary = demo.stop()
        exit_code = demo.report(summary)
    if as_json:
        # As bytes: what escapes would be written for is no JSON.
        sys.stdout.buffer.write(msgspec.json.encode(summary) + b"\n")
    return exit_code


class _Demo:
    """One run: what it has started, and what of that it must stop."""

    def __init__(self, screen: Screen, interruption: Interruption, logs: Path) -> None:
        self.stopped: DemoStopped | None = None
        self._screen = screen
        self._interruption = interruption
        self._logs = logs
        self._broker: BrokerProcess | None = None
        self._stages: StageProcesses | None = None
        self._load: Load | None = None
        self._settings: EnsembleSettings | None = None
        self._rate: float | None = None
        self._before = Counters.of([])
        self._dead_letters_told = 0

    def start(self, file: Path, settings: EnsembleSettings, *, embedded: bool, fused: bool) -> None:
        """Broker, topics, workers; returns when all of these take work. Raises DemoStopped, UserError."""
        started_s = time.monotonic()
        if embedded:
            self._broker = start_broker_process()
            settings = load_ensemble(file, bootstrap=self._broker.bootstrap)
        self._interruption.check()
        make_topics(settings, fused=fused)
        kind = "An embedded Kafka broker" if embedded else "Kafka"
        self._screen.say(
            f"{kind} at {settings.kafka.bootstrap_servers}: topics {settings.name}.*, "
            f"{settings.topics.partitions} partitions each"
        )
        self._settings = settings
        self._stages = stages = StageProcesses(
            file, settings, fused=fused, logs=self._logs, on_restart=self._tell_restart
        )
        self._interruption.on_second = stages.kill
        self._interruption.check()
        stages.start()
        names = "one process for all stages" if fused else f"processes for {', '.join(stages.roles)}"
        self._screen.wait_for(f"Starting {names}: each loads what it needs")
        stages.await_ready(self._look, budget_s=_READY_BUDGET_S)
        self._screen.say(f"Ready after {time.monotonic() - started_s:.1f} s")

    def work(self, texts: Iterator[str], *, count: int, rate: float | None) -> None:
        """Send all texts and wait for what comes back. Raises DemoStopped, WorkerFailure."""
        assert self._stages is not None
        assert self._settings is not None
        self._rate = rate
        self._load = load = Load(
            self._settings,
            texts,
            count=count,
            rate=rate,
            run=secrets.token_hex(4),
            shown=_SHOWN,
            on_result=self._screen.prediction,
            on_dead_letter=self._tell_dead_letter,
        )
        load.open()
        self._before = Counters.of(self._stages.metrics().values())
        pace = f"{rate:g} a second" if rate is not None else f"at most {load.max_in_flight} on their way at a time"
        self._screen.say(f"Sending {count:,} texts, {pace}\n")
        look_s = 0.0
        while not load.done:
            load.turn()
            if (now_s := time.monotonic()) - look_s >= _LOOK_S:
                look_s = now_s
                self._screen.progress(load.ledger.results, count)
                self._look()
                if load.ledger.silent_s(now_s) > _SILENCE_S:
                    raise self._silence(load.ledger)
        load.settle(_SETTLE_S)
        self._screen.progress(load.ledger.results, count)
        if load.late_s > 1.0:
            self._screen.say(
                f"{rate:g} texts/s are more than this machine answers: {load.late_s:.0f} s late at the end"
            )

    def stop(self) -> Summary:
        """Stop all that was started; what it came to."""
        stages, load = self._stages, self._load
        if self._interruption.requested:
            self._screen.wait_for("Stopping; Ctrl-C again does it at once")
        try:
            counters = Counters.of(stages.metrics().values()) if stages and load else Counters.of([])
            return summarize(
                load.ledger if load else Ledger(),
                counters.since(self._before),
                restarts=stages.restarts if stages else 0,
                memory_mib=stages.memory(self._broker) if stages and load else {},
                stopped=str(self.stopped) if self.stopped else None,
            )
        finally:
            if load is not None:
                load.close()
            if stages is not None:
                assert self._settings is not None
                stages.stop(_HASTY_DRAIN_S if self.stopped and self._broker else drain_budget_s(self._settings))
            if self._broker is not None:
                self._broker.stop()

    def report(self, summary: Summary) -> int:
        """Tell how it ended; the exit code."""
        if summary.requests:
            self._screen.summary(summary)
        if summary.good and self._rate is None:
            self._screen.say("Sent as fast as answered, texts mostly wait in line; --rate 20 shows one alone.")
        exit_code = 0 if summary.good else EXIT_FAILED
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

    def _look(self) -> None:
        """What must not go unnoticed while something is awaited."""
        self._interruption.check()
        if self._broker is not None and not self._broker.alive:
            raise DemoStopped(EXIT_FAILED, "the embedded broker has died, and the records with it")
        assert self._stages is not None
        self._stages.look()

    def _silence(self, ledger: Ledger) -> DemoStopped:
        assert self._stages is not None
        waiting = [f"{role} is not ready: {reason}" for role, reason in self._stages.not_ready().items()]
        return DemoStopped(
            EXIT_FAILED,
            f"nothing came for {_SILENCE_S:g} s, though {ledger.in_flight:,} requests are unanswered",
            *waiting,
            *self._stages.tail(self._stages.roles),
        )

    def _tell_restart(self, role: str) -> None:
        assert self._stages is not None
        self._screen.warn(f"{role} died and is started again", self._stages.tail([role])[-1:])

    def _tell_dead_letter(self, id: str, reason: str, message: str) -> None:
        self._dead_letters_told += 1
        if self._dead_letters_told <= _SHOWN:
            self._screen.warn(f"dead letter {id}: {reason}", [message])
        elif self._dead_letters_told == _SHOWN + 1:
            self._screen.warn("more dead letters: they are counted at the end")
