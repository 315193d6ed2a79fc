"""ONNX Runtime on the CPU: the default engine.

One session serves every thread that calls it. A call computes on the calling thread and on `threads - 1` of the
session's own, which don't spin while they wait: other processes live on the same cores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as raised  # type: ignore[import-untyped]

from engines.errors import EngineError
from engines.graph_writer import Weights
from engines.rows import PackedRows, checked_rows, graph_inputs
from engines.source import GraphSource

# ONNX Runtime's exceptions have no class in common but Exception.
_FAILURES = (
    raised.EPFail,
    raised.EngineError,
    raised.Fail,
    raised.InvalidArgument,
    raised.InvalidGraph,
    raised.InvalidProtobuf,
    raised.NotImplemented,
    raised.RuntimeException,
    RuntimeError,
    MemoryError,
)


class OnnxRuntimeEngine:
    """Implements `engines.rows.Engine`."""

    def __init__(self, source: GraphSource, *, threads: int) -> None:
        # And not the source: it holds on to what the graph was written from.
        self._widths = dict(source.widths)
        self._of_tokens = source.of_tokens
        self._vocab_size = source.vocab_size
        self._max_positions = source.max_positions
        self._types = source.types
        self._session = open_session(source.graph, source.path, threads=threads)

    @property
    def widths(self) -> Mapping[str, int]:
        return self._widths

    @property
    def of_tokens(self) -> frozenset[str]:
        return self._of_tokens

    def run(self, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
        rows = checked_rows(rows, vocab_size=self._vocab_size, max_positions=self._max_positions, types=self._types)
        try:
            tensors = self._session.run([*self.widths], graph_inputs(rows))
        except _FAILURES as err:
            raise EngineError(f"ONNX Runtime: {err}") from err
        return dict(zip(self.widths, tensors, strict=True))

    def close(self) -> None:
        del self._session


class Session:
    """ONNX Runtime's, with the weights beside its graph: it reads them where they are, and doesn't keep them itself."""

    def __init__(self, session: onnxruntime.InferenceSession, weights: Weights) -> None:
        self._session = session
        self._weights = weights

    def run(self, names: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        """Outputs of these names, in their order."""
        tensors: list[NDArray[np.float32]] = self._session.run([*names], inputs)
        return tensors


def open_session(graph: Callable[[Weights], bytes], path: Path, *, threads: int) -> Session:
    """What `graph` writes, ready to run; `path` is for messages. Raises EngineError."""
    weights: Weights = {}
    model = graph(weights)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Plans of memory are kept by shape, and micro-batches come in many.
    options.enable_mem_pattern = False
    options.log_severity_level = 3  # errors: its warnings are about graph optimisation
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in weights.values()]
    options.add_external_initializers(list(weights), values)
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except _FAILURES as err:
        raise EngineError(f"ONNX Runtime can't build {path}: {err}") from err
    return Session(session, weights)
