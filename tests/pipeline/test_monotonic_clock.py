"""A worker's durations are of the monotonic clock: one that jumps, as clocks that are set do, means nothing to it.

Deadlines are the exception: other machines tell them, by the time of day. The steps alone look at that.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pipeline

ROOT = Path(next(iter(pipeline.__path__))).parent
# What a worker runs between reading a record and committing it, and what starts and ends it.
WORKER = (
    "assignment assembly clients dead_letters deadline delivery emitter exactly_once group_offsets intake lines "
    "metrics serve step_makers steps transactions triton_metrics work worker"
)
FILES = [
    *(ROOT / "pipeline" / f"{name}.py" for name in WORKER.split()),
    *sorted((ROOT / "stages").glob("*.py")),
    *sorted((ROOT / "engines").glob("*.py")),
]
WALL = {"time", "time_ns", "localtime", "gmtime", "ctime", "clock_gettime"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_nobody_looks_at_the_time_of_day(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time":
            assert node.attr not in WALL, f"line {node.lineno}"
        if isinstance(node, ast.ImportFrom | ast.Import):
            names = {each.name for each in node.names} | {getattr(node, "module", None)}
            assert "datetime" not in names, f"line {node.lineno}"
            assert not (getattr(node, "module", None) == "time" and names & WALL), f"line {node.lineno}"
            assert "wall_ms" not in names or file.stem == "steps", f"line {node.lineno}"
