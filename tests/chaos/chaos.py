"""Kills workers and the broker at random, for as long as it takes, and counts what became of every request.

    python -m tests.chaos.chaos --requests 200000 --kills 200 --broker-kills 20 --delivery exactly_once --json

Apache Kafka and two workers of each stage, as processes. Requests come at a steady rate; meanwhile SIGKILL ends workers
and the broker at moments drawn from the seed, and each is started again at once. When all is answered the workers are
told to stop, and the topics are read from the first record to the last by a reader of committed records. Exit code 1
where a promise of docs/delivery.md is broken; then the logs are kept.

What the seed does not decide: how fast the machine is, so that two runs of one seed are not the same.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from confluent_kafka import KafkaException

from pipeline.apache_kafka.broker import ApacheBroker, find_runtime
from pipeline.apache_kafka.runtime import Runtime
from pipeline.errors import WorkerFailure
from pipeline.group_offsets import ask_committed_offsets, has_backlog
from pipeline.settings import STAGES, EnsembleSettings, Stage, load_ensemble
from pipeline.up import make_topics
from tests.chaos.crew import Crew
from tests.chaos.tiny_ensemble import PARTITIONS, answers, some_texts, write_ensemble
from tests.chaos.traffic import Onlooker, Traffic, Verdict, read_to_the_end

_OUT_OF_SYNC = "is out of sync with the underlying log"

# A worker costs two seconds of a processor until it works, and the broker's start about as much.
_SECONDS_PER_KILL = 3.0
_SECONDS_PER_BROKER_KILL = 10.0
# Without any answer for so long, nothing more will come. The longest wait there should be is a transaction's time-out
# (10 s) behind a broker's restart.
_PATIENCE_S = 60.0
_LOOK_S = 0.02
_TEXTS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is done, and for how long: `seconds` of traffic, in which all kills fall."""

    requests: int
    kills: int
    broker_kills: int
    delivery: str
    seed: int
    seconds: float


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of it. `repeated` breaks a promise of exactly-once delivery only; all else that is not as it should
    be is in `broken`."""

    plan: Plan
    requests: int = 0
    answered: int = 0
    lost: int = 0
    repeated: int = 0
    out_of_order: int = 0
    misplaced: int = 0
    wrong: int = 0
    largest_difference: float = 0.0
    dead_letters: int = 0
    kills: dict[str, int] = field(default_factory=dict)
    broker_kills: int = 0
    own_deaths: int = 0
    coordinator_out_of_sync: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    longest_pause_s: float = 0.0
    peak_rss_mib: float = 0.0
    broken: list[str] = field(default_factory=list)


class BrokerKills:
    """Kills the broker at given moments and starts it again, on a thread of its own: a start takes seconds."""

    def __init__(self, broker: ApacheBroker, moments_s: list[float]) -> None:
        self.count = 0
        self.error: BaseException | None = None
        self._broker = broker
        self._moments_s = moments_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="broker-kills", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def _run(self) -> None:
        started_s = time.monotonic()
        try:
            for moment_s in self._moments_s:
                if self._stopped.wait(max(0.0, started_s + moment_s - time.monotonic())):
                    return
                self._broker.kill()
                self._broker.start()
                self.count += 1
        except BaseException as err:  # noqa: BLE001 - told by who looks whether it is done
            self.error = err


def chaos(plan: Plan, folder: Path, *, runtime: Runtime, tell: bool = False) -> Outcome:
    """Do as planned; `folder` is for the broker, the model and the logs."""
    outcome = Outcome(plan=plan)
    draw = random.Random(plan.seed)
    moments_s = sorted(draw.uniform(0, plan.seconds) for _ in range(plan.kills))
    broker_moments_s = sorted(draw.uniform(0, plan.seconds) for _ in range(plan.broker_kills))
    with ApacheBroker(folder / "broker", runtime=runtime) as broker:
        file = write_ensemble(folder, name=f"chaos-{os.getpid()}", bootstrap=broker.bootstrap, delivery=plan.delivery)
        settings = load_ensemble(file)
        make_topics(settings)
        texts = some_texts(_TEXTS, seed=plan.seed)
        expected = answers(settings, texts)
        traffic = Traffic(settings, texts, count=plan.requests, seconds=plan.seconds)
        onlooker = Onlooker(settings, Verdict(plan.requests, expected))
        broker_kills = BrokerKills(broker, broker_moments_s)
        crew = Crew(file, broker.bootstrap, logs=folder / "logs")
        started_s = time.monotonic()
        crew.start()
        try:
            traffic.start()
            _look_after(crew, onlooker, until=lambda: onlooker.verdict.answered > 0)
            broker_kills.start()
            started_s = told_s = time.monotonic()

            def all_answered() -> bool:
                nonlocal told_s
                now_s = time.monotonic()
                if tell and now_s - told_s > 15:
                    told_s = now_s
                    sys.stderr.write(
                        f"{now_s - started_s:.0f} s: {traffic.sent} sent, {onlooker.verdict.answered} answered, "
                        f"{onlooker.verdict.repeated} repeated, {crew.kills.total()} kills, {broker_kills.count} of "
                        f"the broker, {crew.own_deaths} own deaths\n"
                    )
                if moments_s and now_s - started_s >= moments_s[0] and crew.kill_one(draw):
                    moments_s.pop(0)
                if broker_kills.error is not None:
                    raise RuntimeError("the broker did not start again") from broker_kills.error
                chaos_is_over = not moments_s and broker_kills.done and traffic.done
                answered = chaos_is_over and crew.complete and onlooker.verdict.answered == plan.requests
                # A worker killed last may have had all answered and nothing committed.
                return answered and not _is_behind(settings)

            _look_after(crew, onlooker, until=all_answered)
        except (RuntimeError, TimeoutError, WorkerFailure) as err:
            outcome.broken.append(f"{type(err).__name__}: {err} ({err.__cause__ or 'no cause told'})")
            crew.tell_stacks()
        finally:
            broker_kills.stop()
            traffic.stop()
            outcome.seconds = round(time.monotonic() - started_s, 1)
            outcome.own_deaths = crew.own_deaths
            if not crew.stop():
                outcome.broken.append("a worker did not drain when it was told to stop")
            onlooker.stop()
        outcome.kills, outcome.broker_kills = dict(sorted(crew.kills.items())), broker_kills.count
        outcome.longest_pause_s = round(onlooker.longest_pause_s, 2)
        # Kafka's own fault, and not a worker's: whoever sees repeats must know of it.
        with broker.log_file.open(errors="replace") as lines:
            outcome.coordinator_out_of_sync = sum(_OUT_OF_SYNC in line for line in lines)
        try:
            _judge(outcome, settings_file=file, verdict=Verdict(plan.requests, expected), traffic=traffic)
        except (KafkaException, TimeoutError) as err:
            outcome.broken.append(f"the topics can't be read to their ends, is a transaction left open? {err}")
    outcome.peak_rss_mib = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    return outcome


def _look_after(crew: Crew, onlooker: Onlooker, *, until: Callable[[], bool]) -> None:
    """Keep the workers running until something is so. Raises TimeoutError where nothing is answered any more."""
    onlooker.newest_s = time.monotonic()
    while not until():
        crew.poll()
        if onlooker.error is not None:
            raise RuntimeError("results can't be read") from onlooker.error
        if time.monotonic() - onlooker.newest_s > _PATIENCE_S:
            raise TimeoutError(f"no answer for {_PATIENCE_S:g} s")
        time.sleep(_LOOK_S)


def _is_behind(settings: EnsembleSettings) -> bool:
    """Whether any stage has something left to do, or to commit."""
    return any(
        has_backlog(settings.kafka.consumer_settings(), settings.group_id(stage), topic, range(PARTITIONS))
        for stage, topic in _input_topics(settings).items()
    )


def _input_topics(settings: EnsembleSettings) -> dict[Stage, str]:
    names = settings.topic_names
    return dict(zip(STAGES, (names.requests, names.tokens, names.encodings), strict=True))


def _judge(outcome: Outcome, *, settings_file: Path, verdict: Verdict, traffic: Traffic) -> None:
    """Read all there is, now that nobody writes any more."""
    settings = load_ensemble(settings_file)
    names = settings.topic_names
    letters: list[str] = []

    def see_dead_letter(message: object) -> None:
        outcome.dead_letters += 1
        letters[3:] = [str(message.headers())]  # type: ignore[attr-defined]

    read_to_the_end(settings, names.results, verdict.see)
    read_to_the_end(settings, names.dead_letters, see_dead_letter)
    outcome.requests = traffic.sent
    outcome.answered, outcome.lost, outcome.repeated = verdict.answered, verdict.lost, verdict.repeated
    outcome.out_of_order, outcome.misplaced, outcome.wrong = verdict.out_of_order, verdict.misplaced, verdict.wrong
    outcome.largest_difference = verdict.largest_difference
    outcome.rate = round(verdict.answered / outcome.seconds, 1) if outcome.seconds else 0.0
    counts = {name: getattr(outcome, name) for name in ("lost", "out_of_order", "misplaced", "wrong", "dead_letters")}
    if outcome.plan.delivery == "exactly_once":
        counts["repeated"] = outcome.repeated
    outcome.broken += [f"{count} {name}" for name, count in counts.items() if count]
    if outcome.broken:
        outcome.broken += [*verdict.examples, *letters]
    if verdict.lost:
        outcome.broken.append(f"the first lost: {verdict.first_lost()}")
    outcome.broken += [f"not sent: {why}" for why in traffic.refused[:3]]
    for stage, topic in _input_topics(settings).items():
        ends = {place: end for place, end in read_to_the_end(settings, topic).items() if end}
        committed: Mapping[int, int] = ask_committed_offsets(
            settings.kafka.consumer_settings(), settings.group_id(stage), topic, range(PARTITIONS)
        )
        if committed != ends:
            outcome.broken.append(f"{topic}: committed {dict(committed)}, but it ends at {ends}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=20, help="of workers")
    parser.add_argument("--broker-kills", type=int, default=2)
    parser.add_argument("--delivery", choices=("exactly_once", "at_least_once"), default="exactly_once")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, help="of traffic; default 3 a kill or 10 a broker's, the longer one")
    parser.add_argument("--folder", type=Path, help="for the broker, the model and the logs; default a temporary one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    seconds = max(options.kills * _SECONDS_PER_KILL, options.broker_kills * _SECONDS_PER_BROKER_KILL, 10.0)
    plan = Plan(
        requests=options.requests,
        kills=options.kills,
        broker_kills=options.broker_kills,
        delivery=options.delivery,
        seed=options.seed,
        seconds=options.seconds or seconds,
    )
    folder = options.folder or Path(tempfile.mkdtemp(prefix="penstock-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    outcome = chaos(plan, folder, runtime=find_runtime(), tell=True)
    if options.json:
        sys.stdout.write(json.dumps(asdict(outcome), indent=1) + "\n")
    else:
        sys.stdout.writelines(f"{name:20} {value}\n" for name, value in asdict(outcome).items())
    if outcome.broken:
        sys.stderr.write(f"BROKEN; logs are in {folder / 'logs'}, the broker's in {folder / 'broker'}\n")
        return 1
    if options.folder is None:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
