"""What poison texts cost their neighbours: throughput and latency with 0, 0.1 and 1 % of them.

    make bench BENCH=bench_poison ARGS='--count 4000 --rounds 3'

MiniLM on ONNX Runtime behind an encode step with its micro-batches and its threads, no topics. `none` is the engine as
it is; the others are wrapped, so that a batch with a marked text fails (0 %: the wrapper alone). Throughput: all texts
are there at once. Latency: they come on a schedule (`--rate`), from arrival to answer. `runs` counts the engine's runs;
of a micro-batch of N with one poison text they are at most 2 ceil(log2 N) + 1, and one of a single token. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import threading
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.demo import DEMO
from benchmarks.machine import machine
from engines.errors import EngineError
from engines.rows import Engine, PackedRows
from pipeline.assembly import max_length, open_encode_stage, open_tokenizer
from pipeline.clock import now_ms
from pipeline.dead_letters import DeadLetters
from pipeline.deadline import Deadline
from pipeline.demo.texts import read_texts
from pipeline.lines import PartitionLine, Unit
from pipeline.metrics import WorkerMetrics
from pipeline.settings import EnsembleSettings, load_ensemble
from pipeline.step_makers import micro_batcher
from pipeline.steps import EncodeStep
from schemas.packs import PackedText, token_pack
from schemas.records import InputRecord, Source
from stages.encode import EncodeStage
from stages.text_tokenizer import TokenizedText

SHARES = (None, 0.0, 0.001, 0.01)
WAIT_S = 600.0
# [unused99] of BERT's vocabulary: no text has it.
MARK = 104


class KeptOpen:
    """An engine that outlives the steps that use it, one after the other."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.runs = 0

    @property
    def widths(self) -> Mapping[str, int]:
        return self._engine.widths

    @property
    def of_tokens(self) -> frozenset[str]:
        return self._engine.of_tokens

    def run(self, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
        return self._engine.run(rows)

    def close(self) -> None:
        pass


class Marked(KeptOpen):
    """Refuses a batch with a marked text in it, and counts its runs."""

    def run(self, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
        self.runs += 1
        if (rows.input_ids == MARK).any():
            raise EngineError("a marked text")
        return super().run(rows)


def units_of(windows: Sequence[NDArray[np.int32]]) -> list[Unit]:
    """A unit a text, each with its request, so that no dead letter asks a broker."""
    units: list[Unit] = []
    line = PartitionLine(0)
    for offset, window in enumerate(windows):
        text = PackedText(str(offset), None, [], offset, 1, len(window), False)
        record = InputRecord(Source("requests", 0, offset), None, b"", [])
        unit = Unit(line=line, records=[record], texts=1, tokens_in_flight=len(window), read_ms=0.0)
        unit.tokens = token_pack(topic="requests", partition=0, texts=[text], chunks=[window])
        units.append(unit)
    return units


def run(
    stage: EncodeStage, settings: EnsembleSettings, windows: Sequence[NDArray[np.int32]], rate: float | None
) -> dict[str, float]:
    """All at once, or so many a second; what it took."""
    units = units_of(windows)
    done = threading.Event()
    latencies_ms: list[float] = []

    def finish(unit: Unit) -> None:
        latencies_ms.append(now_ms() - unit.read_ms)
        if len(latencies_ms) == len(units):
            done.set()

    metrics = WorkerMetrics("poison").stage("encode")
    step = EncodeStep(
        stage,
        micro_batcher(settings.batching),
        then=finish,
        on_failure=lambda err: print(err),
        dead_letters=DeadLetters({}, topic="dead", stage="encode", group="poison", metrics=metrics),
        metrics=metrics,
        threads=settings.engine.batches_at_once,
    )
    started_ms = now_ms()
    for place, unit in enumerate(units):
        unit.read_ms = started_ms + (0.0 if rate is None else place * 1e3 / rate)
        if (ahead_ms := unit.read_ms - now_ms()) > 0:
            time.sleep(ahead_ms / 1e3)
        step.submit(unit)
    assert done.wait(WAIT_S)
    seconds = (now_ms() - started_ms) / 1e3
    step.close(Deadline(10.0))
    p50, p99 = np.percentile(latencies_ms, [50, 99])
    return {"texts_per_s": len(units) / seconds, "p50_ms": float(p50), "p99_ms": float(p99)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=4_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=0.5, help="of the throughput without poison")
    parser.add_argument("--ensemble", type=Path, default=DEMO / "ensemble.yaml")
    parser.add_argument("--texts", type=Path, default=DEMO / "texts.txt.gz")
    options = parser.parse_args()
    settings = load_ensemble(options.ensemble)
    texts = list(islice(read_texts(options.texts), options.count))
    tokenized = open_tokenizer(settings)(texts)
    windows = [text.windows[0] for text in tokenized if isinstance(text, TokenizedText)]
    opened = open_encode_stage(settings)
    engines = [Marked(engine) for engine in opened._engines]
    plain, wrapped = (
        EncodeStage(some, row_length=settings.batching.row_length, max_length=max_length(settings))
        for some in ([KeptOpen(engine) for engine in opened._engines], engines)
    )
    run(plain, settings, windows[:500], None)
    rate = options.rate * run(plain, settings, windows, None)["texts_per_s"]
    measured: list[dict[str, object]] = []
    for number in range(options.rounds):
        for share in SHARES:
            poisoned = [window.copy() for window in windows]
            for place in random.Random(number).sample(range(len(windows)), round(len(windows) * (share or 0.0))):
                poisoned[place][0] = MARK
            stage = plain if share is None else wrapped
            for each in engines:
                each.runs = 0
            all_at_once = run(stage, settings, poisoned, None)
            runs = sum(each.runs for each in engines)
            scheduled = run(stage, settings, poisoned, rate)
            measured.append(
                {
                    "round": number,
                    "poison_share": "none" if share is None else share,
                    "texts_per_s": all_at_once["texts_per_s"],
                    "runs": runs,
                    "p50_ms": scheduled["p50_ms"],
                    "p99_ms": scheduled["p99_ms"],
                }
            )
    opened.close()
    print(
        json.dumps(
            {
                "benchmark": "poison",
                "machine": machine(),
                "count": len(windows),
                "rate_texts_per_s": rate,
                "max_batch_size": settings.batching.max_batch_size,
                "runs": measured,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
