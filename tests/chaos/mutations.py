"""What a broken program, another program or an enemy may write to a topic: seeded, made of valid records.

About one mutant in eight is valid by chance: it must be answered. Which are is for the decoders to say.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable

import msgspec
import numpy as np

from schemas.packs import PackedText, encode_pack, encoding_pack, token_pack
from tests.chaos.tiny_ensemble import VOCABULARY
from tests.engines.conftest import WIDTH

# Where a forged pack says its texts were read: no request has such a place, so that outcomes are not mixed up.
FIRST_FORGED_OFFSET = 1 << 40
# Bytes of nesting: far more than any decoder follows.
_DEEP = 5_000
# Announce 4 GiB of string, bytes, array, map in five bytes.
_HUGE_LENGTHS = [bytes([kind]) + b"\xff\xff\xff\xff" for kind in (0xDB, 0xC6, 0xDD, 0xDF)]
_NASTY: list[object] = [
    *(None, True, False, 0, -1, 1, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 0.5, 1e308),
    *("", "x", "\x00", "é" * 300, "a/b", "..", "\ufeff", b"", b"\x00", b"\xff" * 64, [], {}, [[]], {"a": {"b": []}}),
    *([0] * 100, ["tokens/2"], "tokens/2", "encodings/2", "tokens/3"),
]

Mutation = Callable[[random.Random, bytes], bytes | None]


def request(draw: random.Random, number: int) -> bytes:
    """A valid one."""
    words = " ".join(draw.choices(("good", "bad", "film", "river", "été", "水", "😀"), k=draw.randint(1, 12)))
    return json.dumps({"id": f"mutant-{number}", "text": words}, ensure_ascii=draw.random() < 0.5).encode()


def tokens(draw: random.Random, number: int, topic: str, partition: int) -> bytes:
    """A valid pack of tokens."""
    return encode_pack(token_pack(topic=topic, partition=partition, **_texts(draw, number)))  # type: ignore[arg-type]


def encodings(draw: random.Random, number: int, topic: str, partition: int) -> bytes:
    """A valid pack of encodings."""
    pack = token_pack(topic=topic, partition=partition, **_texts(draw, number))  # type: ignore[arg-type]
    chunks = len(pack.chunk_lengths())
    random_numbers = np.random.default_rng(number)
    widths = {"vector": WIDTH, "verdict": 3}
    return encode_pack(
        encoding_pack(
            pack,
            {name: random_numbers.normal(size=(chunks, width)).astype(np.float32) for name, width in widths.items()},
        )
    )


def mutated_request(draw: random.Random, value: bytes) -> bytes | None:
    return draw.choice([*_BYTES, *_BYTES, _other_json, _nested_json, _large_text])(draw, value)


def mutated_pack(draw: random.Random, value: bytes) -> bytes | None:
    return draw.choice([*_BYTES, _other_field, _other_field, _other_field, _nested_pack, _huge_length])(draw, value)


def _nasty(draw: random.Random) -> object:
    """A copy: a second mutation may change what is in it."""
    return copy.deepcopy(draw.choice(_NASTY))


def _texts(draw: random.Random, number: int) -> dict[str, object]:
    texts, windows = [], []
    for place in range(draw.randint(1, 4)):
        own = [
            [101, *draw.choices(range(1_000, VOCABULARY), k=draw.randint(0, 20)), 102]
            for _ in range(draw.randint(1, 2))
        ]
        windows += own
        texts.append(
            PackedText(
                id=f"pack-{number}-{place}",
                key=draw.choice((None, b"key")),
                headers=draw.choice(([], [("trace", b"1")])),
                offset=FIRST_FORGED_OFFSET + number * 10 + place,
                chunks=len(own),
                tokens=sum(map(len, own)),
                truncated=False,
            )
        )
    return {"texts": texts, "chunks": [np.array(each, np.int32) for each in windows]}


def _flip(draw: random.Random, value: bytes) -> bytes:
    changed = bytearray(value)
    for _ in range(draw.choice((1, 1, 2, 8))):
        place = draw.randrange(len(changed) * 8)
        changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def _cut(draw: random.Random, value: bytes) -> bytes:
    return value[: draw.randrange(len(value))]


def _drop(draw: random.Random, value: bytes) -> bytes:
    start = draw.randrange(len(value))
    return value[:start] + value[start + draw.randint(1, 16) :]


def _insert(draw: random.Random, value: bytes) -> bytes:
    start = draw.randrange(len(value))
    return value[:start] + draw.randbytes(draw.randint(1, 16)) + value[start:]


def _append(draw: random.Random, value: bytes) -> bytes:
    return value + draw.choice((b"\x00", b" ", b"{}", value, draw.randbytes(9)))


def _random_bytes(draw: random.Random, _value: bytes) -> bytes:
    return draw.randbytes(draw.randint(0, 200))


def _random_msgpack(draw: random.Random, _value: bytes) -> bytes:
    return msgspec.msgpack.encode([_nasty(draw) for _ in range(draw.randint(0, 8))])


def _nothing(_draw: random.Random, _value: bytes) -> None:
    return None


_BYTES: list[Mutation] = [_flip, _flip, _cut, _drop, _insert, _append, _random_bytes, _random_msgpack, _nothing]


def _other_json(draw: random.Random, value: bytes) -> bytes:
    """Another type or field, or half of a surrogate pair."""
    body: dict[str, object] = json.loads(value)
    body[draw.choice(("text", "id", "text", "more"))] = _json_of(_nasty(draw))
    if draw.random() < 0.2:
        body["text"] = draw.choice(("\ud83d", "\udc00x", "x\udbff"))
    if draw.random() < 0.1:
        del body["text"]
    return json.dumps(draw.choice((body, body, [body], body.get("text")))).encode()


def _json_of(value: object) -> object:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _nested_json(draw: random.Random, _value: bytes) -> bytes:
    opening = draw.choice((b"[", b'{"text":', b'{"a":'))
    return draw.choice((b"", b'{"text":')) + opening * draw.randint(1, _DEEP)


def _large_text(draw: random.Random, value: bytes) -> bytes:
    """Around the limit of the ensemble, and thousands of windows below it."""
    letter = draw.choice(("a", "!", "a ", "é"))
    return json.dumps({"text": letter * draw.choice((300, 2_000, 4_095, 4_096, 4_097, 20_000))}).encode()


def _other_field(draw: random.Random, value: bytes) -> bytes:
    """One place of the pack's tree, or two, is something else."""
    tree = msgspec.msgpack.decode(value)
    for _ in range(draw.choice((1, 1, 2))):
        node = tree
        while True:
            place = draw.randrange(len(node))
            if isinstance(node[place], list) and node[place] and draw.random() < 0.8:
                node = node[place]
            else:
                break
        old = node[place]
        if isinstance(old, bytes) and old and draw.random() < 0.5:
            node[place] = draw.choice((_flip(draw, old), old[:-4], old + old[:4], b"\xff" * len(old)))
        elif isinstance(old, int) and not isinstance(old, bool) and draw.random() < 0.5:
            node[place] = max(-(2**63), min(old + draw.choice((-1, 1, 4)), 2**64 - 1))  # what MessagePack has
        elif draw.random() < 0.1:
            del node[place]
            if not node:
                return msgspec.msgpack.encode(tree)
        else:
            node[place] = _nasty(draw)
    return msgspec.msgpack.encode(tree)


def _nested_pack(draw: random.Random, value: bytes) -> bytes:
    start = draw.randrange(len(value))
    return (
        value[:start] + draw.choice((b"\x91", b"\x81\xa1a", b"\xdc\x00\x01")) * draw.randint(1, _DEEP) + value[start:]
    )


def _huge_length(draw: random.Random, value: bytes) -> bytes:
    start = draw.randrange(len(value))
    return value[:start] + draw.choice(_HUGE_LENGTHS) + value[start + draw.randint(0, 3) :]
