"""A pack while it is encoded: its windows go into micro-batches with those of others, and come back in any order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from schemas.errors import BadRecord
from schemas.packs import ClosedText, EncodingPack, PackedText, TokenPack, closed_text, encoding_pack, token_pack
from schemas.urgency import Unanswered
from stages.encode import Encoded

Owner = TypeVar("Owner")


class PackInProgress(Generic[Owner]):
    """A token pack while its windows are computed, in whatever batches and order. `owner` is whose it is. Not
    thread-safe."""

    def __init__(self, pack: TokenPack, owner: Owner) -> None:
        self.pack = pack
        self.owner = owner
        self.windows = pack.chunk_ids()
        # Whether a text of it may expire, be superseded or go in a lane of its own.
        self.urgent = any(text.urgency is not None for text in pack.texts)
        self._missing = len(self.windows)
        self._outputs: dict[str, NDArray[np.float32]] = {}
        self._of_tokens: dict[str, dict[int, NDArray[np.float32]]] = {}
        self._chosen: Mapping[str, int] = {}
        self._failed: dict[int, BadRecord] = {}
        self._closed: dict[int, Unanswered] = {}
        self._texts: list[int] | None = None

    @property
    def complete(self) -> bool:
        """Whether every window was put or skipped."""
        return not self._missing

    def text_of(self, place: int) -> int:
        """The number of the text that window `place` is of."""
        if self._texts is None:
            self._texts = [number for number, text in enumerate(self.pack.texts) for _ in range(text.chunks)]
        return self._texts[place]

    def put(self, place: int, encoded: Encoded, index: int) -> bool:
        """Window `place` of this pack is number `index` of `encoded`; whether the pack is now complete."""
        assert self._missing, "a window is put once"
        for name, rows in encoded.outputs.items():
            if name not in self._outputs:
                self._outputs[name] = np.empty((len(self.windows), rows.shape[1]), np.float32)
            self._outputs[name][place] = rows[index]
        if encoded.of_tokens:
            self._chosen = encoded.chosen
            for name, tokens in encoded.of_tokens.items():
                self._of_tokens.setdefault(name, {})[place] = tokens[index]
        if index in encoded.failed:
            self._failed[place] = encoded.failed[index]
        self._missing -= 1
        return not self._missing

    def close(self, text: int, why: Unanswered) -> None:
        """A text is not to be computed; each of its windows is still to be skipped, or put."""
        self._closed[text] = why

    def closed(self, text: int) -> bool:
        """Whether it was."""
        return text in self._closed

    def skip(self, windows: int = 1) -> bool:
        """So many windows of closed texts will not be put; whether the pack is now complete."""
        assert self._missing >= windows, "a window is skipped once"
        self._missing -= windows
        return not self._missing

    def encodings(self) -> tuple[EncodingPack | None, list[tuple[PackedText, BadRecord]]]:
        """The complete pack's encodings (None where nothing is left of it), and the texts that lost a window."""
        assert not self._missing, "every window was put"
        if not self._failed and not self._closed:
            return self._encodings_of(self.pack, [*range(len(self.windows))]), []
        texts: list[PackedText] = []
        kept: list[int] = []
        lost: list[tuple[PackedText, BadRecord]] = []
        closed: list[ClosedText] = [*self.pack.closed]
        first = 0
        for number, text in enumerate(self.pack.texts):
            chunks = range(first, first + text.chunks)
            first += text.chunks
            error = next((self._failed[chunk] for chunk in chunks if chunk in self._failed), None)
            if number in self._closed:
                closed.append(closed_text(text, self._closed[number]))
            elif error is None:
                texts.append(text)
                kept.extend(chunks)
            else:
                lost.append((text, error))
        if not texts and not closed:
            return None, lost
        details = self.pack.chunk_details()
        smaller = token_pack(
            topic=self.pack.topic,
            partition=self.pack.partition,
            texts=texts,
            chunks=[self.windows[chunk] for chunk in kept],
            details=[details[chunk] for chunk in kept] if details else (),
            closed=sorted(closed, key=lambda text: text.offset),
        )
        return self._encodings_of(smaller, kept), lost

    def _encodings_of(self, pack: TokenPack, windows: list[int]) -> EncodingPack:
        """Of a pack of these windows."""
        if not windows:
            return encoding_pack(pack, {})
        whole = len(windows) == len(self.windows)
        outputs = {name: rows if whole else rows[windows] for name, rows in self._outputs.items()}
        for name, tokens in self._of_tokens.items():
            outputs[name] = np.concatenate([tokens[window] for window in windows])
        places: dict[str, NDArray[np.int32]] = {}
        if self._chosen:
            ids = np.concatenate([self.windows[window] for window in windows])
            places = {name: np.flatnonzero(ids == number).astype(np.int32) for name, number in self._chosen.items()}
        return encoding_pack(pack, outputs, frozenset(self._of_tokens), places)
