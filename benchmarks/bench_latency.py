"""Latency topic to topic at a steady rate: from the produce call to the result's arrival, through all three stages.

    make bench BENCH=bench_latency ARGS='--rate 20 --count 1200'

Open loop: texts are sent on a schedule, whether the ones before are answered or not. Spread over three processes and
fused in one, alternating. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.demo import run_demo
from benchmarks.machine import machine

LATENCY = Path(__file__).with_name("latency.yaml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--count", type=int, default=1_200)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--ensemble", type=Path, default=LATENCY)
    options = parser.parse_args()
    runs = [
        run_demo(options.ensemble, options.count, "--rate", str(options.rate), *(["--fused"] if fused else []))
        | {"fused": fused}
        for _ in range(options.rounds)
        for fused in (False, True)
    ]
    print(json.dumps({"benchmark": "latency", "rate": options.rate, "machine": machine(), "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
