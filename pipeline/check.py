"""`penstock check`: an ensemble from file to prediction, a line for each check."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import msgspec

from pipeline.assembly import open_encode_stage, open_postprocess_stage, open_tokenize_stage, open_tokenizer
from pipeline.class_paths import ClassPath
from pipeline.ensemble import Ensemble, Refused
from pipeline.errors import UserError, WorkerFailure
from pipeline.exit_codes import EXIT_USER_ERROR
from pipeline.http import host_refusal
from pipeline.model_tasks import known_parameters, model_tasks, require_speech
from pipeline.outputs import results_alone
from pipeline.reach import reach_broker, require_transactions
from pipeline.settings import EnsembleSettings, load_ensemble
from pipeline.topics import all_topics, broker_metadata, require_topics
from schemas.requests import RequestKind
from schemas.results import Answer, Entity, EntityGroup, Filled, Label, Output, Ranked, ZeroShot

# Of an output whose shape nobody knows.
_MOST_CHARACTERS = 80

_SAMPLE = "The quick brown fox jumps over the lazy dog."
_SAMPLES: dict[RequestKind, str | dict[str, str | list[str]]] = {
    "text": _SAMPLE,
    "ranking": {"query": "Who jumps?", "passages": [_SAMPLE]},
    "zero-shot": {"sequence": _SAMPLE, "candidate_labels": ["animals", "money"]},
    "question": {"question": "Who jumps?", "context": _SAMPLE},
}


def check(file: Path, bootstrap: str | None, *, fused: bool = False) -> int:
    """Print `ok` or `FAILED` for each check; the exit code. One that fails does not stop the others, except the file:
    without it there is nothing to check."""
    with results_alone() as results:
        return _check(file, bootstrap, fused=fused, results=results)


def _check(file: Path, bootstrap: str | None, *, fused: bool, results: TextIO) -> int:
    found: list[EnsembleSettings] = []

    def read_file() -> str:
        found.append(load_ensemble(file, bootstrap=bootstrap, environ=os.environ))
        return f"{file}, {_counted(len(found[0].models), 'model')}"

    succeeds = _Checks(results)
    if not succeeds("file", read_file):
        return EXIT_USER_ERROR
    settings = found[0]
    fused = settings.runs_fused(fused)
    loaded: list[Ensemble] = []

    def load_models() -> str:
        if tokenizer_loads:
            loaded.append(Ensemble(settings))
        else:
            _load_without_tokenizer(settings)
        engine = settings.engine
        instances = _counted(engine.instance_count, "instance")
        if engine.on_gpu:
            gpus = _counted(len(engine.devices), "GPU")
            # A file of the user's has the numbers that it has.
            numbers = f" in {engine.number_type}" if any(model.is_checkpoint for model in settings.models) else ""
            return f"{engine.kind}{numbers}, {instances} on each of {gpus}"
        return f"{engine.kind}, {instances} of {_counted(engine.threads, 'thread')}"

    host_is_ours = succeeds(f"http {settings.http.host}", lambda: _http(settings))
    broker_answers = succeeds(f"broker {settings.kafka.bootstrap_servers}", lambda: _broker(settings))
    topics_fit = broker_answers and succeeds("topics", lambda: _topics(settings, fused=fused))
    has_speech = settings.speech is None or succeeds("speech", lambda: _speech(settings))
    tokenizer_loads = succeeds(
        f"tokenizer {settings.tokenizer.class_ or settings.tokenizer_source}", lambda: _tokenizer(settings)
    )
    models_load = succeeds("models " + ", ".join(model.name for model in settings.models), load_models)
    answers = models_load and tokenizer_loads and succeeds("one text", lambda: _one_text(loaded[0]))
    return 0 if host_is_ours and topics_fit and has_speech and answers else EXIT_USER_ERROR


class _Checks:
    """Runs checks and prints what they come to. What was told of one isn't told again of the next."""

    def __init__(self, results: TextIO) -> None:
        self._results = results
        self._told: set[str] = set()

    def __call__(self, name: str, run: Callable[[], str]) -> bool:
        """Whether it succeeds."""
        try:
            detail = run()
        except (UserError, WorkerFailure) as err:
            for line in err.lines if isinstance(err, UserError) else [str(err)]:
                if line not in self._told:
                    print(f"FAILED  {name}: {line}", file=self._results, flush=True)
                self._told.add(line)
            return False
        print(f"ok      {name}: {detail}", file=self._results, flush=True)
        return True


def _http(settings: EnsembleSettings) -> str:
    if refusal := host_refusal(settings.http.host):
        raise settings.mistake("http", "host", message=refusal)
    return "an address of this machine"


def _broker(settings: EnsembleSettings) -> str:
    admin = reach_broker(settings.kafka)
    require_transactions(settings, admin)
    metadata = broker_metadata(admin)
    return f"{_counted(len(metadata.brokers), 'broker')}, {_counted(len(metadata.topics), 'topic')}"


def _topics(settings: EnsembleSettings, *, fused: bool) -> str:
    wanted = all_topics(settings, fused=fused)
    require_topics(reach_broker(settings.kafka), wanted)
    return f"{len(wanted)} of {_counted(settings.topics.partitions, 'partition')}"


def _speech(settings: EnsembleSettings) -> str:
    require_speech(settings)
    names = settings.speech_topic_names
    return f"{settings.speech_or_default.feed}, {names.speech} to {names.transcripts}"


def _tokenizer(settings: EnsembleSettings) -> str:
    known = _tasks_are_known(settings)
    tokenizer = open_tokenize_stage(settings).tokenizer if known else open_tokenizer(settings)
    said = f"windows of {tokenizer.window_tokens} tokens, long texts: {settings.tokenizer.long_texts}"
    return f"{said}; {tokenizer.slow} is slow: in Python, a text at a time" if tokenizer.slow else said


def _tasks_are_known(settings: EnsembleSettings) -> bool:
    """The tokenizer is chosen by them. What is wrong with them, the line of the models tells."""
    try:
        known_parameters(settings, model_tasks(settings))
    except UserError:
        return False
    return True


def _load_without_tokenizer(settings: EnsembleSettings) -> None:
    """What else can be wrong with the models."""
    open_postprocess_stage(settings)
    open_encode_stage(settings).close()


def _one_text(ensemble: Ensemble) -> str:
    with ensemble:
        sample = _SAMPLES[ensemble.request_kind]
        if ensemble.mask_word is not None:
            sample = _SAMPLE.replace("fox", ensemble.mask_word)
        [answer] = ensemble.predict([sample])
    if isinstance(answer, Refused):
        raise UserError(f"{answer.reason}: {answer.error}")
    own = {model.name for model in ensemble.settings.models if isinstance(model.task, ClassPath)}
    outputs = ", ".join(
        f"{name} {_cut(output) if name in own else _shape(output)}" for name, output in answer.outputs.items()
    )
    return f"{answer.tokens} tokens; {outputs}"


def _cut(output: object) -> str:
    """What a class of the user's own answers, as the result has it."""
    text = msgspec.json.encode(output).decode()
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 3] + "..."


def _shape(output: Output) -> str:
    match output:
        case ZeroShot(_, [label, *_], [score, *_]):
            return f"{label} {score:.3f}"
        case Answer(score, _, _, answer) | [Answer(score, _, _, answer), *_]:
            return f"{answer!r} {score:.3f}"
        case [Label(label, score), *_]:
            return f"{label} {score:.3f}"
        case [Entity() | EntityGroup(), *_]:
            return _counted(len(output), "entity", "entities")
        case [Ranked(index, score), *_]:
            return f"passage {index} {score:.3f}"
        case [Filled() as filled, *_]:
            return f"{filled.token_str} {filled.score:.3f}"
        case [[*numbers], *_]:
            return f"{len(output)} x {len(numbers)} floats"
        case [*numbers]:
            return f"{len(numbers)} floats"
    return "nothing"


def _counted(count: int, noun: str, nouns: str | None = None) -> str:
    return f"{count} {noun if count == 1 else nouns or noun + 's'}"
