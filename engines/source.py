"""Where an engine's graph comes from: a checkpoint, or an ONNX file of the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.checkpoint import Checkpoint
from engines.graph import written_graph
from engines.graph_writer import Weights
from engines.heads import ModelOutput, check_outputs, token_names
from engines.onnx_model import OnnxModel, onnx_graph

# Where nobody knows a model's vocabulary: any id that there is.
ANY_ID = 1 << 31


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSource:
    """A graph for the inputs of `engines.graph`, and what is known of it.

    path            for messages
    widths          output name -> W
    of_tokens       names of the outputs that are of each token
    vocab_size      token ids lie under it
    max_positions   the most tokens of a text
    types           the token types that it tells apart
    graph           writes it, as `engines.graph.written_graph` does, weights into the mapping where one is given
    one_text_a_row  whether its attention knows no segments
    """

    path: Path
    widths: Mapping[str, int]
    of_tokens: frozenset[str]
    vocab_size: int
    max_positions: int
    types: int
    graph: Callable[[Weights | None], bytes]
    one_text_a_row: bool = False


def of_checkpoint(checkpoint: Checkpoint, outputs: Sequence[ModelOutput]) -> GraphSource:
    """In float32. Raises CheckpointError where heads don't fit."""
    return GraphSource(
        path=checkpoint.folder,
        widths=check_outputs(outputs, hidden_size=checkpoint.config.hidden_size),
        of_tokens=token_names(outputs),
        vocab_size=checkpoint.config.vocab_size,
        max_positions=checkpoint.max_positions,
        types=checkpoint.types,
        graph=lambda beside: written_graph(checkpoint, outputs, beside=beside),
    )


def of_onnx(
    model: OnnxModel,
    outputs: Sequence[ModelOutput],
    *,
    vocab_size: int | None,
    max_positions: int,
    first_position: int = 0,
) -> GraphSource:
    """As the file has it. Raises CheckpointError where heads don't fit."""
    return GraphSource(
        path=model.path,
        widths=check_outputs(outputs, hidden_size=model.width),
        of_tokens=token_names(outputs),
        vocab_size=vocab_size or ANY_ID,
        max_positions=max_positions,
        types=2,
        graph=lambda beside: onnx_graph(
            model, outputs, max_positions=max_positions, first_position=first_position, beside=beside
        ),
        one_text_a_row=True,
    )
