"""`penstock check`: a line for each check, and what each one says when it fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.broker import BrokerProcess
from tests.cli.conftest import Penstock, WriteEnsemble

pytestmark = pytest.mark.broker


def states(out: str) -> list[tuple[str, str]]:
    return [(line.split()[0], line.split()[1].rstrip(":")) for line in out.splitlines()]


def test_all_is_well(penstock: Penstock, ensemble: WriteEnsemble, kafka: BrokerProcess, small_model: Path) -> None:
    models = [
        {"name": "vector", "source": str(small_model), "task": "sentence-embedding"},
        {"name": "verdict", "source": str(small_model)},
    ]
    file = ensemble(bootstrap=kafka.bootstrap, models=models, engine={"instances": 2})
    penstock("topics", file, "--create")
    found = penstock("check", file)
    assert (found.code, found.err) == (0, "")
    lines = found.out.splitlines()
    assert lines[0] == f"ok      file: {file}, 2 models"
    assert lines[1] == "ok      http 127.0.0.1: an address of this machine"
    assert lines[2].startswith(f"ok      broker {kafka.bootstrap}: 1 broker, ")
    assert lines[3] == "ok      topics: 5 of 2 partitions"
    assert lines[4] == f"ok      tokenizer {small_model}: windows of 32 tokens, long texts: stride"
    assert lines[5] == "ok      models vector, verdict: onnxruntime, 2 instances of 1 thread"
    assert lines[6].startswith("ok      one text: 12 tokens; vector 24 floats, verdict ")


def test_speech_is_checked_where_the_file_speaks_of_it(
    penstock: Penstock, ensemble: WriteEnsemble, kafka: BrokerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its topics are counted with the others."""
    file = ensemble(bootstrap=kafka.bootstrap, speech={}, name="calls")
    penstock("topics", file, "--create")
    found = penstock("check", file)
    assert (found.code, found.out.splitlines()[3:5]) == (
        0,
        ["ok      topics: 8 of 2 partitions", "ok      speech: penstock, calls.speech to calls.transcripts"],
    )


def test_fused_stages_need_three_topics(penstock: Penstock, ensemble: WriteEnsemble, kafka: BrokerProcess) -> None:
    file = ensemble(bootstrap=kafka.bootstrap)
    penstock("topics", file, "--create", "--fused")
    found = penstock("check", file, "--fused")
    assert (found.code, found.out.splitlines()[3]) == (0, "ok      topics: 3 of 2 partitions")
    found = penstock("check", file)
    assert found.code == 2
    name = file.read_text().partition('"name": "')[2].partition('"')[0]
    assert found.out.splitlines()[3:6] == [
        f"FAILED  topics: {name}.tokens: doesn't exist",
        f"FAILED  topics: {name}.encodings: doesn't exist",
        "FAILED  topics: make what is missing with: penstock topics FILE --create",
    ]
    assert states(found.out)[6:] == [("ok", "tokenizer"), ("ok", "models"), ("ok", "one")]


def test_a_file_with_mistakes_ends_the_checks(penstock: Penstock, ensemble: WriteEnsemble) -> None:
    file = ensemble(engine={"kind": "abacus"}, http={"prot": 1})
    found = penstock("check", file)
    assert found.code == 2
    assert found.out.splitlines() == [
        f"FAILED  file: {file}:1: engine.kind: 'abacus' is not allowed; "
        "allowed: onnxruntime, openvino, numpy, tensorrt, module:Class",
        f"FAILED  file: {file}:1: http.prot: no such option; did you mean port?",
    ]


@pytest.mark.usefixtures("broker_looked_for_briefly")
def test_no_broker(penstock: Penstock, ensemble: WriteEnsemble) -> None:
    found = penstock("check", ensemble())
    assert found.code == 2
    assert states(found.out) == [
        ("ok", "file"),
        ("ok", "http"),
        ("FAILED", "broker"),
        ("ok", "tokenizer"),
        ("ok", "models"),
        ("ok", "one"),
    ]


def test_no_model(penstock: Penstock, ensemble: WriteEnsemble, kafka: BrokerProcess) -> None:
    file = ensemble(bootstrap=kafka.bootstrap, models=[{"name": "m", "source": "no-such-model"}])
    penstock("topics", file, "--create")
    found = penstock("check", file)
    assert found.code == 2
    # Tokenizer and models both lack it; it is told once.
    assert states(found.out)[3:] == [("ok", "topics"), ("FAILED", "tokenizer")]
    assert f": {file}:1: models[0].source: model 'no-such-model': neither a folder" in found.out.splitlines()[4]


@pytest.mark.usefixtures("broker_looked_for_briefly")
def test_a_tokenizer_that_fails_hides_no_mistake_in_a_model(
    penstock: Penstock, ensemble: WriteEnsemble, small_model: Path
) -> None:
    models = [{"name": "mood", "source": str(small_model), "head": "none.safetensors"}]
    file = ensemble(tokenizer={"source": "no-such-tokenizer"}, models=models)
    found = penstock("check", file)
    assert found.code == 2
    tokenizer, head = found.out.splitlines()[3:]
    assert f": {file}:1: tokenizer.source: model 'no-such-tokenizer': neither a folder" in tokenizer
    assert head.startswith(
        f"FAILED  models mood: {file}:1: models[0].head: head {file.parent}/none.safetensors: no such"
    )


@pytest.mark.usefixtures("broker_looked_for_briefly")
@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("nowhere:Task", "no module nowhere on Python's path or in "),
        ("tests.own_classes.own_ones:Asks", "tests.own_classes.own_ones:Asks parameters is ('topk',); allowed: "),
    ],
    ids=["missing", "wrong"],
)
def test_a_task_that_fails_is_a_models(
    penstock: Penstock, ensemble: WriteEnsemble, small_model: Path, task: str, says: str
) -> None:
    file = ensemble(models=[{"name": "mood", "source": str(small_model), "task": task}])
    found = penstock("check", file)
    assert found.code == 2
    tokenizer, models = found.out.splitlines()[3:]
    assert tokenizer == f"ok      tokenizer {small_model}: windows of 32 tokens, long texts: stride"
    assert models.startswith(f"FAILED  models mood: {file}:1: models[0].task: {says}")


@pytest.mark.usefixtures("broker_looked_for_briefly")
def test_an_http_host_that_is_not_this_machine(penstock: Penstock, ensemble: WriteEnsemble) -> None:
    file = ensemble(http={"host": "192.0.2.1"})
    found = penstock("check", file)
    assert found.code == 2
    line = found.out.splitlines()[1]
    assert line.startswith(f"FAILED  http 192.0.2.1: {file}:1: http.host: can't listen on 192.0.2.1: ")


@pytest.mark.usefixtures("broker_looked_for_briefly")
def test_a_tokenizer_that_does_not_fit(penstock: Penstock, ensemble: WriteEnsemble) -> None:
    file = ensemble(tokenizer={"stride": 30})
    found = penstock("check", file)
    assert found.code == 2
    line = next(line for line in found.out.splitlines() if " tokenizer " in line)
    assert line.startswith("FAILED")
    assert f"{file}:1: tokenizer.stride: 30 leaves no room in windows of 32 tokens" in line
