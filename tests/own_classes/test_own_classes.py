"""Classes of the user's own in each stage: what they answer, what they are told, and whose text they fail on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.describe import asyncapi
from pipeline.ensemble import Ensemble, Refused
from pipeline.errors import UserError, WorkerFailure
from pipeline.settings import EnsembleSettings, load_ensemble
from schemas.results import Entity, Result
from tests.engines.conftest import TINY_CONFIG
from tests.pipeline.conftest import Topics, running

OWN = "tests.own_classes.own_ones"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of which there is no more than its config."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY_CONFIG | {"vocab_size": 5000}))
    return folder


def settings_of(folder: Path, *, task: str = "sentence-embedding", model: Any = None, **changes: Any) -> Any:
    data: dict[str, Any] = {
        "name": "own",
        "models": [{"name": "m", "source": str(folder), "task": task} | (model or {})],
        "tokenizer": {"class": f"{OWN}:Letters"},
        "engine": {"kind": f"{OWN}:Numbers"},
    }
    return EnsembleSettings.model_validate(data | changes)


def answers(settings: EnsembleSettings, *requests: Any) -> list[Any]:
    with Ensemble(settings) as ensemble:
        return [
            f"{each.reason}: {each.error}" if isinstance(each, Refused) else each.outputs["m"]
            for each in ensemble.predict(requests)
        ]


def test_each_failure_is_one_dead_letter(folder: Path) -> None:
    """Of the tokenizer, the engine and the task: neighbours are answered, and messages say what failed."""
    found = answers(
        settings_of(folder, task=f"{OWN}:Count", model={"pooling": "cls"}), "aa", "a!", "b#", "c%", "ab", "", "d&"
    )
    assert found[0] == found[4] == found[5] == {"count": 101.0}
    assert found[1].startswith("stage_failed: ValueError: no '!' please (own_ones.py:")
    assert found[2].startswith("stage_failed: RuntimeError: no '#' please (own_ones.py:")
    assert found[3] == (
        f"engine_failed: {OWN}:Numbers answers 'last_hidden_state' of shape (1, 1): (1, 16, 24) is wanted"
    )
    assert found[6] == "bad_request: no ampersands"


def test_what_ends_a_process_fails_like_anything_else(folder: Path) -> None:
    """Of a text, of the tokenizer, the engine or the task."""
    changes = {"tokenizer": {"class": f"{OWN}:ExitingLetters"}, "engine": {"kind": f"{OWN}:ExitingNumbers"}}
    model = {"pooling": "mean", "normalize": False}
    found = answers(
        settings_of(folder, task=f"{OWN}:ExitingCount", model=model, **changes), "a", "a?", "^b", "zzzzz", "a"
    )
    assert found[0] == found[4] == {"count": 433.33}
    said = "stage_failed: OwnExit: SystemExit(%s), which would end the worker (own_ones.py:"
    for answer, code in zip(found[1:4], ("\"no '?' please\"", "3", "4"), strict=True):
        assert answer.startswith(said % code)


def test_a_tokenizer_that_ends_the_process_over_a_token(folder: Path) -> None:
    labels = {"vocab_size": 5000, "id2label": {place: f"L{place}" for place in range(24)}}
    (folder / "config.json").write_text(json.dumps(TINY_CONFIG | labels))
    changes = {"task": "token-classification", "tokenizer": {"class": f"{OWN}:ExitingLetters"}}
    with pytest.raises(WorkerFailure, match="fails whatever the text: OwnExit: SystemExit, which would end the worker"):
        answers(settings_of(folder, **changes), "x")


def test_outputs_that_are_no_json(folder: Path) -> None:
    settings = settings_of(folder, task=f"{OWN}:Count", model={"pooling": "mean", "normalize": False})
    found = answers(settings, "a", "z" * 10, "z" * 29, "a")
    assert found[0] == found[3] == {"count": 433.33}
    assert found[1].startswith(f"stage_failed: TypeError: {OWN}:Count answers what is no JSON (Encoding objects of")
    assert found[2].startswith("stage_failed: ArithmeticError: too much (own_ones.py:")


def test_numbers_that_json_has_not(folder: Path) -> None:
    """And null is one that it has."""
    settings = settings_of(folder, task=f"{OWN}:Odds", model={"pooling": "mean", "normalize": False})
    found = answers(settings, "a", "b", "c", "d")
    assert (found[0], found[3]) == ({"odds": [1.5], "null": None}, {"odds": [None], "null": None})
    for answer in found[1:3]:
        assert answer.startswith(
            f"stage_failed: TypeError: {OWN}:Odds answers what is no JSON (a number is not finite)"
        )


def test_windows_and_tokens(folder: Path) -> None:
    """A long text in windows, each of its tokens once, with the tokenizer's own characters."""
    text = "a b " * 40
    settings = settings_of(folder, task=f"{OWN}:Spans", tokenizer={"class": f"{OWN}:Letters", "stride": 5})
    [found] = answers(settings, text)
    places = [[place, place + 1] for place, letter in enumerate(text) if letter != " "]
    assert found == {"spans": [[0, 0], *places, [0, 0]], "text": None, "numbers": 24}


def test_a_token_classification_reads_an_own_tokenizer(folder: Path) -> None:
    (folder / "config.json").write_text(
        json.dumps(TINY_CONFIG | {"vocab_size": 5000, "id2label": {place: f"L{place}" for place in range(24)}})
    )
    [found] = answers(settings_of(folder, task="token-classification"), "x y")
    assert [(each.word, each.start, each.end) for each in found if isinstance(each, Entity)] == [
        ("x", 0, 1),
        ("y", 2, 3),
    ]


def test_an_engine_of_packed_rows(folder: Path) -> None:
    found = answers(
        settings_of(folder, task=f"{OWN}:Count", engine={"kind": f"{OWN}:Rows"}), "abc", "abcde", {"text": "a"}
    )
    assert found == [
        {"count": 5.0},
        f"engine_failed: {OWN}:Rows answers no 'm'",
        {"count": 3.0},
    ]


def test_a_bare_tokenizer(folder: Path) -> None:
    settings = settings_of(folder, tokenizer={"class": f"{OWN}:Bare", "stride": 2})
    found = answers(settings, "one two", {"text": "a", "text_pair": "b"}, " ")
    assert np.allclose(found[0], 1.5)
    assert found[1] == "bad_request: text_pair: this ensemble's tokenizer reads no pairs"
    assert found[2] == "bad_request: the tokenizer makes no token of the text"
    with Ensemble(settings) as ensemble:
        [result] = ensemble.predict(["w " * 20])
    assert isinstance(result, Result)
    assert (result.chunks, result.tokens) == (3, 8 + 8 + 8)


def test_a_task_of_pairs(small_model: Path) -> None:
    settings = settings_of(small_model, task=f"{OWN}:Best", tokenizer={}, engine={"kind": "numpy"})
    document = asyncapi(settings)
    payload = document["components"]["messages"]["request"]["payload"]
    assert {"query", "passages"} <= payload["properties"].keys()
    found = answers(settings, {"query": "a", "passages": ["b", "c"], "parameters": {"top_k": 1}})
    assert found[0] in (0, 1)
    assert (
        document["components"]["messages"]["result"]["payload"]["properties"]["outputs"]["anyOf"][0]["properties"]["m"]
        == {}
    )


@pytest.mark.broker
@pytest.mark.parametrize("fused", [False, True], ids=["spread", "fused"])
def test_over_topics(settings: Callable[..., EnsembleSettings], folder: Path, fused: bool) -> None:
    changes = {
        "models": [{"name": "m", "source": str(folder), "task": f"{OWN}:Count", "pooling": "cls"}],
        "tokenizer": {"class": f"{OWN}:Letters", "stride": 4},
        "engine": {"kind": f"{OWN}:Numbers"},
    }
    made = settings(partitions=1, **changes)
    topics = Topics(made)
    topics.send(*(json.dumps({"text": text}).encode() for text in ("aa", "a!", "b#", "ab")))
    with running(made, fused=fused):
        results = [json.loads(each.value() or b"") for each in topics.read(made.topic_names.results, 2)]
        letters = topics.read(made.topic_names.dead_letters, 2)
    assert [each["outputs"]["m"] for each in results] == [{"count": 101.0}] * 2
    assert {json.loads(each.value() or b"")["text"] for each in letters} == {"a!", "b#"}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"tokenizer": {"class": "nowhere:X"}}, "tokenizer.class: no module nowhere on Python's path or in "),
        ({"tokenizer": {"class": f"{OWN}:X"}}, "own_ones.py has no X: correct the name"),
        ({"tokenizer": {"class": f"{OWN}:WIDTH"}}, "own_ones.py is of type int, and no class: name a class"),
        ({"tokenizer": {"class": f"{OWN}:NoMethod"}}, f"tokenizer.class: {OWN}:NoMethod has no __call__(texts)"),
        ({"tokenizer": {"class": f"{OWN}:Raises"}}, f"tokenizer.class: {OWN}:Raises can't be made: OSError: no such"),
        (
            {"tokenizer": {"class": f"{OWN}:Bare", "options": {"a": 1}}},
            f"tokenizer.class: {OWN}:Bare can't be made with a: TypeError: Bare() takes no arguments",
        ),
        ({"tokenizer": {"class": f"{OWN}:Halves"}}, "Halves answers float64 (1,) of a text: whole numbers are wanted"),
        (
            {"tokenizer": {"class": f"{OWN}:Exits"}},
            "Exits can't be made: OwnExit: SystemExit(2), which would end the worker (own_ones.py:",
        ),
        ({"tokenizer": {"class": f"{OWN}:ExitingTokens"}}, "fails on the text 'a': OwnExit: SystemExit(1), which"),
        ({"engine": {"kind": f"{OWN}:Exits"}}, f"engine.kind: {OWN}:Exits can't be made: OwnExit: SystemExit(2)"),
        (
            {"engine": {"kind": f"{OWN}:ExitingRows"}},
            "fails on two texts of token 0: OwnExit: SystemExit(1)",
        ),
        ({"tokenizer": {"class": f"{OWN}:Few"}}, "Few answers 0 lists: one list of token ids a text is wanted"),
        ({"tokenizer": {"class": f"{OWN}:NoText"}}, "NoText.build_inputs_with_special_tokens: token ids in"),
        (
            {"tokenizer": {"class": f"{OWN}:Bare"}, "task": "token-classification"},
            f"tokenizer.class: {OWN}:Bare has no offsets(), which token-classification needs",
        ),
        ({"engine": {"kind": f"{OWN}:NoMethod"}}, "engine.kind: "),
        ({"engine": {"kind": f"{OWN}:Words"}}, f"{OWN}:Words answers str as last_hidden_state: an array of numbers"),
        ({"engine": {"kind": f"{OWN}:Narrow"}}, "output 'output' is 5 wide, and config.json says hidden_size 24"),
        ({"engine": {"kind": f"{OWN}:Unnamed"}}, f"{OWN}:Unnamed answers a, b, and none by the name m"),
        ({"engine": {"kind": f"{OWN}:OtherRows"}}, f"{OWN}:OtherRows: widths has no m, as the file calls it"),
        ({"task": f"{OWN}:NoMethod"}, f"models[0].task: {OWN}:NoMethod has no __call__(rows)"),
        ({"task": f"{OWN}:ReadsWhat"}, f"models[0].task: {OWN}:ReadsWhat reads 'minds'; allowed: text-classification"),
        ({"task": f"{OWN}:Asks"}, f"models[0].task: {OWN}:Asks parameters is ('topk',); allowed: a tuple of top_k"),
        ({"task": f"{OWN}:Count", "model": {"options": {"a": 1}}}, f"{OWN}:Count can't be made with a: TypeError"),
        ({"task": f"{OWN}:Count", "model": {"head": "h"}}, "models[0].head: has no effect on "),
        ({"task": f"{OWN}:Spans", "model": {"pooling": "cls"}}, "models[0].pooling: has no effect on "),
    ],
)
def test_a_mistake_is_one_line(folder: Path, changes: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as caught:
        Ensemble(settings_of(folder, **changes))
    [found] = caught.value.lines
    assert line in found
    assert "\n" not in found


def test_labels_that_a_model_has_not(folder: Path) -> None:
    """Are no labels to be ignored."""
    model = {"ignore_labels": ["NO", "X"]}
    with pytest.raises(UserError, match=r"models\[0\].ignore_labels: 'X' is no label of the model; allowed: NO, "):
        Ensemble(settings_of(folder, task="token-classification", model=model))


def test_a_schema_that_is_none(folder: Path) -> None:
    with pytest.raises(UserError, match=r"BadSchema json_schema is no JSON Schema \(it is no dict\): make it a dict"):
        asyncapi(settings_of(folder, task=f"{OWN}:BadSchema"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such\n", "ModuleNotFoundError: No module named 'no_such' (beside.py:1): install what it needs"),
        ("def (:\n", "SyntaxError: invalid syntax (beside.py, line 1): correct it"),
        ("raise SystemExit\n", "SystemExit (beside.py:1): correct it"),
    ],
)
def test_modules_beside_the_ensemble_file(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    (folder / "beside.py").write_text(text)
    models = [{"name": "m", "source": ".", "task": "beside:Task"}]
    data = {"name": "e", "models": models, "tokenizer": {"class": f"{OWN}:Letters"}}
    (folder / "e.yaml").write_text(json.dumps(data))
    with pytest.raises(UserError) as caught:
        Ensemble(load_ensemble(folder / "e.yaml"))
    [line] = caught.value.lines
    assert line.endswith(f"e.yaml:1: models[0].task: module beside can't be imported: {said}")


def test_secrets_of_a_class_are_not_logged(folder: Path) -> None:
    kind = {"kind": f"{OWN}:Numbers", "options": {"api_token": "hunter2", "url": "http://me"}}
    lines = settings_of(folder, engine=kind).log_lines()
    assert "engine.options.api_token = ***" in lines
    assert "engine.options.url = http://me" in lines
