"""Encode: windows of token ids in, the engines' numbers out, each window on its own.

A batch that an engine fails on, whatever it raises, is tried in halves until the culprit stands alone, so that one
window never costs its neighbours their answer: 2 ceil(log2 N) + 1 runs for one culprit among N at most, and twice that
where windows longer than a row are among the N, which lie in rows of their own. Of a batch with numbers that are not
finite only the windows that got them are tried again: a NaN spreads in its row, since zero times NaN is NaN. Before a
window is blamed, one of a single token that can't be at fault is tried: if that one fails too, it is the engine, which
may have died in between, and nobody's text is blamed for it.

An engine that is busy is asked again after a while, a bounded number of times for a batch and all its halves. A window
that it is still busy for then is asked for once more when the harmless one has been answered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineBusy, EngineError, EngineLost
from engines.rows import Engine, one_token, tokens_of_texts
from schemas.errors import BadRecord, Reason
from stages.blame import stage_failed, told
from stages.packing import RowGroup, pack_rows

# Between asking a busy engine again. Together 3 s: what holds a device that others use too is a batch of theirs, tens
# of milliseconds, or a model being loaded, seconds; a poll loop counts as stuck after 30 s.
_BUSY_WAITS_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


# An output of N windows: (N, W), or of tokens (tokens, W) of each.
_OfWindows = NDArray[np.float32] | list[NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Encoded:
    """What came of N windows: `outputs` name -> float32 (N, W), `of_tokens` name -> float32 (tokens, W) of each window,
    and the windows that failed, by index. Of the outputs in `chosen` only tokens of this number are there, (chosen, W).

    `tokens` are real ones, `padded_tokens` what the engines computed, ends of rows included.
    """

    outputs: dict[str, NDArray[np.float32]]
    failed: dict[int, BadRecord]
    tokens: int
    padded_tokens: int
    of_tokens: dict[str, list[NDArray[np.float32]]] = field(default_factory=dict)
    chosen: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Batch:
    """One call of the stage: what is asked and what has come of it. `busy` are those that failed for a busy engine."""

    windows: Sequence[NDArray[np.int32]]
    outputs: dict[str, NDArray[np.float32]]
    of_tokens: dict[str, list[NDArray[np.float32]]]
    failed: dict[int, BadRecord]
    waits_s: Iterator[float]
    busy: list[int]


class EncodeStage:
    """Every engine reads the same packed rows; together they give each window its outputs.

    `max_length` is the most tokens that all of the models read: attention costs memory by its square, so a longer
    window (there is none unless a pack was forged) fails before an engine sees it. `chosen` says of which outputs of
    tokens only those of one number are wanted: output name -> number. `sleep` is how a busy engine is waited for.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        *,
        row_length: int,
        max_length: int,
        chosen: Mapping[str, int] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._engines = tuple(engines)
        self._row_length = row_length
        self._max_length = max_length
        self._chosen = dict(chosen or {})
        self._sleep = sleep
        self._widths = {name: width for engine in engines for name, width in engine.widths.items()}
        self._of_tokens = frozenset(name for engine in engines for name in engine.of_tokens)

    def pack(self, windows: Sequence[NDArray[np.int32]]) -> list[RowGroup]:
        """Lay the windows into rows, all but those that are too long: the part of the work that needs no engine."""
        readable = [index for index, window in enumerate(windows) if len(window) <= self._max_length]
        return self._pack_some(windows, readable)

    def __call__(self, windows: Sequence[NDArray[np.int32]], groups: Sequence[RowGroup] | None = None) -> Encoded:
        """Outputs of all windows; `groups` where they were packed before. Thread-safe where the engines are.

        Raises EngineError where the engine itself is at fault, EngineLost where it is no more.
        """
        outputs = {
            name: np.zeros((len(windows), width), np.float32)
            for name, width in self._widths.items()
            if name not in self._of_tokens
        }
        of_tokens = {
            name: [np.zeros((self._count(name, window), width), np.float32) for window in windows]
            for name, width in self._widths.items()
            if name in self._of_tokens
        }
        failed = {
            index: self._too_long(window) for index, window in enumerate(windows) if len(window) > self._max_length
        }
        too_long = len(failed)
        batch = _Batch(windows, outputs, of_tokens, failed, iter(_BUSY_WAITS_S), [])
        tokens = padded_tokens = 0
        groups = self.pack(windows) if groups is None else groups
        for group in groups:
            tokens += group.rows.tokens
            padded_tokens += group.rows.padded_tokens
            self._run(group, batch)
        if len(failed) > too_long:
            self._try_engines(batch.waits_s)
            self._run_busy_again(batch)
        return Encoded(outputs, failed, tokens, padded_tokens, of_tokens, self._chosen)

    def close(self) -> None:
        """Close every engine."""
        for engine in self._engines:
            engine.close()

    def _try_engines(self, waits_s: Iterator[float]) -> None:
        """Compute one window of one token. Raises EngineError where an engine can't even do that."""
        group = RowGroup(one_token(), [0])
        try:
            answers = self._ask(group, waits_s)
        except (EngineError, EngineLost, MemoryError):
            raise
        except Exception as err:
            raise EngineError(f"fails whatever the text: {told(err)}") from err
        for name, rows in self._checked(answers, group).items():
            if not _finite(rows).all():
                raise EngineError(f"{name} is not finite, whatever the text: are the model's weights sound?")

    def _run(self, group: RowGroup, batch: _Batch) -> None:
        try:
            answers = self._ask(group, batch.waits_s)
        except (EngineLost, MemoryError):
            raise
        except EngineError as err:
            suspects, error = group.windows, BadRecord(Reason.ENGINE_FAILED, str(err))
            if isinstance(err, EngineBusy) and len(suspects) == 1:
                batch.busy.extend(suspects)
        except Exception as err:  # noqa: BLE001 - an engine of a user's own raises anything
            suspects, error = group.windows, err if isinstance(err, BadRecord) else stage_failed(err)
        else:
            computed = self._checked(answers, group)
            finite = {name: _finite(rows) for name, rows in computed.items()}
            sound = np.logical_and.reduce(list(finite.values()))
            for name, rows in computed.items():
                if isinstance(rows, np.ndarray):
                    batch.outputs[name][group.windows] = np.where(sound[:, np.newaxis], rows, 0)
                    continue
                for window, is_sound, tokens in zip(group.windows, sound, rows, strict=True):
                    batch.of_tokens[name][window] = tokens.copy() if is_sound else np.zeros_like(tokens)
            suspects = [window for window, is_sound in zip(group.windows, sound, strict=True) if not is_sound]
            names = ", ".join(name for name, each in finite.items() if not each.all())
            error = BadRecord(Reason.ENGINE_FAILED, f"{names} is not finite")
        if len(group.windows) == 1:
            batch.failed.update((suspect, error) for suspect in suspects)
            return
        middle = len(suspects) // 2
        for half in (suspects[:middle], suspects[middle:]):
            for smaller in self._pack_some(batch.windows, half):
                self._run(smaller, batch)

    def _run_busy_again(self, batch: _Batch) -> None:
        for index in [*batch.busy]:
            del batch.failed[index]
            for group in self._pack_some(batch.windows, [index]):
                self._run(group, batch)

    def _ask(self, group: RowGroup, waits_s: Iterator[float]) -> list[Mapping[str, NDArray[np.float32]]]:
        """Every engine's answer, busy ones waited for as long as there are waits."""
        answers: list[Mapping[str, NDArray[np.float32]]] = []
        while len(answers) < len(self._engines):
            try:
                answers.append(self._engines[len(answers)].run(group.rows))
            except EngineBusy:
                wait_s = next(waits_s, None)
                if wait_s is None:
                    raise
                self._sleep(wait_s)
        return answers

    def _checked(self, answers: Sequence[Mapping[str, NDArray[np.float32]]], group: RowGroup) -> dict[str, _OfWindows]:
        computed: dict[str, _OfWindows] = {}
        for name, rows in ((name, rows) for answer in answers for name, rows in answer.items()):
            of_tokens = name in self._of_tokens
            shape = group.rows.input_ids.shape if of_tokens else group.rows.row.shape
            assert rows.shape == (*shape, self._widths[name]), "an engine answers each window once"
            computed[name] = tokens_of_texts(rows, group.rows) if of_tokens else rows
            if name in self._chosen:
                ids = tokens_of_texts(group.rows.input_ids[:, :, np.newaxis], group.rows)
                computed[name] = [
                    tokens[each[:, 0] == self._chosen[name]] for tokens, each in zip(computed[name], ids, strict=True)
                ]
        return computed

    def _count(self, name: str, window: NDArray[np.int32]) -> int:
        """How many rows the window has of an output of tokens."""
        return int((window == self._chosen[name]).sum()) if name in self._chosen else len(window)

    def _pack_some(self, windows: Sequence[NDArray[np.int32]], chosen: Sequence[int]) -> list[RowGroup]:
        """Rows of the chosen windows, which keep their index."""
        return [
            RowGroup(group.rows, [chosen[place] for place in group.windows])
            for group in pack_rows([windows[index] for index in chosen], row_length=self._row_length)
        ]

    def _too_long(self, window: NDArray[np.int32]) -> BadRecord:
        return BadRecord(
            Reason.BAD_PACK,
            f"a window of {len(window)} tokens, the models read {self._max_length}: "
            "do all stages run the same ensemble file?",
        )


def _finite(rows: _OfWindows) -> NDArray[np.bool_]:
    """Which of the windows have finite numbers only, (N,)."""
    if isinstance(rows, np.ndarray):
        return np.asarray(np.isfinite(rows).all(axis=1))
    return np.array([np.isfinite(tokens).all() for tokens in rows])
