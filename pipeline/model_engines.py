"""From an ensemble's models to the engine that computes those of one source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engines.checkpoint import Checkpoint, CheckpointConfig, load_checkpoint
from engines.engine import open_engine, open_source
from engines.errors import CheckpointError, ParityError
from engines.heads import (
    ModelOutput,
    PooledOutput,
    TokenOutput,
    check_outputs,
    classification_head,
    question_answering_head,
    token_classification_head,
)
from engines.rows import Engine
from pipeline.class_paths import ClassPath
from pipeline.mistakes import Place
from pipeline.model_files import blaming, max_length, model_config, model_folder, model_head, pooling_of, task_of
from pipeline.plans.samples import Windows
from pipeline.settings import EnsembleSettings

if TYPE_CHECKING:
    from pipeline.user_models import Answer


def open_model_engine(settings: EnsembleSettings, indices: Sequence[int], samples: Windows) -> Engine:
    """With its weights on board; what was read of them is let go."""
    engine, first = settings.engine, indices[0]
    if isinstance(engine.kind, ClassPath):
        from pipeline.own_engines import open_own_engine

        return open_own_engine(settings, indices, engine.kind, user_output)
    if settings.models[first].onnx is not None:
        return _open_onnx_engine(settings, indices, samples)
    if settings.models[first].plan is not None:
        return _open_plan(settings, indices)
    with blaming(settings, "models", first, "source"):
        checkpoint = load_checkpoint(model_folder(settings, first))
        outputs = [_output(settings, index, checkpoint) for index in indices]
        if engine.kind == "tensorrt":
            from pipeline.plans.opening import open_tensorrt_engine  # what plans need is not for every worker's start

            return open_tensorrt_engine(settings, checkpoint, outputs, max_length=max_length(settings), windows=samples)
        return open_engine(engine.kind, checkpoint, outputs, threads=engine.threads, instances=engine.instance_count)


def _open_onnx_engine(settings: EnsembleSettings, indices: Sequence[int], samples: Windows) -> Engine:
    from pipeline import user_models

    model, config = settings.models[indices[0]], model_config(settings, indices[0])
    with blaming(settings, "models", indices[0], "onnx"):
        found = user_models.read_model(model)
        outputs = [user_output(settings, index, config, found) for index in indices]
        source = user_models.graph_source(model, config, outputs, max_length=max_length(settings))
        engine = settings.engine
        assert not isinstance(engine.kind, ClassPath), "the settings refuse both"
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

    model, config = settings.models[indices[0]], model_config(settings, indices[0])
    assert model.plan is not None
    with blaming(settings, "models", indices[0], "plan"):
        return open_finished_plan(
            settings,
            model.plan,
            lambda plan: [user_output(settings, index, config, plan) for index in indices],
            output=model.plan_output,
            vocab_size=config.config.vocab_size or None,
            first_position=config.config.first_position,
            max_length=max_length(settings),
        )


def user_output(settings: EnsembleSettings, index: int, config: CheckpointConfig, found: Answer) -> ModelOutput:
    """Of a file of the user's, or a class: `found` is what it says of itself."""
    from pipeline import user_models

    model = settings.models[index]
    place: Place = ("models", index, "onnx" if model.plan is None else "plan")
    of_class = isinstance(settings.engine.kind, ClassPath)
    if of_class:
        place = ("engine", "kind")
    head = model_head(settings, index) if model.head is not None else None
    task = task_of(settings, index, config)
    with blaming(settings, *place):
        if task == "question-answering":
            raise CheckpointError(
                "question-answering is computed of a checkpoint's own weights; allowed: no onnx, no plan, and an "
                "engine that Penstock has"
            )
        if task == "token-classification":
            return user_models.token_logits_output(model, config, found)
        if task in ("feature-extraction", "sentence-embedding") and (model.plan is not None or of_class):
            user_models.check_plan_width(config, found)
        if task == "feature-extraction":
            return user_models.token_output(model, found)
        if task == "fill-mask":
            return user_models.states_output(model, config, found)
        if task != "sentence-embedding" and head is None:
            return user_models.logits_output(model, config, found)
        pooling, normalize = pooling_of(model, config)
        output = user_models.vector_output(model, config, found, pooling=pooling, normalize=normalize, head=head)
    with blaming(settings, "models", index, "head"):
        check_outputs([output], hidden_size=found.width)
    return output


def _output(settings: EnsembleSettings, index: int, checkpoint: Checkpoint) -> ModelOutput:
    model = settings.models[index]
    task = task_of(settings, index, checkpoint)
    if task in ("feature-extraction", "fill-mask"):  # the head of the latter is postprocess's
        return TokenOutput(name=model.name)
    if task == "token-classification":
        with blaming(settings, "models", index, "source"):
            return TokenOutput(name=model.name, head=token_classification_head(checkpoint))
    if task == "question-answering":
        with blaming(settings, "models", index, "source"):
            return TokenOutput(name=model.name, head=question_answering_head(checkpoint))
    if task != "sentence-embedding" and model.head is None:
        # The classifier that was trained with the encoder has its own pooling.
        with blaming(settings, "models", index, "source"):
            own = classification_head(checkpoint)
        return PooledOutput(name=model.name, pooling=checkpoint.classifier_pooling, normalize=False, head=own)
    pooling, normalize = pooling_of(model, checkpoint)
    head = model_head(settings, index) if model.head is not None else None
    output = PooledOutput(name=model.name, pooling=pooling, normalize=normalize, head=head)
    with blaming(settings, "models", index, "head"):
        check_outputs([output], hidden_size=checkpoint.config.hidden_size)
    return output
