"""Packs of other sizes: small ones read as one, large ones written in parts. Texts stay whole, and in their order."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.packs import NARROW, WIDE, EncodedOutput, EncodingPack, TokenPack, split_rows


def joined_tokens(packs: Sequence[TokenPack]) -> TokenPack:
    """One pack of what is in several of one partition, in their order."""
    assert len({(pack.topic, pack.partition) for pack in packs}) == 1
    wide = any(pack.wide for pack in packs)
    ids = [
        np.frombuffer(pack.input_ids, NARROW).astype(WIDE).tobytes() if wide and not pack.wide else pack.input_ids
        for pack in packs
    ]
    return TokenPack(
        topic=packs[0].topic,
        partition=packs[0].partition,
        texts=[text for pack in packs for text in pack.texts],
        wide=wide,
        lengths=b"".join(pack.lengths for pack in packs),
        input_ids=b"".join(ids),
        details=_joined_details(packs),
        closed=[text for pack in packs for text in pack.closed],
    )


def joined_encodings(packs: Sequence[EncodingPack]) -> EncodingPack:
    """The same of encodings. Their outputs must be of the same names and widths, in the same order."""
    first = packs[0]
    shapes = {tuple(output.shape for output in pack.outputs) for pack in packs}
    assert len({(pack.topic, pack.partition) for pack in packs}) == len(shapes) == 1
    return EncodingPack(
        topic=first.topic,
        partition=first.partition,
        texts=[text for pack in packs for text in pack.texts],
        lengths=b"".join(pack.lengths for pack in packs),
        outputs=[
            msgspec.structs.replace(
                output,
                values=b"".join(pack.outputs[place].values for pack in packs),
                chosen=None if output.chosen is None else _joined_places(packs, place),
            )
            for place, output in enumerate(first.outputs)
        ],
        details=_joined_details(packs),
        closed=[text for pack in packs for text in pack.closed],
    )


def _joined_places(packs: Sequence[EncodingPack], output: int) -> bytes:
    """Of an output of chosen tokens, by its number."""
    places: list[NDArray[np.int32]] = []
    tokens = 0
    for pack in packs:
        places.append(pack.outputs[output].places() + np.int32(tokens))
        tokens += int(pack.chunk_lengths().sum())
    return np.concatenate(places).astype("<i4", copy=False).tobytes()


def _joined_details(packs: Sequence[TokenPack] | Sequence[EncodingPack]) -> bytes:
    """All have them, or none."""
    assert len({bool(pack.details) for pack in packs}) == 1
    return b"".join(pack.details for pack in packs)


def parted(pack: EncodingPack, *, most_bytes: int) -> list[EncodingPack]:
    """The pack in several, where numbers of tokens make it larger than that; a text stays whole."""
    numbers_bytes = sum(len(output.values) for output in pack.outputs) + len(pack.details)
    if numbers_bytes <= most_bytes or len(pack.texts) == 1 or not any(output.of_tokens for output in pack.outputs):
        return [pack]
    middle = len(pack.texts) // 2
    halves = [of_texts(pack, range(middle)), of_texts(pack, range(middle, len(pack.texts)))]
    first = [text for text in pack.closed if text.offset < pack.texts[middle].offset]
    halves[0] = msgspec.structs.replace(halves[0], closed=first)
    halves[1] = msgspec.structs.replace(halves[1], closed=pack.closed[len(first) :])
    return [part for half in halves for part in parted(half, most_bytes=most_bytes)]


def of_texts(pack: EncodingPack, places: Sequence[int]) -> EncodingPack:
    """The pack with some of its texts, in their order; what is closed stays."""
    chunks = split_rows(np.arange(len(pack.chunk_lengths())), [text.chunks for text in pack.texts])
    tokens = split_rows(np.arange(int(pack.chunk_lengths().sum())), [text.tokens for text in pack.texts])
    nothing = np.zeros(0, np.intp)
    of_chunks = np.concatenate([nothing, *(chunks[place] for place in places)])
    of_tokens = np.concatenate([nothing, *(tokens[place] for place in places)])
    return msgspec.structs.replace(
        pack,
        texts=[pack.texts[place] for place in places],
        lengths=pack.chunk_lengths()[of_chunks].tobytes(),
        outputs=[_part(output, of_tokens if output.of_tokens else of_chunks) for output in pack.outputs],
        details=pack.token_details()[of_tokens].tobytes() if pack.details else b"",
    )


def _part(output: EncodedOutput, kept: NDArray[np.intp]) -> EncodedOutput:
    """Of these rows, or where they are of chosen tokens, of those of these tokens. Both rise."""
    if output.chosen is None:
        return msgspec.structs.replace(output, values=output.rows()[kept].tobytes())
    places = output.places()
    mine = np.isin(places, kept)
    return msgspec.structs.replace(
        output,
        values=output.rows()[mine].tobytes(),
        chosen=np.searchsorted(kept, places[mine]).astype("<i4").tobytes(),
    )
