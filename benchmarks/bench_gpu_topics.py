"""Topic to topic on a machine with GPUs: every stage, the broker and the load beside the card.

    python -m benchmarks.bench_gpu_topics --model minilm --workers 9,2,2 --loads 2
    python -m benchmarks.bench_gpu_topics --model bert-base --fused 12 --loads 2

The embedded broker, so many workers of tokenize, encode and postprocess (or fused ones), and processes that produce
requests and count results, all of them on this machine. Requests are the demo's texts; each model classifies, with the
demo's head or a random one, so that results are a hundred bytes and not two thousand. In flight is bounded for each
partition: the embedded broker drops what is too much. Against the bare engine in the same run: `bench_engine` with the
same texts. `--cpu` takes the CPU's engine, to try the script. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from contextlib import ExitStack, nullcontext
from dataclasses import astuple
from itertools import cycle, islice
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
from confluent_kafka import Consumer, Producer, TopicPartition

from benchmarks.bench_engine import MINILM, SIZES, TEXTS, busy_share, demo_windows, random_checkpoint, throughput
from benchmarks.bench_engine import batches as engine_batches
from benchmarks.demo import DEMO
from benchmarks.machine import gpu_machine, machine
from engines.heads import DenseLayer, Head, save_head
from pipeline.assembly import open_encode_stage, open_tokenizer
from pipeline.broker import start_broker_process
from pipeline.demo.summary import Counters
from pipeline.demo.texts import read_texts
from pipeline.settings import STAGES, EnsembleSettings, load_ensemble

SENTIMENT = DEMO / "sentiment.safetensors"
# Of the workers' metrics.
FIRST_PORT = 18_100
# What makes full batches everywhere, and stays below what the broker keeps.
IN_FLIGHT = 2_500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["minilm", *SIZES], default="minilm")
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--devices", default="0", help="GPUs; encode workers take them in turn")
    parser.add_argument("--workers", default="9,2,2", help="of tokenize, encode and postprocess")
    parser.add_argument("--fused", type=int, default=0, help="so many workers of all stages instead")
    parser.add_argument("--loads", type=int, default=2)
    parser.add_argument("--partitions", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--in-flight", type=int, default=IN_FLIGHT, help="requests in each partition")
    parser.add_argument("--fetch-wait-ms", type=int, default=1)
    parser.add_argument("--linger-ms", type=int, default=20, help="of the workers' producers")
    parser.add_argument("--model-source", help="a model's folder or package, instead of --model's; for trials")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--no-engine", action="store_true", help="leave the bare engine out")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        devices = [int(each) for each in options.devices.split(",")]
        files = [write_ensemble(folder, options, device) for device in devices]
        settings = load_ensemble(files[0])
        bare = None if options.no_engine else bare_engine(settings, options.seconds)
        topics = through_topics(files, settings, options, stack)
    result = {
        "benchmark": "gpu_topics",
        "machine": machine() if options.cpu else gpu_machine(),
        "options": vars(options),
        "engine": bare,
        "topics": topics,
    }
    print(json.dumps(result, indent=1))


def write_ensemble(folder: Path, options: argparse.Namespace, device: int) -> Path:
    """One file a GPU, of the same ensemble."""
    source, head = MINILM, {"head": str(SENTIMENT), "pooling": "mean"}
    if options.model != "minilm":
        layers, width, *rest = SIZES[options.model]
        checkpoint, random_head = folder / options.model, folder / "head.safetensors"
        if not checkpoint.exists():
            random_checkpoint(checkpoint, layers, width, *rest)
            weight = np.random.default_rng(3).normal(size=(2, width)).astype(np.float32)
            layer = DenseLayer(weight=weight, bias=np.zeros(2, np.float32))
            save_head(random_head, Head(labels=("NO", "YES"), layers=(layer,)), metadata={})
        source, head = str(checkpoint), {"head": str(random_head), "pooling": "mean"}
    if options.model_source:
        source, head = options.model_source, {}
    engine: dict[str, Any] = {"kind": "tensorrt", "precision": options.precision, "devices": [device]}
    data = {
        "name": "gpu",
        "topics": {"partitions": options.partitions},
        "tokenizer": {"source": MINILM, "max_length": 128},
        "models": [{"name": "verdict", "source": source, "task": "text-classification", **head}],
        "engine": {"kind": "onnxruntime"} if options.cpu else engine,
        "http": {"port": 0},
        # The embedded broker answers a fetch with one batch of each partition, and waits where one has none.
        "kafka": {
            "consumer": {"fetch.wait.max.ms": options.fetch_wait_ms},
            "producer": {"linger.ms": options.linger_ms},
        },
    }
    file = folder / f"ensemble-{device}.yaml"
    file.write_text(json.dumps(data))
    return file


def bare_engine(settings: EnsembleSettings, seconds: float) -> dict[str, Any]:
    """The encode stage's engine with batches that lie ready."""
    windows = demo_windows(open_tokenizer(settings))
    stage = open_encode_stage(settings)
    rows = engine_batches(windows, settings.batching.row_length, settings.batching.max_batch_tokens)
    [engine] = stage._engines
    figures = throughput(engine, rows, settings.engine.batches_at_once, seconds / 3)
    stage.close()
    return figures


def through_topics(
    files: list[Path], settings: EnsembleSettings, options: argparse.Namespace, stack: ExitStack
) -> dict[str, Any]:
    names = settings.topic_names
    counts = dict.fromkeys(astuple(names), options.partitions)
    broker = stack.enter_context(start_broker_process(counts))
    roles = ["fused"] * options.fused
    if not roles:
        numbers = [int(each) for each in options.workers.split(",")]
        roles = [
            role
            for role, number in zip(("tokenize", "encode", "postprocess"), numbers, strict=True)
            for _ in range(number)
        ]
    workers: list[subprocess.Popen[bytes]] = []
    seen: Counter[str] = Counter()
    pages = [f"http://127.0.0.1:{FIRST_PORT + place}/metrics" for place in range(len(roles))]
    for place, role in enumerate(roles):
        file = files[seen[role] % len(files)]
        seen[role] += 1
        command = [sys.executable, "-m", "pipeline.cli", "--log-level", "warning", "run", role, str(file)]
        command += ["--bootstrap", broker.bootstrap, "--http-port", str(FIRST_PORT + place)]
        workers.append(subprocess.Popen(command))
    context = multiprocessing.get_context("spawn")
    ends, totals = context.Event(), context.Queue()
    loads = [
        context.Process(
            target=load,
            args=(broker.bootstrap, names.requests, names.results, place, options.loads, options.partitions),
            kwargs={"in_flight": options.in_flight, "seconds": options.seconds, "ends": ends, "totals": totals},
        )
        for place in range(options.loads)
    ]
    try:
        for process in loads:
            process.start()
        found = [totals.get(timeout=600) for _ in loads]  # begun, when all partitions answer
        before, counted = cpu_seconds(workers, roles, broker.pid), counters(pages)
        started_s = time.perf_counter()
        ends.set()
        with nullcontext([]) if options.cpu else busy_share() as busy:
            found = [totals.get(timeout=options.seconds + 120) for _ in loads]
        spent_s = time.perf_counter() - started_s
        after, now = cpu_seconds(workers, roles, broker.pid), counters(pages)
    finally:
        for worker in workers:
            worker.kill()
        for process in loads:
            process.kill()
    return {
        "texts_per_s": round(sum(each["texts_per_s"] for each in found)),
        "p50_ms": found[0]["p50_ms"],
        "gpu_busy": round(statistics.mean(busy[len(busy) // 2 :]), 3) if busy else None,  # of the first
        "processors_used": {role: round((after[role] - before[role]) / spent_s, 2) for role in sorted(after)},
        "stages": stages(now.since(counted), now),
        "load_processors": round(sum(each["processors"] for each in found), 2),
    }


def cpu_seconds(workers: list[subprocess.Popen[bytes]], roles: list[str], broker: int) -> Counter[str]:
    """Used so far, by role."""
    used: Counter[str] = Counter()
    for worker, role in zip(workers, roles, strict=True):
        times = psutil.Process(worker.pid).cpu_times()
        used[role] += times.user + times.system  # type: ignore[assignment]
    times = psutil.Process(broker).cpu_times()
    used["broker"] += times.user + times.system  # type: ignore[assignment]
    return used


def counters(pages: list[str]) -> Counters:
    """What the workers have counted so far."""
    texts: list[str] = []
    for page in pages:
        with urllib.request.urlopen(page, timeout=10) as answer:
            texts.append(answer.read().decode())
    return Counters.of(texts)


def stages(spent: Counters, now: Counters) -> dict[str, dict[str, float]]:
    """What each was at meanwhile: records that it is behind at the end, windows in a batch, and where a text spent its
    time in it, in ms."""
    found: dict[str, dict[str, float]] = {}
    for stage in STAGES:
        texts = max(1.0, spent.get("nv_inference_count", stage))
        found[stage] = {
            "consumer_lag": now.get("penstock_consumer_lag", stage),
            "in_flight_tokens": now.get("penstock_in_flight_tokens", stage),
            "windows_per_batch": round(texts / max(1.0, spent.get("nv_inference_exec_count", stage)), 1),
        }
        for part in ("request", "queue", "compute_input", "compute_infer", "compute_output"):
            total_us = spent.get(f"nv_inference_{part}_duration_us", stage)
            found[stage][f"{part}_ms"] = round(total_us / texts / 1e3, 3)
    return found


class _Answer(msgspec.Struct):
    id: str


def load(
    bootstrap: str,
    requests: str,
    results: str,
    place: int,
    of: int,
    partitions: int,
    *,
    in_flight: int,
    seconds: float,
    ends: Event,
    totals: Queue[dict[str, float]],
) -> None:
    """Requests to every `of`th partition from `place` on, as many as were answered; says how many a second."""
    mine = range(place, partitions, of)
    producer = Producer(
        {"bootstrap.servers": bootstrap, "linger.ms": 20, "queue.buffering.max.messages": 1_000_000, "acks": 1}
    )
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "load", "fetch.wait.max.ms": 1})
    consumer.assign([TopicPartition(results, partition, 0) for partition in mine])
    texts = cycle(
        [json.dumps({"text": text})[:-1] for text in islice(read_texts(DEMO / "texts.txt.gz"), place, TEXTS, of)]
    )
    decode = msgspec.json.Decoder(_Answer).decode
    answered_of: Counter[int] = Counter()

    def send(partition: int, count: int) -> None:
        now_s = time.perf_counter()
        for text in islice(texts, count):
            while True:
                try:
                    producer.produce(requests, f'{text}, "id": "{now_s:.6f}"}}'.encode(), partition=partition)
                except BufferError:
                    producer.poll(0.01)
                else:
                    break

    # A few until every partition answers: workers load, and groups settle.
    for partition in mine:
        send(partition, 16)
    while len(answered_of) < len(mine):
        producer.poll(0)
        for message in consumer.consume(1000, 0.05):
            if message.error() is None:
                answered_of[message.partition() or 0] += 1
    totals.put({})
    ends.wait()
    for partition in mine:
        send(partition, in_flight)
    warm_s = time.perf_counter() + 5.0
    started_s = started_cpu_s = 0.0
    answered = 0
    waits_s: list[float] = []
    while not started_s or time.perf_counter() < started_s + seconds:
        room: Counter[int] = Counter()
        for message in consumer.consume(5000, 0.01):
            if message.error() is None:
                room[message.partition() or 0] += 1
                newest = message
        for partition, count in room.items():
            send(partition, count)
        producer.poll(0)
        now_s = time.perf_counter()
        if room and started_s:
            waits_s.append(now_s - float(decode(newest.value() or b"").id))
        if not started_s and now_s > warm_s:
            started_s, started_cpu_s, answered = now_s, time.process_time(), 0
        answered += room.total()
    spent_s = time.perf_counter() - started_s
    totals.put(
        {
            "texts_per_s": answered / spent_s,
            "p50_ms": round(1e3 * sorted(waits_s)[len(waits_s) // 2], 1) if waits_s else 0.0,
            "processors": (time.process_time() - started_cpu_s) / spent_s,
        }
    )


if __name__ == "__main__":
    main()
