"""Memory of each process while many texts go through the demo: is it flat?

    make bench BENCH=bench_memory ARGS='--count 100000'

Samples the resident size (RSS) of every process below `penstock demo` and prints JSON: for each, MiB at a tenth, at
half and at the end of the run, and the growth from half to end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path

import psutil

from benchmarks.demo import DEMO, demo_command
from benchmarks.machine import machine

ROLES = ("tokenize", "encode", "postprocess", "fused", "broker")
SAMPLE_S = 2.0


def role(process: psutil.Process) -> str | None:
    """Which of the demo's processes this is, from its command line."""
    line = process.cmdline()
    if "demo" in line:
        return "demo"
    return next((name for name in ROLES if any(part in (name, f"pipeline.{name}") for part in line)), None)


def sample(root: psutil.Process) -> dict[str, float]:
    """Role -> MiB, of all processes that live."""
    found: dict[str, float] = {}
    for process in [root, *root.children(recursive=True)]:
        try:
            if name := role(process):
                found[name] = process.memory_info().rss / 2**20
        except psutil.NoSuchProcess:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--ensemble", type=Path, default=DEMO / "ensemble.yaml")
    options = parser.parse_args()
    command = demo_command(options.ensemble, options.count)
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    samples: list[dict[str, float]] = []
    while running.poll() is None:
        samples.append(sample(psutil.Process(running.pid)))
        time.sleep(SAMPLE_S)
    said = json.loads(running.communicate()[0])
    memory: dict[str, dict[str, float]] = {}
    for name in sorted({name for each in samples for name in each}):
        series = [each[name] for each in samples if name in each]
        tenth, half, end = series[len(series) // 10], series[len(series) // 2], series[-2 if len(series) > 1 else -1]
        memory[name] = {
            "at_tenth_mib": round(tenth, 1),
            "at_half_mib": round(half, 1),
            "at_end_mib": round(end, 1),
            "peak_mib": round(max(series), 1),
            "growth_second_half_mib": round(end - half, 1),
        }
    print(json.dumps({"benchmark": "memory", "machine": machine(), "memory": memory, "demo": said}, indent=1))


if __name__ == "__main__":
    main()
