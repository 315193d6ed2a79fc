"""Details of tokens: of each its place and its characters, and each of a long text's once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.packs import SECOND_TEXT, SPECIAL
from schemas.records import InputRecord, Source
from stages.text_tokenizer import TextTokenizer, TokenizedText
from stages.token_details import bare_details, rows_once
from stages.tokenize import TokenizeStage
from tests.tasks.test_against_transformers import write_model

TEXT = "Émigrés, they say: 😀 the nations of the world are at peace, and the people are at work again today."


@pytest.fixture(scope="module", params=["bert", "roberta", "xlm-roberta"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = write_model(tmp_path_factory.mktemp("models") / "model", request.param, "classes")
    return TextTokenizer(folder, max_length=12, long_texts="stride", stride=7)


def test_the_windows_are_the_same(tokenizer: TextTokenizer) -> None:
    for text in (TEXT, "", "peace"):
        [detailed], [bare] = tokenizer.with_details([text]), tokenizer([text])
        assert isinstance(detailed, TokenizedText)
        assert isinstance(bare, TokenizedText)
        assert [each.tolist() for each in detailed.windows] == [each.tolist() for each in bare.windows]


def test_a_long_texts_tokens_are_told_once(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    [text] = tokenizer.with_details([TEXT])
    assert isinstance(text, TokenizedText)
    assert text.details is not None
    assert len(text.windows) > 3
    once = np.concatenate(text.details)[rows_once(text.details)]
    tokenizer._details._tokenizer.no_truncation()
    whole = tokenizer._details._tokenizer.encode(TEXT)
    tokenizer._details._tokenizer.enable_truncation(12, stride=7)
    assert once[:, 0].tolist() == whole.ids
    assert [tuple(each) for each in once[:, 2:].tolist()] == whole.offsets
    assert once[:, 1].tolist() == [SPECIAL, *range(len(whole.ids) - 2), SPECIAL]
    assert TEXT[once[1, 2] :].lower().startswith("é")


@given(tokens=st.integers(1, 60), room=st.integers(2, 20), data=st.data())
def test_a_token_is_taken_where_it_has_more_context(tokens: int, room: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(0, room - 1))
    windows: list[np.ndarray] = []
    for first in range(0, tokens, room - stride):
        places = np.array([SPECIAL, *range(first, min(first + room, tokens)), SPECIAL], np.int32)
        windows.append(np.stack([places] * 4, axis=1))
        if first + room >= tokens:
            break
    chosen = rows_once(windows)
    places = np.concatenate(windows)[:, 1]
    assert places[chosen].tolist() == [SPECIAL, *range(tokens), SPECIAL]

    def context(row: int) -> int:
        starts = np.cumsum([0, *map(len, windows)])
        window = int(np.searchsorted(starts, row, side="right")) - 1
        at = row - starts[window] - 1
        return int(min(at, len(windows[window]) - 3 - at))

    for row in chosen[1:-1].tolist():
        others = np.flatnonzero(places == places[row]).tolist()
        assert context(row) == max(map(context, others))
        assert row == next(other for other in others if context(other) == context(row))


def test_of_a_pair_no_more_is_known() -> None:
    details = bare_details(np.array([5, 6 + SECOND_TEXT], np.int32))
    assert details.tolist() == [[5, SPECIAL, 0, 0], [6, SPECIAL, 0, 0]]


@pytest.mark.parametrize("task", ["feature-extraction", "sentence-embedding"])
def test_they_travel_where_a_task_asks_for_them(tokenizer: TextTokenizer, task: str) -> None:
    stage = TokenizeStage(tokenizer, request_format="json", max_text_bytes=1000, tasks=[task])
    requests = [{"text": TEXT}, {"text": "peace", "text_pair": "and war"}]
    records = [InputRecord(Source("t", 0, at), None, json.dumps(each).encode(), []) for at, each in enumerate(requests)]
    [(pack, rejected)] = stage([records])
    assert pack is not None
    assert not rejected
    assert len(pack.chunk_details()) == (len(pack.chunk_lengths()) if task == "feature-extraction" else 0)
