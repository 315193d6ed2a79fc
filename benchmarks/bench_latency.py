"""What `objective: latency` gives and costs: latency topic to topic at a steady rate, and texts/s at full speed.

    make bench BENCH=bench_latency ARGS='--rate 20 --count 1000'

The demo's ensemble as it is, and with `objective: latency`, alternating. Latency is from the produce call to the
result's arrival, open loop: texts are sent on a schedule, whether the ones before are answered or not. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.demo import DEMO, run_demo
from benchmarks.machine import machine

ENSEMBLES = {"throughput": DEMO / "ensemble.yaml", "latency": Path(__file__).with_name("latency.yaml")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--count", type=int, default=1_000)
    parser.add_argument("--full-count", type=int, default=3_000, help="texts at full speed")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    runs = [
        run_demo(file, count, *rate) | {"objective": objective, "rate": options.rate if rate else None}
        for _ in range(options.rounds)
        for count, rate in ((options.count, ("--rate", str(options.rate))), (options.full_count, ()))
        for objective, file in ENSEMBLES.items()
    ]
    print(json.dumps({"benchmark": "latency", "machine": machine(), "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
