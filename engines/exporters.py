"""What exporters call a model's inputs and outputs, whatever the file that they write."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from engines.errors import CheckpointError

# The most finished first.
USUAL_OUTPUTS = ("sentence_embedding", "logits", "last_hidden_state", "token_embeddings")
_KNOWN_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
_NEEDED_INPUTS = _KNOWN_INPUTS[:2]


def check_inputs(path: Path, names: Collection[str]) -> None:
    """Raises CheckpointError where one is missing, or there is nothing to put into one."""
    for name in names:
        if name not in _KNOWN_INPUTS:
            raise CheckpointError(f"{path}: nothing to put into its input {name!r}; known: {', '.join(_KNOWN_INPUTS)}")
    for name in _NEEDED_INPUTS:
        if name not in names:
            raise CheckpointError(f"{path}: no input {name!r}: export the model with it")


def chosen_output(path: Path, names: Collection[str], wanted: str | None, *, option: str) -> str:
    """`wanted`, or else the first of a usual name, or the only one. Raises CheckpointError; `option` is where a person
    names another."""
    name = wanted or next((usual for usual in USUAL_OUTPUTS if usual in names), None)
    if name is None and len(names) == 1:
        name = next(iter(names))
    if name is None or name not in names:
        which = f"no output {name!r}" if name else "several outputs, and none of a usual name"
        raise CheckpointError(f"{path}: {which}: name one of them in {option}: {', '.join(names)}")
    return name
