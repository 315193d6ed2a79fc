"""A backlog that one stage works off: its speed and its memory from the first request to the last.

    make bench BENCH=bench_backlog ARGS='--count 10000000'

Requests are produced to an Apache Kafka before the stage starts, the demo's texts over and over; nothing reads what the
stage writes, so that this is also a stalled neighbour. Prints JSON: texts/s and RSS of the worker in each tenth.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import msgspec
import psutil
from confluent_kafka import Producer

from benchmarks.demo import DEMO
from benchmarks.machine import machine
from pipeline.apache_kafka.broker import ApacheBroker
from pipeline.demo.texts import SHIPPED_TEXTS, read_texts
from pipeline.group_offsets import ask_committed_offsets
from pipeline.settings import EnsembleSettings, load_ensemble
from pipeline.up import make_topics

SAMPLE_S = 1.0
PARTITIONS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000_000)
    parser.add_argument("--stage", choices=["tokenize", "fused"], default="tokenize")
    parser.add_argument("--ensemble", type=Path, default=DEMO / "ensemble.yaml")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ApacheBroker(Path(folder)) as broker:
        settings = load_ensemble(options.ensemble, bootstrap=broker.bootstrap)
        make_topics(settings)
        produced_s = produce(settings, options.count)
        command = [sys.executable, "-P", "-m", "pipeline.cli", "--log-level", "warning", "run", options.stage]
        worker = subprocess.Popen(
            [*command, str(options.ensemble), "--bootstrap", broker.bootstrap, "--http-port", "0"]
        )
        try:
            samples = watch(settings, worker, options.count)
        finally:
            worker.terminate()
            worker.wait(60)
    started = next(each for each in samples if each[1])
    tenths: list[dict[str, float]] = []
    before = started
    for tenth in range(1, 11):
        here = next(each for each in samples if each[1] >= options.count * tenth // 10)
        if here[1] > before[1]:
            tenths.append(
                {
                    "texts": here[1],
                    "texts_per_s": round((here[1] - before[1]) / (here[0] - before[0]), 1),
                    "rss_mib": round(max(each[2] for each in samples if before[0] < each[0] <= here[0]), 1),
                }
            )
        before = here
    seconds = samples[-1][0] - started[0]
    print(
        json.dumps(
            {
                "benchmark": "backlog",
                "machine": machine(),
                "stage": options.stage,
                "count": options.count,
                "produced_s": round(produced_s, 1),
                "seconds": round(seconds, 1),
                "texts_per_s": round((options.count - started[1]) / seconds, 1),
                "tenths": tenths,
            },
            indent=1,
        )
    )


def produce(settings: EnsembleSettings, count: int) -> float:
    """The seconds it took."""
    started_s = time.monotonic()
    producer = Producer(
        {
            "bootstrap.servers": settings.kafka.bootstrap_servers,
            "compression.type": "zstd",
            "linger.ms": 20,
            "queue.buffering.max.messages": 100_000,
        }
    )
    values = [msgspec.json.encode({"text": text}) for text in islice(read_texts(SHIPPED_TEXTS), 10_000)]
    for number, value in enumerate(islice(cycle(values), count)):
        while True:
            try:
                producer.produce(settings.topic_names.requests, value, partition=number % PARTITIONS)
            except BufferError:
                producer.poll(0.1)
            else:
                break
    assert producer.flush(60) == 0
    return time.monotonic() - started_s


def watch(settings: EnsembleSettings, worker: subprocess.Popen[bytes], count: int) -> list[tuple[float, int, float]]:
    """Seconds, requests committed, RSS in MiB, until all are."""
    samples: list[tuple[float, int, float]] = []
    process = psutil.Process(worker.pid)
    kafka = settings.kafka.consumer_settings()
    while not samples or samples[-1][1] < count:
        assert worker.poll() is None, "the worker ended"
        time.sleep(SAMPLE_S)
        offsets = ask_committed_offsets(
            kafka, settings.group_id("tokenize"), settings.topic_names.requests, range(PARTITIONS)
        )
        samples.append((time.monotonic(), sum(offsets.values()), process.memory_info().rss / 2**20))
    return samples


if __name__ == "__main__":
    main()
