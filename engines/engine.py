"""Opens an engine by its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, assert_never

from engines.checkpoint import Checkpoint
from engines.errors import EngineUnavailable
from engines.heads import ModelOutput
from engines.padded import PADDED_TOKENS, PaddedEngine, padded_lengths
from engines.rows import Engine

if TYPE_CHECKING:
    from engines.source import GraphSource

EngineKind = Literal["onnxruntime", "openvino", "numpy"]


def open_engine(
    kind: EngineKind, checkpoint: Checkpoint, outputs: Sequence[ModelOutput], *, threads: int, instances: int
) -> Engine:
    """An engine ready for up to `instances` callers at once, each call computed on `threads` threads.

    Raises CheckpointError when heads don't fit, EngineUnavailable when a library is missing. Each library is
    imported only when it is asked for.
    """
    assert threads >= 1
    assert instances >= 1
    if kind == "numpy":
        from engines.reference import ReferenceEngine

        return ReferenceEngine(checkpoint, outputs)
    from engines.source import of_checkpoint

    return open_source(kind, of_checkpoint(checkpoint, outputs), threads=threads, instances=instances)


def open_source(kind: EngineKind, source: GraphSource, *, threads: int, instances: int) -> Engine:
    """The same for any graph; where its rows may hold one text only, they are laid out so.

    Raises EngineUnavailable likewise, also for the engine that reads no graph.
    """
    match kind:
        case "onnxruntime":
            from engines.onnxruntime import OnnxRuntimeEngine

            engine: Engine = OnnxRuntimeEngine(source, threads=threads)
        case "openvino":
            from engines.openvino import OpenVinoEngine

            engine = OpenVinoEngine(source, threads=threads, instances=instances)
        case "numpy":
            raise EngineUnavailable("engine numpy: reads no ONNX file: choose onnxruntime or openvino")
        case _:
            assert_never(kind)
    if not source.one_text_a_row:
        return engine
    return PaddedEngine(engine, lengths=padded_lengths(source.max_positions), max_tokens=PADDED_TOKENS)
