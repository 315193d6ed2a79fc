"""Encode: windows of token ids in, the engines' numbers out, each window on its own.

A batch that an engine refuses is tried in halves until the culprit stands alone, so that one window never costs its
neighbours their answer: at most 2 ceil(log2 N) more runs a culprit, and twice that where windows longer than a row are
among the N, which lie in rows of their own. Of a batch with numbers that are not finite only the windows that got them
are tried again: a NaN spreads in its row, since zero times NaN is NaN. Where all of them fail, a window that can't be
at fault is tried: if that one fails too, it is the engine, and nobody's text is blamed for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.rows import Engine
from schemas.errors import BadRecord, Reason
from schemas.packs import EncodingPack, PackedText, TokenPack, encoding_pack, token_pack
from stages.packing import RowGroup, pack_rows


@dataclass(frozen=True, slots=True)
class Encoded:
    """What came of N windows: `outputs` name -> float32 (N, W), and the windows that failed, by index.

    `tokens` are real ones, `padded_tokens` what the engines computed, ends of rows included.
    """

    outputs: dict[str, NDArray[np.float32]]
    failed: dict[int, BadRecord]
    tokens: int
    padded_tokens: int


class EncodeStage:
    """Every engine reads the same packed rows; together they give each window its outputs.

    `max_length` is the most tokens that all of the models read: attention costs memory by its square, so a longer
    window (there is none unless a pack was forged) fails before an engine sees it.
    """

    def __init__(self, engines: Sequence[Engine], *, row_length: int, max_length: int) -> None:
        self._engines = tuple(engines)
        self._row_length = row_length
        self._max_length = max_length
        self._widths = {name: width for engine in engines for name, width in engine.widths.items()}

    def pack(self, windows: Sequence[NDArray[np.int32]]) -> list[RowGroup]:
        """Lay the windows into rows, all but those that are too long: the part of the work that needs no engine."""
        readable = [index for index, window in enumerate(windows) if len(window) <= self._max_length]
        return self._pack_some(windows, readable)

    def __call__(self, windows: Sequence[NDArray[np.int32]], groups: Sequence[RowGroup] | None = None) -> Encoded:
        """Outputs of all windows; `groups` where they were packed before. Thread-safe where the engines are.

        Raises EngineError where the engine itself is at fault.
        """
        outputs = {name: np.zeros((len(windows), width), np.float32) for name, width in self._widths.items()}
        failed = {
            index: self._too_long(window) for index, window in enumerate(windows) if len(window) > self._max_length
        }
        tokens = padded_tokens = 0
        groups = self.pack(windows) if groups is None else groups
        for group in groups:
            tokens += group.rows.tokens
            padded_tokens += group.rows.padded_tokens
            self._run(group, windows, outputs, failed)
        computed = sum(len(group.windows) for group in groups)
        if computed and len(failed) == len(windows):
            self.try_engines()
        return Encoded(outputs, failed, tokens, padded_tokens)

    def try_engines(self) -> None:
        """Compute one window of one token. Raises EngineError where an engine can't even do that."""
        [group] = pack_rows([np.zeros(1, np.int32)], row_length=self._row_length)
        for name, rows in self._compute(group).items():
            if not np.isfinite(rows).all():
                raise EngineError(f"{name} is not finite, whatever the text: are the model's weights sound?")

    def close(self) -> None:
        """Close every engine."""
        for engine in self._engines:
            engine.close()

    def _run(
        self,
        group: RowGroup,
        windows: Sequence[NDArray[np.int32]],
        outputs: dict[str, NDArray[np.float32]],
        failed: dict[int, BadRecord],
    ) -> None:
        try:
            computed = self._compute(group)
        except EngineError as err:
            suspects, why = group.windows, str(err)
        else:
            finite = {name: np.isfinite(rows).all(axis=1) for name, rows in computed.items()}
            sound = np.logical_and.reduce(list(finite.values()))
            for name, rows in computed.items():
                outputs[name][group.windows] = np.where(sound[:, np.newaxis], rows, 0)
            suspects = [window for window, is_sound in zip(group.windows, sound, strict=True) if not is_sound]
            why = f"{', '.join(name for name, each in finite.items() if not each.all())} is not finite"
        if len(group.windows) == 1:
            failed.update((suspect, BadRecord(Reason.ENGINE_FAILED, why)) for suspect in suspects)
            return
        middle = len(suspects) // 2
        for half in (suspects[:middle], suspects[middle:]):
            for smaller in self._pack_some(windows, half):
                self._run(smaller, windows, outputs, failed)

    def _compute(self, group: RowGroup) -> dict[str, NDArray[np.float32]]:
        computed = {name: rows for engine in self._engines for name, rows in engine.run(group.rows).items()}
        for name, rows in computed.items():
            assert rows.shape == (len(group.rows.row), self._widths[name]), "an engine answers each window once"
        return computed

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


class PackInProgress:
    """A token pack while its windows are computed, in whatever batches and order. Not thread-safe."""

    def __init__(self, pack: TokenPack) -> None:
        self.pack = pack
        self.windows = pack.chunk_ids()
        self._missing = len(self.windows)
        self._outputs: dict[str, NDArray[np.float32]] = {}
        self._failed: dict[int, BadRecord] = {}

    def put(self, place: int, encoded: Encoded, index: int) -> bool:
        """Window `place` of this pack is number `index` of `encoded`; whether the pack is now complete."""
        assert self._missing, "a window is put once"
        for name, rows in encoded.outputs.items():
            if name not in self._outputs:
                self._outputs[name] = np.empty((len(self.windows), rows.shape[1]), np.float32)
            self._outputs[name][place] = rows[index]
        if index in encoded.failed:
            self._failed[place] = encoded.failed[index]
        self._missing -= 1
        return not self._missing

    def encodings(self) -> tuple[EncodingPack | None, list[tuple[PackedText, BadRecord]]]:
        """The complete pack's encodings (None where every text failed), and the texts one of whose windows failed."""
        assert not self._missing, "every window was put"
        if not self._failed:
            return encoding_pack(self.pack, self._outputs), []
        texts: list[PackedText] = []
        kept: list[int] = []
        lost: list[tuple[PackedText, BadRecord]] = []
        first = 0
        for text in self.pack.texts:
            chunks = range(first, first + text.chunks)
            first += text.chunks
            error = next((self._failed[chunk] for chunk in chunks if chunk in self._failed), None)
            if error is None:
                texts.append(text)
                kept.extend(chunks)
            else:
                lost.append((text, error))
        if not texts:
            return None, lost
        smaller = token_pack(
            topic=self.pack.topic,
            partition=self.pack.partition,
            texts=texts,
            chunks=[self.windows[chunk] for chunk in kept],
        )
        return encoding_pack(smaller, {name: rows[kept] for name, rows in self._outputs.items()}), lost
