"""Numbers of tokens over topics: what `predict` answers, also where a pack is written in several records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from pipeline import step_makers
from pipeline.ensemble import Ensemble
from pipeline.settings import EnsembleSettings
from schemas.packs import EncodingPack
from schemas.regrouping import parted
from schemas.results import Result
from tests.pipeline.conftest import Topics, running
from tests.tasks.test_questions_against_transformers import unzipped, write_question_model
from tests.tasks.test_tokens_against_transformers import stored, write_model

pytestmark = pytest.mark.broker


@pytest.mark.parametrize("fused", [False, True], ids=["spread", "fused"])
def test_topics_and_predict_answer_the_same(
    settings: Callable[..., EnsembleSettings], tmp_path: Path, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[int] = []

    def counted(pack: EncodingPack, *, most_bytes: int) -> list[EncodingPack]:
        found = parted(pack, most_bytes=min(most_bytes, 50_000))
        parts.append(len(found))
        return found

    monkeypatch.setattr(step_makers, "parted", counted)
    source = str(write_model(tmp_path / "model", "bert"))
    models = [
        {"name": "names", "source": source, "aggregation_strategy": "first"},
        {"name": "states", "source": source, "task": "feature-extraction"},
        {"name": "vector", "source": source, "task": "sentence-embedding"},
    ]
    made = settings(partitions=1, models=models)
    texts = stored("features")
    topics = Topics(made)
    topics.send(*(json.dumps({"text": text}).encode() for text in texts))
    with running(made, fused=fused):
        over_topics = [json.loads(each.value() or b"") for each in topics.read(made.topic_names.results, len(texts))]
    with Ensemble(made) as ensemble:
        alone = [*ensemble.predict(texts)]
    for there, here in zip(over_topics, alone, strict=True):
        assert isinstance(here, Result)
        wanted = msgspec.to_builtins(here.outputs)
        assert [*there["outputs"]] == ["names", "states", "vector"]
        assert [each | {"score": 0} for each in there["outputs"]["names"]] == [
            each | {"score": 0} for each in wanted["names"]
        ]
        assert len(there["outputs"]["states"]) == len(wanted["states"])
        for ours, theirs in zip(there["outputs"]["states"], wanted["states"], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)
    if not fused:
        assert max(parts) > 1


def test_questions_over_topics(settings: Callable[..., EnsembleSettings], tmp_path: Path) -> None:
    """Windows of one context travel together, its parameters with them."""
    source = str(write_question_model(tmp_path / "model", "distilbert"))
    made = settings(partitions=1, models=[{"name": "it", "source": source, "top_k": 2}])
    requests = unzipped("requests")["distilbert"][:12]
    topics = Topics(made)
    topics.send(*(json.dumps(each).encode() for each in requests), b'{"question": "", "context": "a"}')
    with running(made):
        over_topics = [json.loads(each.value() or b"") for each in topics.read(made.topic_names.results, len(requests))]
        [refused] = topics.read(made.topic_names.dead_letters, 1)
    with Ensemble(made) as ensemble:
        alone = [*ensemble.predict(requests)]
    for there, here in zip(over_topics, alone, strict=True):
        assert isinstance(here, Result)
        ours, theirs = (
            each if isinstance(each, list) else [each] for each in (there["outputs"]["it"], here.outputs["it"])
        )
        wanted = [msgspec.to_builtins(each) for each in theirs]
        assert [each | {"score": 0} for each in ours] == [each | {"score": 0} for each in wanted]
    assert max(each["chunks"] for each in over_topics) > 1
    assert json.loads(refused.value() or b"")["question"] == ""
