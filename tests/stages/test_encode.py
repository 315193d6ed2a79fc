"""Encode: a window's answer is its own, whatever company it is in and whatever happens to that company."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines.checkpoint import Checkpoint
from engines.engine import open_engine
from engines.errors import EngineError
from engines.heads import PooledOutput, classification_head
from engines.rows import PackedRows
from schemas.errors import BadRecord, Reason
from schemas.packs import PackedText, TokenPack, token_pack
from stages.encode import Encoded, EncodeStage
from stages.pack_in_progress import PackInProgress

Window = NDArray[np.int32]
POISON = 666


class SumEngine:
    """Answers a text with the sum of its ids and their number. On a poison id it fails, or answers NaN."""

    widths: Mapping[str, int]
    of_tokens: frozenset[str] = frozenset()

    def __init__(
        self, name: str = "sums", *, on_poison: Literal["fail", "nan", "nan in its row", "compute"] = "fail"
    ) -> None:
        self.widths = {name: 2}
        self.runs = 0
        self.longest = 0
        self._name = name
        self._on_poison = on_poison

    def run(self, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
        self.runs += 1
        self.longest = max(self.longest, rows.input_ids.shape[1])
        poisoned = rows.input_ids == POISON
        if poisoned.any() and self._on_poison == "fail":
            raise EngineError("poison")
        answers = np.zeros((len(rows.row), 2), np.float32)
        for place, (row, slot) in enumerate(zip(rows.row, rows.slot, strict=True)):
            mine = rows.segment_ids[row] == slot + 1
            answers[place] = rows.input_ids[row][mine].sum(), mine.sum()
            reached = {"nan": poisoned[row] & mine, "nan in its row": poisoned[row]}.get(self._on_poison)
            if reached is not None and reached.any():
                answers[place, 1] = np.nan
        return {self._name: answers}

    def close(self) -> None:
        self.runs = -1


def stage_of(*engines: SumEngine, row_length: int = 32, max_length: int = 64) -> EncodeStage:
    return EncodeStage(engines, row_length=row_length, max_length=max_length)


def window(*ids: int) -> Window:
    return np.array(ids, np.int32)


def sums(windows: Sequence[Window]) -> list[list[float]]:
    return [[float(each.sum()), float(len(each))] for each in windows]


good_ids = st.integers(0, 500)
good_windows = st.lists(good_ids, min_size=1, max_size=64).map(lambda ids: window(*ids))
short_windows = st.lists(good_ids, min_size=1, max_size=32).map(lambda ids: window(*ids))


@st.composite
def poisoned_batches(draw: st.DrawFn, one: st.SearchStrategy[Window] = good_windows) -> tuple[list[Window], set[int]]:
    """Windows, and which of them hold the poison."""
    windows = draw(st.lists(one, min_size=1, max_size=40))
    culprits = draw(st.sets(st.integers(0, len(windows) - 1), max_size=4))
    for culprit in culprits:
        windows[culprit][draw(st.integers(0, len(windows[culprit]) - 1))] = POISON
    return windows, culprits


# Each window is answered for itself.


@given(windows=st.lists(good_windows, min_size=1, max_size=40), row_length=st.sampled_from([8, 32, 128]))
@settings(deadline=None)
def test_every_window_gets_its_own_answer_in_the_order_asked(windows: list[Window], row_length: int) -> None:
    engine = SumEngine()
    encoded = stage_of(engine, row_length=row_length)(windows)
    assert encoded.outputs["sums"].tolist() == sums(windows)
    assert encoded.outputs["sums"].dtype == np.float32
    assert not encoded.failed
    assert encoded.tokens == sum(map(len, windows)) <= encoded.padded_tokens


def test_rows_laid_before_are_the_rows_computed() -> None:
    windows = [window(*range(1, length)) for length in (5, 40, 12, 60, 3)]
    stage = stage_of(SumEngine())
    ready = stage(windows, stage.pack(windows))
    assert ready.outputs["sums"].tolist() == stage(windows).outputs["sums"].tolist() == sums(windows)


def test_several_engines_answer_together() -> None:
    windows = [window(1, 2), window(3)]
    encoded = stage_of(SumEngine("a"), SumEngine("b"))(windows)
    assert list(encoded.outputs) == ["a", "b"]
    assert encoded.outputs["a"].tolist() == encoded.outputs["b"].tolist() == sums(windows)


def test_threads_share_a_stage() -> None:
    stage = stage_of(SumEngine())
    batches = [[window(*range(1, 2 + (start + each) % 30)) for each in range(20)] for start in range(30)]
    with ThreadPoolExecutor(4) as pool:
        for windows, encoded in zip(batches, pool.map(stage, batches), strict=True):
            assert encoded.outputs["sums"].tolist() == sums(windows)


def test_an_engine_that_answers_fewer_windows_than_it_was_asked_is_stopped() -> None:
    class Forgetful(SumEngine):
        def run(self, rows: PackedRows) -> dict[str, NDArray[np.float32]]:
            return {name: answers[:1] for name, answers in super().run(rows).items()}

    with pytest.raises(AssertionError):
        stage_of(Forgetful())([window(1), window(2), window(3)])


def test_a_stage_closes_its_engines() -> None:
    engines = [SumEngine("a"), SumEngine("b")]
    stage_of(*engines).close()
    assert [engine.runs for engine in engines] == [-1, -1]


# One window never costs its neighbours their answer.


@given(batch=poisoned_batches(), on_poison=st.sampled_from(["fail", "nan"]))
@settings(deadline=None)
def test_only_the_culprits_fail_and_all_of_them_do(
    batch: tuple[list[Window], set[int]], on_poison: Literal["fail", "nan"]
) -> None:
    windows, culprits = batch
    encoded = stage_of(SumEngine(on_poison=on_poison))(windows)
    assert set(encoded.failed) == culprits
    assert all(error.reason is Reason.ENGINE_FAILED for error in encoded.failed.values())
    answered = [index for index in range(len(windows)) if index not in culprits]
    assert [encoded.outputs["sums"][index].tolist() for index in answered] == sums([windows[i] for i in answered])


@given(batch=poisoned_batches(), failing=st.integers(0, 1))
@settings(deadline=None)
def test_a_window_that_one_of_the_engines_refuses_fails_and_no_other(
    batch: tuple[list[Window], set[int]], failing: int
) -> None:
    windows, culprits = batch
    engines = [SumEngine("a", on_poison="compute"), SumEngine("b", on_poison="compute")]
    engines[failing] = SumEngine("ab"[failing])
    encoded = stage_of(*engines)(windows)
    assert set(encoded.failed) == culprits
    for index in set(range(len(windows))) - culprits:
        assert encoded.outputs["a"][index].tolist() == encoded.outputs["b"][index].tolist() == sums([windows[index]])[0]


@given(batch=poisoned_batches(short_windows))
@settings(deadline=None)
def test_a_culprit_costs_at_most_2_ceil_log2_n_more_runs(batch: tuple[list[Window], set[int]]) -> None:
    windows, culprits = batch
    engine = SumEngine()
    stage_of(engine)(windows)
    last = bool(culprits)  # then a harmless window of a token is tried
    assert engine.runs <= 1 + last + len(culprits) * 2 * math.ceil(math.log2(len(windows)))


@given(batch=poisoned_batches())
@settings(deadline=None)
def test_and_twice_that_among_windows_longer_than_a_row(batch: tuple[list[Window], set[int]]) -> None:
    windows, culprits = batch
    engine = SumEngine()
    stage = stage_of(engine)
    groups = len(stage.pack(windows))
    stage(windows)
    last = bool(culprits)
    assert engine.runs <= groups + last + len(culprits) * 4 * math.ceil(math.log2(len(windows)))


@pytest.mark.parametrize(("count", "runs"), [(1, 1), (2, 3), (3, 5), (4, 5), (5, 7), (64, 13)])
def test_the_search_is_a_bisection(count: int, runs: int) -> None:
    windows = [window(POISON if index == count - 1 else 1) for index in range(count)]
    engine = SumEngine()
    assert set(stage_of(engine)(windows).failed) == {count - 1}
    assert engine.runs == runs + 1, "and a harmless window of a token"


def test_a_half_that_no_longer_fits_its_rows_is_searched_to_the_end() -> None:
    """Rows of 64: 50 + 14, 48 + 16, 40 + 24. Of the second half, 16 needs a row of its own beside 40 + 24."""
    windows = [window(*range(1, 1 + length)) for length in (50, 48, 40, 24, 16, 14)]
    windows[2][7] = POISON
    encoded = stage_of(SumEngine())(windows)
    assert set(encoded.failed) == {2}
    others = [0, 1, 3, 4, 5]
    assert encoded.outputs["sums"][others].tolist() == sums([windows[index] for index in others])


def test_only_windows_with_numbers_that_are_not_finite_are_computed_again() -> None:
    engine = SumEngine(on_poison="nan")
    encoded = stage_of(engine)([window(1), window(POISON), window(2)])
    assert engine.runs == 3, "all, the one with the NaN, and a harmless one"
    assert encoded.failed[1].message == "sums is not finite"
    assert np.isfinite(encoded.outputs["sums"]).all()


@given(batch=poisoned_batches(short_windows))
@settings(deadline=None)
def test_a_nan_that_spreads_in_its_row_costs_its_neighbours_nothing(batch: tuple[list[Window], set[int]]) -> None:
    windows, culprits = batch
    encoded = stage_of(SumEngine(on_poison="nan in its row"))(windows)
    assert set(encoded.failed) == culprits
    answered = [index for index in range(len(windows)) if index not in culprits]
    assert [encoded.outputs["sums"][index].tolist() for index in answered] == sums([windows[i] for i in answered])


def test_what_the_engines_compute_again_is_not_counted_twice() -> None:
    windows = [window(1, 2, 3), window(POISON), window(4, 5)]
    assert stage_of(SumEngine())(windows).tokens == 6


# A window that no model can read never reaches an engine.


def test_a_window_of_max_length_is_not_too_long() -> None:
    windows = [np.ones(64, np.int32), np.ones(65, np.int32)]
    encoded = stage_of(SumEngine(), max_length=64)(windows)
    assert set(encoded.failed) == {1}
    assert encoded.outputs["sums"][0].tolist() == [64, 64]


@given(windows=st.lists(good_windows, max_size=8), length=st.integers(65, 3000), place=st.integers(0, 8))
@settings(deadline=None)
def test_a_window_that_is_too_long_fails_alone_and_unseen(windows: list[Window], length: int, place: int) -> None:
    place = min(place, len(windows))
    windows = [*windows[:place], np.ones(length, np.int32), *windows[place:]]
    engine = SumEngine()
    encoded = stage_of(engine)(windows)
    assert set(encoded.failed) == {place}
    assert encoded.failed[place].reason is Reason.BAD_PACK
    assert f"{length} tokens, the models read 64" in encoded.failed[place].message
    assert engine.longest <= 64
    for index in set(range(len(windows))) - {place}:
        assert encoded.outputs["sums"][index].tolist() == sums([windows[index]])[0]


def test_windows_too_long_are_left_out_of_rows_laid_before_too() -> None:
    windows = [np.ones(1_000_000, np.int32), window(1), np.ones(65, np.int32), window(POISON), window(2, 3)]
    stage = stage_of(SumEngine())
    encoded = stage(windows, stage.pack(windows))
    assert set(encoded.failed) == {0, 2, 3}
    assert encoded.outputs["sums"][[1, 4]].tolist() == [[1, 1], [5, 2]]


def test_a_batch_of_nothing_else_runs_no_engine() -> None:
    engine = SumEngine()
    encoded = stage_of(engine)([np.ones(65, np.int32)] * 2)
    assert (set(encoded.failed), engine.runs, encoded.tokens, encoded.padded_tokens) == ({0, 1}, 0, 0, 0)


# A pack is put together again from whatever batches its windows were computed in.


def pack_of(*texts: Sequence[Window]) -> TokenPack:
    return token_pack(
        topic="reviews.requests",
        partition=1,
        texts=[
            PackedText(f"id{offset}", None, [("h", b"v")], offset, len(windows), sum(map(len, windows)), False)
            for offset, windows in enumerate(texts)
        ],
        chunks=list(itertools.chain.from_iterable(texts)),
    )


def compute(progress: PackInProgress[None], stage: EncodeStage, batches: Sequence[Sequence[int]]) -> list[bool]:
    """Run the places of a pack in these batches; what each put answered."""
    answers: list[bool] = []
    for batch in batches:
        encoded = stage([progress.windows[place] for place in batch])
        answers += [progress.put(place, encoded, index) for index, place in enumerate(batch)]
    return answers


@given(
    texts=st.lists(st.lists(short_windows, min_size=1, max_size=3), min_size=1, max_size=8),
    culprits=st.sets(st.integers(0, 24), max_size=3),
    data=st.data(),
)
@settings(deadline=None)
def test_in_any_order_and_batches_every_text_comes_out_whole_or_lost(
    texts: list[list[Window]], culprits: set[int], data: st.DataObject
) -> None:
    flat = list(itertools.chain.from_iterable(texts))
    for culprit in culprits & set(range(len(flat))):
        flat[culprit][0] = POISON
    pack = pack_of(*texts)
    progress = PackInProgress(pack, None)
    places = data.draw(st.permutations(range(len(flat))))
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(flat) - 1)), max_size=4)))
    batches = [places[start:end] for start, end in itertools.pairwise([0, *cuts, len(flat)]) if start < end]

    answers = compute(progress, stage_of(SumEngine()), batches)

    assert answers == [False] * (len(flat) - 1) + [True], "complete with the last window and not before"
    encodings, lost = progress.encodings()
    bad = {offset for offset, windows in enumerate(texts) if any((each == POISON).any() for each in windows)}
    assert [text.offset for text, _ in lost] == sorted(bad)
    assert all(error.reason is Reason.ENGINE_FAILED for _, error in lost)
    whole = [offset for offset in range(len(texts)) if offset not in bad]
    if not whole:
        assert encodings is None
        return
    assert encodings is not None
    kept = [each for offset in whole for each in texts[offset]]
    assert encodings.texts == [pack.texts[offset] for offset in whole]
    assert (encodings.topic, encodings.partition) == ("reviews.requests", 1)
    assert encodings.chunk_lengths().tolist() == [len(each) for each in kept]
    assert encodings.outputs[0].rows().tolist() == sums(kept)


def test_a_pack_of_nothing_but_culprits_has_no_encodings() -> None:
    progress = PackInProgress(pack_of([window(POISON)], [window(1), window(POISON)]), None)
    assert compute(progress, stage_of(SumEngine()), [[2, 0, 1]]) == [False, False, True]
    encodings, lost = progress.encodings()
    assert encodings is None
    assert [text.id for text, _ in lost] == ["id0", "id1"]


def test_the_error_told_of_a_text_is_that_of_its_first_failed_window() -> None:
    progress = PackInProgress(pack_of([window(1), window(2), window(3)]), None)
    outputs = {"sums": np.zeros((3, 2), np.float32)}
    failed = {place: BadRecord(Reason.ENGINE_FAILED, f"window {place}") for place in (1, 2)}
    for place in (2, 1, 0):
        progress.put(place, Encoded(outputs, failed, 3, 3), place)
    [(_, error)] = progress.encodings()[1]
    assert error.message == "window 1"


# The real thing: a text's vector depends on nothing but the text.


@pytest.fixture(scope="module")
def real_stage(tiny: Checkpoint) -> Iterator[EncodeStage]:
    outputs = [
        PooledOutput(name="vector", pooling="mean", normalize=True),
        PooledOutput(name="raw", pooling="mean", normalize=False),
        PooledOutput(name="verdict", pooling="cls", normalize=False, head=classification_head(tiny)),
    ]
    stage = EncodeStage(
        [open_engine("onnxruntime", tiny, outputs, threads=1, instances=1)], row_length=24, max_length=32
    )
    yield stage
    stage.close()


real_windows = st.lists(st.integers(0, 49), min_size=1, max_size=32).map(lambda ids: window(*ids))


@given(text=real_windows, others=st.lists(real_windows, max_size=30), place=st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_a_text_has_the_same_numbers_alone_and_in_any_batch(
    real_stage: EncodeStage, text: Window, others: list[Window], place: int
) -> None:
    place = min(place, len(others))
    alone = real_stage([text])
    together = real_stage([*others[:place], text, *others[place:]])
    assert not together.failed
    for name, rows in alone.outputs.items():
        np.testing.assert_allclose(together.outputs[name][place], rows[0], rtol=0, atol=1e-5, err_msg=name)


@given(windows=st.lists(real_windows, min_size=2, max_size=12), poison=st.integers(0, 11))
@settings(max_examples=20, deadline=None)
def test_an_id_outside_of_the_vocabulary_fails_alone(
    real_stage: EncodeStage, windows: list[Window], poison: int
) -> None:
    poison %= len(windows)
    expected = real_stage(windows)
    windows[poison] = windows[poison].copy()
    windows[poison][-1] = POISON
    encoded = real_stage(windows)
    assert set(encoded.failed) == {poison}
    assert "vocabulary" in encoded.failed[poison].message
    others = [index for index in range(len(windows)) if index != poison]
    for name, rows in encoded.outputs.items():
        np.testing.assert_allclose(rows[others], expected.outputs[name][others], rtol=0, atol=1e-5, err_msg=name)
