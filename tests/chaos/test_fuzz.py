"""Mutated records, in this process: decoders and stages refuse or answer them, and nothing else ever happens."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest

from pipeline.assembly import open_encode_stage, open_postprocess_stage
from pipeline.ensemble import Ensemble, Refused
from pipeline.settings import EnsembleSettings, load_ensemble
from schemas.errors import BadRecord
from schemas.packs import decode_encoding_pack, decode_token_pack, encode_pack
from schemas.records import InputRecord, Source
from schemas.results import Result, encode_result
from stages.encode import EncodeStage
from stages.pack_in_progress import PackInProgress
from stages.postprocess import PostprocessStage
from tests.chaos import mutations
from tests.chaos.fuzz import MAX_TEXT_BYTES
from tests.chaos.tiny_ensemble import write_ensemble

TOPIC = "fuzz.requests"
MUTANTS = 2_000


@pytest.fixture(scope="module")
def ensemble_settings(tmp_path_factory: pytest.TempPathFactory) -> EnsembleSettings:
    folder = tmp_path_factory.mktemp("fuzz")
    file = write_ensemble(folder, name="fuzz", bootstrap="127.0.0.1:9", requests={"max_text_bytes": MAX_TEXT_BYTES})
    return load_ensemble(file)


@pytest.fixture(scope="module")
def encode(ensemble_settings: EnsembleSettings) -> Iterator[EncodeStage]:
    stage = open_encode_stage(ensemble_settings)
    yield stage
    stage.close()


@pytest.fixture(scope="module")
def postprocess(ensemble_settings: EnsembleSettings) -> PostprocessStage:
    return open_postprocess_stage(ensemble_settings)


def test_each_mutated_request_is_answered_or_refused(ensemble_settings: EnsembleSettings) -> None:
    draw = random.Random(1)
    values = [mutations.mutated_request(draw, mutations.request(draw, number)) for number in range(MUTANTS)]
    records = [InputRecord(Source(TOPIC, 0, offset), None, value, []) for offset, value in enumerate(values)]
    with Ensemble(ensemble_settings) as ensemble:
        outcomes = list(ensemble.answer(records))
    assert [each.source.offset for each in outcomes] == list(range(MUTANTS))
    refused = sum(isinstance(each, Refused) for each in outcomes)
    assert 0 < refused < MUTANTS


def test_a_mutated_pack_of_tokens_is_refused_or_each_text_has_an_outcome(encode: EncodeStage) -> None:
    draw = random.Random(2)
    valid = 0
    for number in range(MUTANTS):
        value = mutations.mutated_pack(draw, mutations.tokens(draw, number, TOPIC, 0))
        try:
            pack = decode_token_pack(value)
        except BadRecord:
            continue
        valid += 1
        progress = PackInProgress(pack, None)
        encoded = encode(progress.windows)
        for place in range(len(progress.windows)):
            progress.put(place, encoded, place)
        encodings, lost = progress.encodings()
        kept = [] if encodings is None else decode_encoding_pack(encode_pack(encodings)).texts
        assert sorted(map(repr, [*kept, *(text for text, _ in lost)])) == sorted(map(repr, pack.texts))
    assert 0 < valid < MUTANTS


def test_a_mutated_pack_of_encodings_is_refused_or_each_text_has_an_outcome(postprocess: PostprocessStage) -> None:
    draw = random.Random(3)
    valid = 0
    for number in range(MUTANTS):
        value = mutations.mutated_pack(draw, mutations.encodings(draw, number, TOPIC, 0))
        try:
            pack = decode_encoding_pack(value)
        except BadRecord:
            continue
        valid += 1
        with np.errstate(all="ignore"):  # a pack may hold any numbers, and their squares overflow
            outcomes = postprocess(pack)
        assert len(outcomes) == len(pack.texts)
        for outcome in outcomes:
            if isinstance(outcome, Result):
                encode_result(outcome)
    assert 0 < valid < MUTANTS
