"""A model's weights: safetensors files, whole or in shards, as float32 arrays by name: all of them, or some where they
lie in the file.

No other format: a pickled `pytorch_model.bin` would need PyTorch and could run code.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize, safe_open

from engines.errors import CheckpointError
from engines.json_files import expect_object, read_object


def read_weights(folder: Path) -> dict[str, NDArray[np.float32]]:
    """All floating-point tensors of a model's folder, half precision widened. Raises CheckpointError."""
    weights: dict[str, NDArray[np.float32]] = {}
    for path in _weight_files(folder):
        try:
            weights.update((_todays_name(name), tensor) for name, tensor in _read_safetensors(path))
        except (OSError, SafetensorError) as err:
            raise CheckpointError(f"{path}: not readable as safetensors ({err}): fetch the model again") from err
    return weights


def map_weights(folder: Path, names: Collection[str]) -> dict[str, NDArray[np.float32]]:
    """Those of these tensors that are there. What lies in the file as float32 is mapped: read when it is wanted, and in
    memory once for all processes. Raises CheckpointError."""
    weights: dict[str, NDArray[np.float32]] = {}
    for path in _weight_files(folder):
        try:
            weights.update(_mapped(path, names))
        except (OSError, ValueError, SafetensorError) as err:
            raise CheckpointError(f"{path}: not readable as safetensors ({err}): fetch the model again") from err
    return weights


def _todays_name(name: str) -> str:
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _weight_files(folder: Path) -> list[Path]:
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if index.is_file():
        shards = expect_object(index, read_object(index).get("weight_map"))
        return [folder / name for name in sorted(set(shards.values()))]
    if (folder / "pytorch_model.bin").is_file():
        raise CheckpointError(
            f"{folder}: only pytorch_model.bin, a pickle that needs PyTorch: save the model once with "
            "save_pretrained(..., safe_serialization=True), or fetch its model.safetensors"
        )
    raise CheckpointError(f"{folder}: no model.safetensors: fetch the model's weights into this folder")


def _read_safetensors(path: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    with safe_open(path, framework="numpy") as file:
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (not a mapping)
        for name, kind in kinds.items():
            if kind in ("F32", "F16", "F64"):
                yield name, file.get_tensor(name).astype(np.float32, copy=False)
    if "BF16" in kinds.values():  # NumPy has no bfloat16
        for name, tensor in deserialize(path.read_bytes()):  # type: ignore[no-untyped-call]
            if tensor["dtype"] == "BF16":
                yield name, _widened(np.frombuffer(tensor["data"], dtype="<u2")).reshape(tensor["shape"])


# What a tensor's numbers are in the file, by safetensors' name.
_FILE_TYPES = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}


def _mapped(path: Path, names: Collection[str]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    with safe_open(path, framework="numpy"):
        pass  # the header is sound, and the file as long as it says
    # https://huggingface.co/docs/safetensors: the header's length in 8 bytes, the header, the numbers.
    with path.open("rb") as file:
        start = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start))
    for name, tensor in header.items():
        kind = _FILE_TYPES.get(tensor.get("dtype"))
        if _todays_name(name) not in names or kind is None:
            continue
        offset = 8 + start + tensor["data_offsets"][0]
        numbers = np.asarray(np.memmap(path, kind, "r", offset, tuple(tensor["shape"])))
        if tensor["dtype"] == "BF16":
            numbers = _widened(numbers)
        # Aligned: products read it as it is.
        yield _todays_name(name), np.require(numbers, np.float32, "A")


def _widened(numbers: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16 is the upper half of a float32."""
    return (numbers.astype(np.uint32) << 16).view(np.float32)
