"""ONNX Runtime on the CPU: the default engine.

One session serves every thread that calls it. A call computes on the calling thread and on `threads - 1` of the
session's own, which don't spin while they wait: other processes live on the same cores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as raised  # type: ignore[import-untyped]

from engines.checkpoint import Checkpoint
from engines.errors import EngineError
from engines.graph import Weights, written_graph
from engines.heads import PooledOutput, check_outputs
from engines.rows import PackedRows, check_rows, graph_inputs

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

    def __init__(self, checkpoint: Checkpoint, outputs: Sequence[PooledOutput], *, threads: int) -> None:
        self._vocab_size = checkpoint.config.vocab_size
        self._max_positions = checkpoint.max_positions
        self._widths = check_outputs(outputs, hidden_size=checkpoint.config.hidden_size)
        self._session = open_session(checkpoint, outputs, threads=threads)

    @property
    def widths(self) -> Mapping[str, int]:
        return self._widths

    def run(self, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
        check_rows(rows, vocab_size=self._vocab_size, max_positions=self._max_positions)
        try:
            tensors = self._session.run([*self._widths], graph_inputs(rows))
        except _FAILURES as err:
            raise EngineError(f"ONNX Runtime: {err}") from err
        return dict(zip(self._widths, tensors, strict=True))

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


def open_session(
    checkpoint: Checkpoint, outputs: Sequence[PooledOutput], *, threads: int, told: Sequence[str] = ()
) -> Session:
    """The graph of `engines.graph` in float32, ready to run. Raises EngineError."""
    weights: Weights = {}
    model = written_graph(checkpoint, outputs, told=told, beside=weights)
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
        raise EngineError(f"ONNX Runtime can't build {checkpoint.folder}: {err}") from err
    return Session(session, weights)
