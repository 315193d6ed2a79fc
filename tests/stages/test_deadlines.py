"""What expires: before it is tokenized, and before it is postprocessed."""

from __future__ import annotations

import json

import numpy as np

from engines.checkpoint import Checkpoint
from schemas.packs import (
    PackedText,
    TokenPack,
    decode_encoding_pack,
    decode_token_pack,
    encode_pack,
    encoding_pack,
    sources_of,
    token_pack,
)
from schemas.records import Headers, InputRecord, Source
from schemas.regrouping import joined_encodings, joined_tokens, parted
from schemas.urgency import Urgency
from stages.embeddings import SentenceEmbedding
from stages.postprocess import PostprocessStage, unanswered, without_expired
from stages.text_tokenizer import TextTokenizer
from stages.tokenize import TokenizeStage


def record(offset: int, *, written_ms: int | None = None, headers: Headers | None = None) -> InputRecord:
    value = json.dumps({"text": "two words", "id": str(offset)}).encode()
    return InputRecord(Source("t", 0, offset), b"k", value, headers or [], None, written_ms)


def test_what_has_expired_is_not_tokenized(minilm: Checkpoint) -> None:
    tokenizer = TextTokenizer(minilm.folder, max_length=16, long_texts="stride", stride=4)
    stage = TokenizeStage(tokenizer, request_format="json", max_text_bytes=100, deadline_ms=50)
    records = [record(0, written_ms=100), record(1, written_ms=50), record(2), record(3, written_ms=51)]
    [(pack, rejected), (late, _)] = stage([records, [record(4, written_ms=1)]], now_ms=100.0)
    assert not rejected
    assert pack is not None
    assert [text.offset for text in pack.texts] == [0, 2, 3]
    assert [text.urgency for text in pack.texts] == [Urgency(150), None, Urgency(101)]
    assert [(text.offset, text.id, text.key, text.why) for text in pack.closed] == [(1, "1", b"k", "expired")]
    assert late is not None
    assert not late.texts
    for each in (pack, late):
        assert decode_token_pack(encode_pack(each)) == each
    assert [source.offset for source in sources_of(joined_tokens([pack, late]))] == [0, 2, 3, 1, 4]
    [(timeless, _)] = stage([records])
    assert timeless is not None
    assert not timeless.closed, "without a clock nothing expires"


def a_pack(*expires_ms: int | None) -> TokenPack:
    texts = [
        PackedText(str(place), b"k", [], place, 1, 1, False, urgency=Urgency(each) if each is not None else None)
        for place, each in enumerate(expires_ms)
    ]
    return token_pack(topic="t", partition=0, texts=texts, chunks=[np.array([1], np.int32) for _ in texts])


def test_what_has_expired_is_not_postprocessed() -> None:
    rows = np.arange(8, dtype=np.float32).reshape(4, 2)
    pack = encoding_pack(a_pack(10, None, 20, 30), {"v": rows})
    assert without_expired(pack, 9.0) == (pack, 0)
    smaller, expired = without_expired(pack, 20.0)
    assert expired == 2
    assert [text.offset for text in smaller.texts] == [1, 3]
    assert smaller.outputs[0].rows().tolist() == rows[[1, 3]].tolist()
    stage = PostprocessStage({"v": SentenceEmbedding(width=2, normalize=False)})
    assert [result.outputs for result in stage(smaller)] == [{"v": [2.0, 3.0]}, {"v": [6.0, 7.0]}]  # type: ignore[union-attr]
    assert [unanswered(smaller, text).id for text in smaller.closed] == ["0", "2"]
    nothing, _ = without_expired(pack, 99.0)
    assert (
        stage(encoding_pack(a_pack(), {}))
        == stage(without_expired(encoding_pack(a_pack(1), {"v": rows[:1]}), 9)[0])
        == []
    )
    assert [text.offset for text in nothing.texts] == [1]
    again = joined_encodings([smaller, smaller])
    assert [text.offset for text in again.closed] == [0, 2, 0, 2]
    assert decode_encoding_pack(encode_pack(smaller)) == smaller


def test_a_pack_in_parts_keeps_what_is_closed_in_order() -> None:
    rows = np.zeros((5, 2), np.float32)
    pack, _ = without_expired(encoding_pack(a_pack(None, 1, None, 1, None), {"v": rows}, frozenset({"v"})), 2.0)
    parts = parted(pack, most_bytes=8)
    assert [[text.offset for text in (*part.texts, *part.closed)] for part in parts] == [[0, 1], [2, 3], [4]]
