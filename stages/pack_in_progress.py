"""A pack while it is encoded: its windows go into micro-batches with those of others, and come back in any order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from schemas.errors import BadRecord
from schemas.packs import EncodingPack, PackedText, TokenPack, encoding_pack, token_pack
from stages.encode import Encoded


class PackInProgress:
    """A token pack while its windows are computed, in whatever batches and order. Not thread-safe."""

    def __init__(self, pack: TokenPack) -> None:
        self.pack = pack
        self.windows = pack.chunk_ids()
        self._missing = len(self.windows)
        self._outputs: dict[str, NDArray[np.float32]] = {}
        self._of_tokens: dict[str, dict[int, NDArray[np.float32]]] = {}
        self._failed: dict[int, BadRecord] = {}

    def put(self, place: int, encoded: Encoded, index: int) -> bool:
        """Window `place` of this pack is number `index` of `encoded`; whether the pack is now complete."""
        assert self._missing, "a window is put once"
        for name, rows in encoded.outputs.items():
            if name not in self._outputs:
                self._outputs[name] = np.empty((len(self.windows), rows.shape[1]), np.float32)
            self._outputs[name][place] = rows[index]
        if encoded.of_tokens:
            for name, tokens in encoded.of_tokens.items():
                self._of_tokens.setdefault(name, {})[place] = tokens[index]
        if index in encoded.failed:
            self._failed[place] = encoded.failed[index]
        self._missing -= 1
        return not self._missing

    def encodings(self) -> tuple[EncodingPack | None, list[tuple[PackedText, BadRecord]]]:
        """The complete pack's encodings (None where every text failed), and the texts one of whose windows failed."""
        assert not self._missing, "every window was put"
        if not self._failed:
            return self._encodings_of(self.pack, [*range(len(self.windows))]), []
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
            details=[details[chunk] for chunk in kept] if (details := self.pack.chunk_details()) else (),
        )
        return self._encodings_of(smaller, kept), lost

    def _encodings_of(self, pack: TokenPack, windows: list[int]) -> EncodingPack:
        """Of a pack of these windows."""
        whole = len(windows) == len(self.windows)
        outputs = {name: rows if whole else rows[windows] for name, rows in self._outputs.items()}
        for name, tokens in self._of_tokens.items():
            outputs[name] = np.concatenate([tokens[window] for window in windows])
        return encoding_pack(pack, outputs, frozenset(self._of_tokens))
