"""OpenVINO on the CPU, in float32: an optional package (`openvino`), faster than ONNX Runtime on some processors.

Each instance is a stream with threads of its own; a call takes a free one and waits where all are busy.
"""

from __future__ import annotations

from collections.abc import Mapping
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError, EngineUnavailable
from engines.rows import PackedRows, checked_rows, graph_inputs, one_token
from engines.source import GraphSource


class OpenVinoEngine:
    """Implements `engines.rows.Engine`."""

    def __init__(self, source: GraphSource, *, threads: int, instances: int) -> None:
        try:
            import openvino  # type: ignore[import-untyped]
        except ImportError as err:
            raise EngineUnavailable("engine openvino: not installed: pip install openvino") from err
        # And not the source: it holds on to what the graph was written from.
        self._widths = dict(source.widths)
        self._of_tokens = source.of_tokens
        self._vocab_size = source.vocab_size
        self._max_positions = source.max_positions
        self._types = source.types
        core = openvino.Core()
        settings = {
            # Where the processor has bfloat16, OpenVINO would take it unasked: another model (cosine 0.99997).
            "INFERENCE_PRECISION_HINT": "f32",
            "NUM_STREAMS": instances,
            "INFERENCE_NUM_THREADS": threads * instances,
            "ENABLE_CPU_PINNING": False,  # other processes live on the same cores
        }
        try:
            model = core.read_model(source.graph(None))
            compiled = core.compile_model(model, "CPU", settings)
            requests = [compiled.create_infer_request() for _ in range(instances)]
        except RuntimeError as err:
            raise EngineError(f"OpenVINO can't build {source.path}: {err}") from err
        # What a graph does not use is no input any more.
        self._inputs = frozenset(name for port in compiled.inputs for name in port.names)
        self._free: SimpleQueue[Any] = SimpleQueue()
        for request in requests:
            self._free.put(request)
        # Its first tensors must not be made by two threads at once: one waits for the other's GIL, for ever (2026.4).
        self.run(one_token())

    @property
    def widths(self) -> Mapping[str, int]:
        return self._widths

    @property
    def of_tokens(self) -> frozenset[str]:
        return self._of_tokens

    def run(self, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
        rows = checked_rows(rows, vocab_size=self._vocab_size, max_positions=self._max_positions, types=self._types)
        # Unbounded in name only: every request comes back after one micro-batch.
        request = self._free.get()
        try:
            inputs = {name: value for name, value in graph_inputs(rows).items() if name in self._inputs}
            request.infer(inputs, share_inputs=True)
            # The request owns these tensors: they are copied out before it is free again.
            return {name: request.get_tensor(name).data.copy() for name in self.widths}
        except RuntimeError as err:
            raise EngineError(f"OpenVINO: {err}") from err
        finally:
            self._free.put(request)

    def close(self) -> None:
        self._free = SimpleQueue()
