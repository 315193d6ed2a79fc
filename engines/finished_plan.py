"""A TensorRT plan of the user's, such as trtexec writes: what it says of itself, and whether it can be served.

    input_ids, attention_mask (token_type_ids, position_ids), (texts, tokens) -> the plan -> an output

Nothing is known of how it was built, and there is nothing to compare it with: it is run as it is. TensorRT loads what
its own version built for the chip at hand, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from engines.errors import CheckpointError
from engines.exporters import check_inputs, chosen_output
from engines.profiles import Profile, Range

_INPUT_TYPES: Mapping[str, DTypeLike] = {"INT32": np.int32, "INT64": np.int64}
_OUTPUT_TYPES: Mapping[str, DTypeLike] = {"FLOAT": np.float32, "HALF": np.float16}

Dims = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTensor:
    """An input or output as TensorRT tells it: -1 is a size that is not fixed. `profiles` has the least, best and most
    of an input in each optimization profile."""

    name: str
    is_input: bool
    number_type: str
    dims: Dims
    profiles: tuple[tuple[Dims, Dims, Dims], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedPlan:
    """What a plan asks for and answers.

    inputs       name -> int32 or int64
    output       the name of what is read; float32 or float16
    per_token    whether that is (texts, tokens, width), and not (texts, width)
    others       names of the outputs that nobody reads
    """

    path: Path
    inputs: Mapping[str, np.dtype[Any]]
    output: str
    output_type: np.dtype[Any]
    per_token: bool
    width: int
    others: tuple[str, ...]
    profiles: tuple[Profile, ...]


def tensors_of(trt: ModuleType, engine: Any) -> list[PlanTensor]:
    """All inputs and outputs of a plan that is loaded."""
    tensors = []
    for number in range(engine.num_io_tensors):
        name = engine.get_tensor_name(number)
        dims = tuple(engine.get_tensor_shape(name))
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        tensors.append(
            PlanTensor(
                name=name,
                is_input=is_input,
                number_type=engine.get_tensor_dtype(name).name,
                dims=dims,
                profiles=_profiles(engine, name, dims) if is_input else (),
            )
        )
    return tensors


def read_plan(path: Path, tensors: Sequence[PlanTensor], *, output: str | None = None) -> FinishedPlan:
    """What can be served of it; `output` where it is to be another than the usual one. Raises CheckpointError."""
    inputs = {each.name: each for each in tensors if each.is_input}
    outputs = {each.name: each for each in tensors if not each.is_input}
    check_inputs(path, inputs)
    for name, each in inputs.items():
        if each.number_type not in _INPUT_TYPES:
            raise CheckpointError(f"{path}: input {name!r} is {each.number_type}: build the plan with INT32 or INT64")
        if len(each.dims) != 2:
            raise CheckpointError(f"{path}: input {name!r} is {_shape(each.dims)}: (texts, tokens) is wanted")
    name = chosen_output(path, outputs, output, option="plan_output")
    read = outputs[name]
    if len(read.dims) not in (2, 3) or read.dims[-1] < 1:
        raise CheckpointError(
            f"{path}: output {name!r} is {_shape(read.dims)}: (texts, width) or (texts, tokens, width) is wanted, the "
            "width as a number"
        )
    if read.number_type not in _OUTPUT_TYPES:
        raise CheckpointError(
            f"{path}: output {name!r} is {read.number_type}: build the plan with FLOAT or HALF there, as with trtexec "
            "--outputIOFormats=fp32:chw"
        )
    return FinishedPlan(
        path=path,
        inputs={name: np.dtype(_INPUT_TYPES[each.number_type]) for name, each in inputs.items()},
        output=name,
        output_type=np.dtype(_OUTPUT_TYPES[read.number_type]),
        per_token=len(read.dims) == 3,
        width=read.dims[-1],
        others=tuple(other for other in outputs if other != name),
        profiles=_common(path, [*inputs.values()]),
    )


def _profiles(engine: Any, name: str, dims: Dims) -> tuple[tuple[Dims, Dims, Dims], ...]:
    count = int(engine.num_optimization_profiles)
    if min(dims, default=0) >= 0:  # what is fixed is so in all of them
        return ((dims, dims, dims),) * count
    found = []
    for number in range(count):
        least, best, most = (tuple(each) for each in engine.get_tensor_profile_shape(name, number))
        found.append((least, best, most))
    return tuple(found)


def _common(path: Path, inputs: Sequence[PlanTensor]) -> tuple[Profile, ...]:
    """What all inputs allow, for they have one shape."""
    profiles = []
    for number in range(len(inputs[0].profiles)):
        ranges = []
        for axis in (0, 1):
            of_each = [_range(each, number, axis) for each in inputs]
            least, most = max(each.least for each in of_each), min(each.most for each in of_each)
            if least > most:
                raise CheckpointError(
                    f"{path}: its inputs have no shape in common in optimization profile {number}: build the plan with "
                    "the same shapes for all of them"
                )
            ranges.append(Range(least, of_each[0].best, most))
        profiles.append(Profile(*ranges))
    return tuple(profiles)


def _range(tensor: PlanTensor, number: int, axis: int) -> Range:
    return Range(*(dims[axis] for dims in tensor.profiles[number]))


def _shape(dims: Dims) -> str:
    return f"({', '.join('?' if size < 0 else str(size) for size in dims)})"
