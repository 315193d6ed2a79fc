"""The ensemble from Python: one answer a text, in the texts' order, without Kafka."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.errors import EngineError
from pipeline.ensemble import BLOCK_TEXTS, Ensemble, Refused
from pipeline.errors import UserError, WorkerFailure
from pipeline.mistakes import SettingsError
from pipeline.settings import EnsembleSettings
from schemas.results import Label, Result


def make(small_model: Path, **changes: Any) -> Ensemble:
    data: dict[str, Any] = {
        "name": "e",
        "models": [
            {"name": "vector", "source": str(small_model), "task": "sentence-embedding"},
            {"name": "verdict", "source": str(small_model), "task": "text-classification", "top_k": None},
        ],
        "engine": {"kind": "numpy", "instances": 2},
    }
    return Ensemble(EnsembleSettings.model_validate(data | changes))


@pytest.fixture(scope="module")
def ensemble(small_model: Path) -> Iterator[Ensemble]:
    with make(small_model) as made:
        yield made


def vector(answer: Result | Refused) -> Any:
    assert isinstance(answer, Result), answer
    return answer.outputs["vector"]


def test_a_result_has_each_models_output(ensemble: Ensemble) -> None:
    [answer] = ensemble.predict(["A text."])
    assert isinstance(answer, Result)
    assert (answer.id, answer.tokens, answer.chunks, answer.truncated) == ("predict/0/0", 5, 1, False)
    assert list(answer.outputs) == ["vector", "verdict"]
    assert len(answer.outputs["vector"]) == 24
    labels = answer.outputs["verdict"]
    assert all(isinstance(label, Label) for label in labels)
    assert {label.label for label in labels if isinstance(label, Label)} == {"NO", "MAYBE", "YES"}


def test_answers_come_in_the_order_of_the_texts(ensemble: Ensemble) -> None:
    # Of all lengths, so that batches mix them, and of more than one block.
    texts = [f"{number} " + "word " * (number * 7 % 40) for number in range(BLOCK_TEXTS + 100)]
    answers = list(ensemble.predict(texts))
    assert [answer.source.offset for answer in answers] == list(range(len(texts)))
    for number in (0, 1, 39, BLOCK_TEXTS - 1, BLOCK_TEXTS, len(texts) - 1):
        [alone] = ensemble.predict([texts[number]])
        assert vector(answers[number]) == pytest.approx(vector(alone), abs=1e-5)


def test_an_endless_generator_is_read_only_as_far_as_answers_are_taken(ensemble: Ensemble) -> None:
    read = itertools.count()
    answers = ensemble.predict(f"text {number}" for number in read)
    assert next(read) == 0, "nothing is read before the first answer is wanted"
    first = list(itertools.islice(answers, BLOCK_TEXTS))
    assert len(first) == BLOCK_TEXTS
    assert next(read) == BLOCK_TEXTS + 1


def test_no_texts_give_no_answers(ensemble: Ensemble) -> None:
    assert list(ensemble.predict([])) == []


def test_a_refused_text_stands_in_its_place_and_its_neighbours_are_answered(small_model: Path) -> None:
    with make(small_model, tokenizer={"long_texts": "reject"}, requests={"max_text_bytes": 1000}) as ensemble:
        answers = list(ensemble.predict(["a", "word " * 100, "", "x" * 2000, "half a pair: \ud83d", "b"]))
    assert [getattr(answer, "reason", None) for answer in answers] == [
        None,
        "text_too_long",
        None,
        "text_too_large",
        "not_utf8",
        None,
    ]
    refused = answers[1]
    assert isinstance(refused, Refused)
    assert (refused.id, refused.source.offset) == ("predict/0/1", 1)
    assert refused.error


@pytest.mark.parametrize("format", ["json", "text"])
def test_how_requests_are_written_makes_no_difference_here(small_model: Path, format: str, ensemble: Ensemble) -> None:
    text = '{"text": "a"} and "quotes" \\ \n \x00'
    with make(small_model, requests={"format": format}) as other:
        [answer] = other.predict([text])
    [same] = ensemble.predict([text])
    assert vector(answer) == pytest.approx(vector(same), abs=1e-6)


def test_a_text_instead_of_texts_is_refused_at_once(ensemble: Ensemble) -> None:
    with pytest.raises(TypeError, match="predict takes texts, such as a list of them, and not one text"):
        ensemble.predict("A text.")


@pytest.mark.parametrize("wrong", [b"bytes", None, 7, float("nan")], ids=repr)
def test_what_is_no_string_is_refused_and_not_guessed_at(ensemble: Ensemble, wrong: Any) -> None:
    with pytest.raises(TypeError, match=f"one is of type {type(wrong).__name__}"):
        list(ensemble.predict(["a", wrong]))


def test_strings_of_numpy_are_texts(ensemble: Ensemble) -> None:
    [one, two] = ensemble.predict(np.array(["A text.", "Another."]))
    assert [vector(one), vector(two)] == [vector(answer) for answer in ensemble.predict(["A text.", "Another."])]


def test_threads_may_share_it(ensemble: Ensemble) -> None:
    texts = [f"text {number}" for number in range(60)]
    alone = [vector(answer) for answer in ensemble.predict(texts)]
    with ThreadPoolExecutor(4) as threads:
        for answers in threads.map(lambda _: list(ensemble.predict(texts)), range(8)):
            for answer, expected in zip(answers, alone, strict=True):
                assert vector(answer) == pytest.approx(expected, abs=1e-5)


def test_closed_twice_and_asked_afterwards(small_model: Path) -> None:
    ensemble = make(small_model)
    begun = ensemble.predict(str(number) for number in range(BLOCK_TEXTS + 1))
    next(begun)
    ensemble.close()
    ensemble.close()
    with pytest.raises(ValueError, match="the ensemble is closed"):
        list(ensemble.predict(["a"]))
    # What was computed before is given; what wasn't is told.
    assert len(list(itertools.islice(begun, BLOCK_TEXTS - 1))) == BLOCK_TEXTS - 1
    with pytest.raises(ValueError, match="the ensemble is closed"):
        next(begun)


def test_an_engine_at_fault_is_told_and_no_text_is_blamed(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with make(small_model) as ensemble:

        def fail(*_: object) -> None:
            raise EngineError("out of memory")

        for engine in ensemble._encode._engines:
            monkeypatch.setattr(type(engine), "run", fail)
        with pytest.raises(WorkerFailure, match=r"the engine can't compute: .*out of memory"):
            list(ensemble.predict(["a", "b"]))


def test_an_ensemble_of_a_file_and_one_of_a_model(small_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(json.dumps({"name": "e", "models": [{"name": "m", "source": str(small_model)}]}))
    with Ensemble.load(str(file)) as of_file, Ensemble.of_model(str(small_model)) as of_model:
        [one], [two] = of_file.predict(["a"]), of_model.predict(["a"])
    assert isinstance(one, Result)
    assert isinstance(two, Result)
    assert one.outputs["m"] == two.outputs[small_model.name]
    with Ensemble.of_model(str(small_model), "sentence-embedding") as of_model:
        [answer] = of_model.predict(["a"])
    assert len(vector_of_one(answer)) == 24


def vector_of_one(answer: Result | Refused) -> Any:
    assert isinstance(answer, Result)
    [output] = answer.outputs.values()
    return output


def test_what_can_not_be_loaded_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a folder"):
        Ensemble.of_model("no-such-model")
    with pytest.raises(SettingsError, match="can't be read"):
        Ensemble.load(tmp_path / "none.yaml")
