"""Opens an engine by its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, assert_never

from engines.checkpoint import Checkpoint
from engines.heads import PooledOutput
from engines.rows import Engine

EngineKind = Literal["onnxruntime", "openvino", "numpy"]


def open_engine(
    kind: EngineKind, checkpoint: Checkpoint, outputs: Sequence[PooledOutput], *, threads: int, instances: int
) -> Engine:
    """An engine ready for up to `instances` callers at once, each call computed on `threads` threads.

    Raises CheckpointError when heads don't fit, EngineUnavailable when a library is missing. Each library is
    imported only when it is asked for.
    """
    assert threads >= 1
    assert instances >= 1
    match kind:
        case "onnxruntime":
            from engines.onnxruntime import OnnxRuntimeEngine

            return OnnxRuntimeEngine(checkpoint, outputs, threads=threads)
        case "openvino":
            from engines.openvino import OpenVinoEngine

            return OpenVinoEngine(checkpoint, outputs, threads=threads, instances=instances)
        case "numpy":
            from engines.reference import ReferenceEngine

            return ReferenceEngine(checkpoint, outputs)
        case _:
            assert_never(kind)
