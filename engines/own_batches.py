"""An engine of the user's own that reads plain padded batches, as models of transformers do, among packed rows.

    input_ids, attention_mask (token_type_ids), (texts, tokens) -> the class -> a vector a text, or one a token

`engines.padded` lays the texts out in rows of one; here each batch is handed over, and what comes back is checked,
pooled, normalised and judged by a head as the ensemble file says.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engines.errors import EngineError
from engines.heads import ModelOutput, PooledOutput, TokenOutput, check_outputs
from engines.numpy_outputs import finished, pooled
from engines.own_exits import no_exit
from engines.rows import SECOND_TYPE, Engine, PackedRows


class BatchEngine(Protocol):
    """Computes padded batches. Where it has a `close()`, that is called at the end. It is called by one thread at a
    time, unless `engine.instances` says more."""

    def __call__(
        self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64], /
    ) -> ArrayLike | Mapping[str, ArrayLike]:
        """Both (texts, tokens), 1 in the mask where a token is, each text from the row's beginning; also
        `token_type_ids`, where it has a parameter of that name. Answers (texts, width), or (texts, tokens, width), or
        several of them by name: a model's own, or sentence_embedding, logits, last_hidden_state, token_embeddings."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchAnswer:
    """What such an engine answers under one name: (texts, width), or `per_token` (texts, tokens, width). `path` is the
    class, for messages."""

    path: str
    output: str
    per_token: bool
    width: int


class BatchCall:
    """A `BatchEngine`, called with what it asks for. `name` is its class's, for messages."""

    def __init__(self, engine: Any, name: str) -> None:
        self.name = name
        self._engine = engine
        with no_exit():
            self._reads_types = "token_type_ids" in inspect.signature(engine).parameters

    @no_exit()
    def __call__(self, rows: PackedRows) -> dict[str, NDArray[Any]]:
        """Of rows of one text each. A single array has the name "output". Raises what the engine raises, EngineError
        where it answers no arrays of numbers."""
        inputs = {
            "input_ids": rows.input_ids.astype(np.int64),
            "attention_mask": (rows.segment_ids > 0).astype(np.int64),
        }
        more = {"token_type_ids": (rows.position_ids >= SECOND_TYPE).astype(np.int64)} if self._reads_types else {}
        answer = self._engine(*inputs.values(), **more)
        named = answer if isinstance(answer, Mapping) else {"output": answer}
        return {str(name): self._array(name, each) for name, each in named.items()}

    @no_exit()
    def close(self) -> None:
        """Where the engine wants to know."""
        if hasattr(self._engine, "close"):
            self._engine.close()

    def answers(self, rows: PackedRows) -> dict[str, BatchAnswer]:
        """What it has under each name, tried on rows. Raises likewise."""
        found: dict[str, BatchAnswer] = {}
        for name, array in self(rows).items():
            if array.shape[:-1] in (rows.row.shape, rows.input_ids.shape):
                found[name] = BatchAnswer(
                    path=self.name, output=name, per_token=array.ndim == 3, width=int(array.shape[-1])
                )
        if not found:
            raise EngineError(f"{self.name} answers nothing of (texts, width) or (texts, tokens, width)")
        return found

    def _array(self, name: object, answer: object) -> NDArray[Any]:
        array = np.asarray(answer)
        if array.dtype.kind not in "fiu":
            kind = array.dtype if isinstance(answer, np.ndarray) else type(answer).__name__
            raise EngineError(f"{self.name} answers {kind} as {name}: an array of numbers is wanted")
        return array


class BatchRows:
    """Implements `engines.rows.Engine`; row n holds text n (`engines.padded`)."""

    def __init__(self, call: BatchCall, outputs: Sequence[tuple[ModelOutput, BatchAnswer]]) -> None:
        self._call = call
        self._outputs = tuple(outputs)
        self._widths = {
            output.name: check_outputs([output], hidden_size=answer.width)[output.name] for output, answer in outputs
        }
        self._of_tokens = frozenset(output.name for output, _ in outputs if isinstance(output, TokenOutput))

    @property
    def widths(self) -> Mapping[str, int]:
        return self._widths

    @property
    def of_tokens(self) -> frozenset[str]:
        return self._of_tokens

    def run(self, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
        found = self._call(rows)
        lengths = np.count_nonzero(rows.segment_ids, axis=1)
        answers: dict[str, NDArray[np.float32]] = {}
        with np.errstate(all="ignore"):  # what is not finite is its reader's to find
            for output, answer in self._outputs:
                array = self._checked(found, answer, rows).astype(np.float32)
                pooling = output.pooling if isinstance(output, PooledOutput) and answer.per_token else None
                numbers = pooled(array, pooling, lengths)
                answers[output.name] = finished(output, numbers).astype(np.float32)
        return answers

    def close(self) -> None:
        self._call.close()

    def _checked(self, found: Mapping[str, NDArray[Any]], answer: BatchAnswer, rows: PackedRows) -> NDArray[Any]:
        wanted = (*(rows.input_ids.shape if answer.per_token else rows.row.shape), answer.width)
        if answer.output not in found:
            raise EngineError(f"{answer.path} answers no {answer.output!r}, but {', '.join(found) or 'nothing'}")
        shape = found[answer.output].shape
        if shape != wanted:
            raise EngineError(f"{answer.path} answers {answer.output!r} of shape {shape}: {wanted} is wanted")
        return found[answer.output]


class CheckedRows:
    """Implements `engines.rows.Engine` over one of the user's own that reads packed rows: what it answers has the
    shape that it promised, or is an EngineError."""

    @no_exit()
    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self._name = name
        self._widths = {str(output): int(width) for output, width in engine.widths.items()}
        self._of_tokens = frozenset(getattr(engine, "of_tokens", ()))

    @property
    def widths(self) -> Mapping[str, int]:
        return self._widths

    @property
    def of_tokens(self) -> frozenset[str]:
        return self._of_tokens

    def run(self, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
        with no_exit():
            found = self._engine.run(rows)
        answers: dict[str, NDArray[np.float32]] = {}
        for name, width in self._widths.items():
            if not isinstance(found, Mapping) or name not in found:
                raise EngineError(f"{self._name} answers no {name!r}")
            array = np.asarray(found[name])
            wanted = (*(rows.input_ids.shape if name in self._of_tokens else rows.row.shape), width)
            if array.shape != wanted or array.dtype.kind not in "fiu":
                what = f"{array.dtype} {array.shape}"
                raise EngineError(f"{self._name} answers {name!r} as {what}: float32 {wanted} is wanted")
            answers[name] = array.astype(np.float32, copy=False)
        return answers

    @no_exit()
    def close(self) -> None:
        if hasattr(self._engine, "close"):
            self._engine.close()
