"""What the files of an ensemble's models say: folders, configs, heads, and whose mistake it is where they don't fit.

Models go by their index: it is how the ensemble file's mistakes are told.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.checkpoint import CheckpointConfig, Pooling, find_checkpoint, read_config
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
from engines.heads import Head, load_head
from pipeline.class_paths import ClassPath
from pipeline.errors import WorkerFailure
from pipeline.model_settings import ModelSettings, Task
from pipeline.settings import EnsembleSettings
from stages.errors import TokenizerError


def model_folder(settings: EnsembleSettings, index: int) -> Path:
    """Where it lies. Raises SettingsError."""
    with blaming(settings, "models", index, "source"):
        return found_folder(settings.models[index].source)


def found_folder(source: str) -> Path:
    """Of a source. Raises CheckpointError."""
    if Path(source).is_file():
        raise CheckpointError(f"{source} is a file: name the folder that holds the model")
    return find_checkpoint(source, relative_to=None)


def model_config(settings: EnsembleSettings, index: int) -> CheckpointConfig:
    """What its folder says of it. Raises SettingsError."""
    folder = model_folder(settings, index)
    with blaming(settings, "models", index, "source"):
        return read_config(folder, any_model=not settings.computes_checkpoint(index))


def max_length(settings: EnsembleSettings) -> int:
    """Tokens of a window: the file's wish, else what the models' files say; never more than one of them can read.

    Raises UserError.
    """
    configs = [model_config(settings, index) for index in range(len(settings.models))]
    limits = [config.max_positions for config in configs if config.max_positions]
    wishes = [config.sentence.max_seq_length for config in configs if config.sentence]
    wish = settings.tokenizer.max_length or min((wish for wish in wishes if wish), default=None)
    if not limits and wish is None:
        message = "the models' files don't say how many tokens they read: say it here"
        raise settings.mistake("tokenizer", "max_length", message=message)
    return min([*limits, wish] if wish else limits)


def model_head(settings: EnsembleSettings, index: int) -> Head:
    """The head's file. Raises SettingsError."""
    path = settings.models[index].head
    assert path is not None
    with blaming(settings, "models", index, "head"):
        if path.is_dir():
            raise CheckpointError(f"head {path}: is a folder: name the safetensors file in it")
        return load_head(path)


def task_of(settings: EnsembleSettings, index: int, config: CheckpointConfig) -> Task:
    """What the ensemble file says, else what the checkpoint is made for; of a class of the user's own, the task whose
    numbers it reads. Raises SettingsError."""
    model = settings.models[index]
    if isinstance(model.task, ClassPath):
        from pipeline.own_tasks import numbers_read

        return numbers_read(settings, index, config)
    if model.task is not None:
        return model.task
    if model.head is not None or config.classifies:
        return "text-classification"
    if config.answers_questions:
        return "question-answering"
    if config.classifies_tokens:
        return "token-classification"
    of_checkpoint = model.is_checkpoint and not isinstance(settings.engine.kind, ClassPath)
    return "fill-mask" if config.fills_masks and of_checkpoint and not model.embeds else "sentence-embedding"


def pooling_of(model: ModelSettings, config: CheckpointConfig) -> tuple[Pooling, bool]:
    """How a text's vectors become one, and whether that gets length 1."""
    sentence = config.sentence
    pooling = model.pooling or (sentence.pooling if sentence else "mean")
    normalize = model.normalize if model.normalize is not None else bool(sentence and sentence.normalize)
    return pooling, normalize


@contextmanager
def blaming(settings: EnsembleSettings, *place: str | int) -> Iterator[None]:
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
