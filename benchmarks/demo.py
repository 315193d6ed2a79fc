"""Runs `penstock demo --json`, the whole of Penstock on this machine, for the benchmarks to read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

DEMO = Path(__file__).parent.parent / "pipeline" / "demo"


def demo_command(ensemble: Path, count: int, *options: str) -> list[str]:
    """Its command line."""
    return [
        *(sys.executable, "-m", "pipeline.cli", "demo", "--json"),
        *("--ensemble", str(ensemble), "--count", str(count), *options),
    ]


def run_demo(ensemble: Path, count: int, *options: str) -> dict[str, Any]:
    """What it says. Raises CalledProcessError unless every request got exactly one result."""
    done = subprocess.run(demo_command(ensemble, count, *options), stdout=subprocess.PIPE, text=True, check=True)
    said: dict[str, Any] = json.loads(done.stdout)
    return said
