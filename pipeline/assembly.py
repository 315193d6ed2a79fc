"""From an ensemble's settings to its stages: which folder, which limit, which head, which engine.

Each stage is opened on its own, so that a worker loads what its stage needs: only encode reads weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint import Checkpoint, CheckpointConfig, Pooling, find_checkpoint, load_checkpoint, read_config
from engines.engine import open_engine, open_source
from engines.errors import (
    CheckpointError,
    DeviceUnavailable,
    EngineError,
    EngineLost,
    EngineUnavailable,
    ParityError,
    PlanError,
    PlanMissing,
    SamplesError,
)
from engines.heads import Head, PooledOutput, check_outputs, classification_head, load_head
from engines.rows import Engine
from pipeline.errors import WorkerFailure
from pipeline.model_settings import ModelSettings, Task
from pipeline.plans.samples import Windows, sample_windows
from pipeline.settings import EnsembleSettings
from schemas.parameters import ScoreFunction
from schemas.requests import request_kind
from stages.classification import TextClassification
from stages.embeddings import SentenceEmbedding
from stages.encode import EncodeStage
from stages.errors import TokenizerError
from stages.pair_tasks import TextRanking, ZeroShotClassification
from stages.postprocess import PostprocessStage
from stages.tasks import PairsTask
from stages.tasks import Task as TaskStage
from stages.tokenize import TextTokenizer, TokenizeStage

if TYPE_CHECKING:
    from pipeline.user_models import Answer


def open_tokenizer(settings: EnsembleSettings) -> TextTokenizer:
    """The tokenizer with its policy for long texts. Raises UserError."""
    window = max_length(settings)
    source = ("tokenizer", "source") if settings.tokenizer.source else ("models", 0, "source")
    with _blaming(settings, *source):
        return TextTokenizer(
            _found(settings.tokenizer_source),
            max_length=window,
            long_texts=settings.tokenizer.long_texts,
            stride=settings.tokenizer.stride_in(window),
        )


def open_tokenize_stage(settings: EnsembleSettings) -> TokenizeStage:
    """Requests to packs, by the ensemble's tokenizer. Raises UserError."""
    return TokenizeStage(
        open_tokenizer(settings),
        request_format=settings.requests.format,
        max_text_bytes=settings.requests.max_text_bytes,
        tasks=_tasks(settings),
    )


def open_encode_stage(settings: EnsembleSettings) -> EncodeStage:
    """An engine for each checkpoint: models that share one share the encoder's pass too.

    Raises UserError, WorkerFailure.
    """
    sharing: dict[tuple[object, ...], list[int]] = {}
    for index, model in enumerate(settings.models):
        of_the_user = (model.onnx, model.onnx_output, model.plan, model.plan_output)
        sharing.setdefault((_folder(settings, index), *of_the_user), []).append(index)
    samples = cache(lambda: sample_windows(settings, open_tokenizer(settings)))
    with ExitStack() as opened:
        engines: list[Engine] = []
        for indices in sharing.values():
            engines.append(_open_engine(settings, indices, samples))
            opened.callback(engines[-1].close)
        opened.pop_all()  # they are the stage's now
    return EncodeStage(engines, row_length=settings.batching.row_length, max_length=max_length(settings))


def open_postprocess_stage(settings: EnsembleSettings) -> PostprocessStage:
    """Each model's task. Raises UserError."""
    return PostprocessStage({model.name: _task_stage(settings, index) for index, model in enumerate(settings.models)})


def max_length(settings: EnsembleSettings) -> int:
    """Tokens of a window: the file's wish, else what the models' files say; never more than one of them can read.

    Raises UserError.
    """
    configs = [_config(settings, index) for index in range(len(settings.models))]
    limits = [config.max_positions for config in configs if config.max_positions]
    wishes = [config.sentence.max_seq_length for config in configs if config.sentence]
    wish = settings.tokenizer.max_length or min((wish for wish in wishes if wish), default=None)
    if not limits and wish is None:
        message = "the models' files don't say how many tokens they read: say it here"
        raise settings.mistake("tokenizer", "max_length", message=message)
    return min([*limits, wish] if wish else limits)


# Models go by their index from here on: it is how the ensemble file's mistakes are told.


def _folder(settings: EnsembleSettings, index: int) -> Path:
    with _blaming(settings, "models", index, "source"):
        return _found(settings.models[index].source)


def _found(source: str) -> Path:
    if Path(source).is_file():
        raise CheckpointError(f"{source} is a file: name the folder that holds the model")
    return find_checkpoint(source, relative_to=None)


def _config(settings: EnsembleSettings, index: int) -> CheckpointConfig:
    folder = _folder(settings, index)
    with _blaming(settings, "models", index, "source"):
        return read_config(folder, any_model=not settings.models[index].is_checkpoint)


def _open_engine(settings: EnsembleSettings, indices: Sequence[int], samples: Windows) -> Engine:
    """With its weights on board; what was read of them is let go."""
    engine, first = settings.engine, indices[0]
    if settings.models[first].onnx is not None:
        return _open_onnx_engine(settings, indices, samples)
    if settings.models[first].plan is not None:
        return _open_plan(settings, indices)
    with _blaming(settings, "models", first, "source"):
        checkpoint = load_checkpoint(_folder(settings, first))
        outputs = [_output(settings, index, checkpoint) for index in indices]
        if engine.kind == "tensorrt":
            from pipeline.plans.opening import open_tensorrt_engine  # what plans need is not for every worker's start

            return open_tensorrt_engine(settings, checkpoint, outputs, max_length=max_length(settings), windows=samples)
        return open_engine(engine.kind, checkpoint, outputs, threads=engine.threads, instances=engine.instance_count)


def _open_onnx_engine(settings: EnsembleSettings, indices: Sequence[int], samples: Windows) -> Engine:
    from pipeline import user_models

    model, config = settings.models[indices[0]], _config(settings, indices[0])
    with _blaming(settings, "models", indices[0], "onnx"):
        found = user_models.read_model(model)
        outputs = [_user_output(settings, index, config, found) for index in indices]
        source = user_models.graph_source(model, config, outputs, max_length=max_length(settings))
        engine = settings.engine
        if engine.kind == "tensorrt":
            from pipeline.plans.opening import open_tensorrt_onnx_engine

            try:
                return open_tensorrt_onnx_engine(
                    settings, source, outputs, halved=found.halved, max_length=source.max_positions, windows=samples
                )
            except ParityError as err:
                raise CheckpointError(f"{err}: export it in float32, or name sample_texts like those to come") from err
        return open_source(engine.kind, source, threads=engine.threads, instances=engine.instance_count)


def _open_plan(settings: EnsembleSettings, indices: Sequence[int]) -> Engine:
    from pipeline.plans.finished import open_finished_plan

    model, config = settings.models[indices[0]], _config(settings, indices[0])
    assert model.plan is not None
    with _blaming(settings, "models", indices[0], "plan"):
        return open_finished_plan(
            settings,
            model.plan,
            lambda plan: [_user_output(settings, index, config, plan) for index in indices],
            output=model.plan_output,
            vocab_size=config.config.vocab_size or None,
            first_position=config.config.first_position,
            max_length=max_length(settings),
        )


def _user_output(settings: EnsembleSettings, index: int, config: CheckpointConfig, found: Answer) -> PooledOutput:
    """Of a file of the user's: `found` is what it says of itself."""
    from pipeline import user_models

    model = settings.models[index]
    head = _head(settings, index) if model.head is not None else None
    task = _task(model, config)
    with _blaming(settings, "models", index, "onnx" if model.plan is None else "plan"):
        if task != "sentence-embedding" and head is None:
            return user_models.logits_output(model, config, found)
        if task == "sentence-embedding" and model.plan is not None:
            user_models.check_plan_width(config, found)
        pooling, normalize = _pooling(model, config)
        output = user_models.vector_output(model, config, found, pooling=pooling, normalize=normalize, head=head)
    with _blaming(settings, "models", index, "head"):
        check_outputs([output], hidden_size=found.width)
    return output


def _output(settings: EnsembleSettings, index: int, checkpoint: Checkpoint) -> PooledOutput:
    model = settings.models[index]
    if _task(model, checkpoint) != "sentence-embedding" and model.head is None:
        # The classifier that was trained with the encoder has its own pooling.
        with _blaming(settings, "models", index, "source"):
            own = classification_head(checkpoint)
        return PooledOutput(name=model.name, pooling="cls", normalize=False, head=own)
    pooling, normalize = _pooling(model, checkpoint)
    head = _head(settings, index) if model.head is not None else None
    output = PooledOutput(name=model.name, pooling=pooling, normalize=normalize, head=head)
    with _blaming(settings, "models", index, "head"):
        check_outputs([output], hidden_size=checkpoint.config.hidden_size)
    return output


def _head(settings: EnsembleSettings, index: int) -> Head:
    path = settings.models[index].head
    assert path is not None
    with _blaming(settings, "models", index, "head"):
        if path.is_dir():
            raise CheckpointError(f"head {path}: is a folder: name the safetensors file in it")
        return load_head(path)


def _task_stage(settings: EnsembleSettings, index: int) -> TaskStage | PairsTask:
    """Without weights: a head's labels are in its file, the checkpoint's own are in its config."""
    model = settings.models[index]
    config = _config(settings, index)
    function = model.function_to_apply or _FUNCTIONS.get(config.problem_type)
    match _task(model, config):
        case "sentence-embedding":
            return _embedding(settings, index, config)
        case "text-ranking":
            if len(config.labels) != 1:
                message = f"text-ranking wants one label, and {config.folder} has {len(config.labels)}"
                raise settings.mistake("models", index, "task", message=message)
            return TextRanking(
                top_k=model.top_k if "top_k" in model.model_fields_set else None, function=model.function_to_apply
            )
        case "zero-shot-classification":
            try:
                return ZeroShotClassification(config.labels)
            except ValueError as err:
                message = f"{config.folder}: {err}: choose a model of natural language inference"
                raise settings.mistake("models", index, "source", message=message) from err
        case "text-classification":
            labels = config.labels
            if model.head is not None:
                labels, function = _head(settings, index).labels, model.function_to_apply
            return TextClassification(labels, top_k=model.top_k, function=function, threshold=model.threshold)


def _embedding(settings: EnsembleSettings, index: int, config: CheckpointConfig) -> SentenceEmbedding:
    model = settings.models[index]
    _, normalize = _pooling(model, config)
    width = _width(settings, index, config)
    if model.truncate_dim is not None and model.truncate_dim > width:
        message = f"{model.truncate_dim}; the model's vectors have {width} numbers"
        raise settings.mistake("models", index, "truncate_dim", message=message)
    return SentenceEmbedding(
        width=width,
        normalize=normalize,
        truncate_dim=model.truncate_dim,
        renormalize=model.normalize is True,
        precision=model.precision,
        ranges=_ranges(settings, index, width),
    )


def _ranges(settings: EnsembleSettings, index: int, width: int) -> NDArray[np.float32] | None:
    path = settings.models[index].ranges
    if path is None:
        return None
    try:
        ranges = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as err:
        message = f"{path} can't be read ({' '.join(str(err).split())}): write it with numpy.save"
        raise settings.mistake("models", index, "ranges", message=message) from err
    if getattr(ranges, "shape", None) != (2, width) or not np.isfinite(ranges).all():
        message = f"{path} is no array of finite numbers (2, {width}): take it from vectors of this model"
        raise settings.mistake("models", index, "ranges", message=message)
    found: NDArray[np.float32] = ranges.astype(np.float32)
    return found


def _tasks(settings: EnsembleSettings) -> list[Task]:
    """Of all models. Raises UserError where they do not read the same requests."""
    tasks = [_task(model, _config(settings, index)) for index, model in enumerate(settings.models)]
    try:
        request_kind(tasks)
    except ValueError as err:
        message = f"{err}: put them into ensembles of their own"
        raise settings.mistake("models", len(tasks) - 1, "task", message=message) from err
    return tasks


def _width(settings: EnsembleSettings, index: int, config: CheckpointConfig) -> int:
    model = settings.models[index]
    if model.onnx is None:
        if not config.config.hidden_size:
            message = f"{config.folder / 'config.json'} does not say hidden_size: write the vector's width there"
            raise settings.mistake("models", index, "source", message=message)
        return config.config.hidden_size
    from pipeline.user_models import read_model  # onnx is not for every worker's start

    with _blaming(settings, "models", index, "onnx"):
        return read_model(model).width


# As `transformers.TextClassificationPipeline` chooses where its caller does not.
_FUNCTIONS: dict[str | None, ScoreFunction] = {
    "multi_label_classification": "sigmoid",
    "single_label_classification": "softmax",
    "regression": "none",
}


def _task(model: ModelSettings, config: CheckpointConfig) -> Task:
    if model.task is not None:
        return model.task
    return "text-classification" if model.head is not None or config.classifies else "sentence-embedding"


def _pooling(model: ModelSettings, config: CheckpointConfig) -> tuple[Pooling, bool]:
    """How a text's vectors become one, and whether that gets length 1."""
    sentence = config.sentence
    pooling = model.pooling or (sentence.pooling if sentence else "mean")
    normalize = model.normalize if model.normalize is not None else bool(sentence and sentence.normalize)
    return pooling, normalize


@contextmanager
def _blaming(settings: EnsembleSettings, *place: str | int) -> Iterator[None]:
    """What a person must change is told of this place in the ensemble file."""
    try:
        yield
    except CheckpointError as err:
        raise settings.mistake(*place, message=str(err)) from err
    except DeviceUnavailable as err:
        raise settings.mistake("engine", "devices", message=str(err)) from err
    except EngineUnavailable as err:
        raise settings.mistake("engine", "kind", message=str(err)) from err
    except PlanMissing as err:
        advice = "run `penstock build` with this file on this machine, or set engine.plans: build"
        raise settings.mistake("engine", "plans", message=f"{err}: {advice}") from err
    except ParityError as err:
        advice = "choose another precision, or sample_texts that are like those to come"
        raise settings.mistake("engine", "precision", message=f"{err}: {advice}") from err
    except SamplesError as err:
        raise settings.mistake("engine", "sample_texts", message=f"{err}: name a file of shorter ones") from err
    except PlanError as err:
        raise WorkerFailure(str(err)) from err
    except TokenizerError as err:
        # It begins with its option, and doesn't know that the source may be the first model's.
        option, _, message = str(err).partition(": ")
        raise settings.mistake(
            *(place if option == "tokenizer.source" else option.split(".")), message=message
        ) from err
    except (EngineError, EngineLost) as err:  # a library that can't build the graph
        raise WorkerFailure(str(err)) from err
