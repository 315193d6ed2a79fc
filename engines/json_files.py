"""JSON files of a model's folder, and what is said of those that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engines.errors import CheckpointError


def read_object(path: Path) -> dict[str, Any]:
    """A file's JSON object. Raises CheckpointError."""
    return expect_object(path, read_json(path))


def read_json(path: Path) -> Any:
    """A file's JSON, whatever it is. Raises CheckpointError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise CheckpointError(f"{path}: can't be read as JSON ({err}): fetch the model again") from err


def expect_object(path: Path, value: Any) -> dict[str, Any]:
    """A value that was read from `path` and must be an object. Raises CheckpointError."""
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: a JSON object is wanted, not {type(value).__name__}: fetch the model again")
    return value
