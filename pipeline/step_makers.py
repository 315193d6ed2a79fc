"""From an ensemble's settings to the parts of a worker: what it reads, its steps, what becomes of a finished unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pipeline.assembly import open_encode_stage, open_postprocess_stage, open_tokenize_stage
from pipeline.dead_letters import DeadLetters
from pipeline.engine_settings import BatchingSettings
from pipeline.intake import Intake, PackIntake, RequestIntake
from pipeline.lines import Unit
from pipeline.metrics import WorkerMetrics
from pipeline.settings import EnsembleSettings, Stage
from pipeline.steps import EncodeStep, Next, PostprocessStep, Step, TokenizeStep
from schemas.packs import (
    EncodingPack,
    TokenPack,
    decode_encoding_pack,
    decode_token_pack,
    encode_pack,
    sources_of,
)
from schemas.records import OutputRecord
from schemas.regrouping import joined_encodings, joined_tokens, parted
from stages.encode import EncodeStage
from stages.microbatcher import MicroBatcher
from stages.postprocess import PostprocessStage
from stages.window_queue import Window

# Of a pack's numbers of tokens: half of what a record may have, so that a text of that size still has room.
_MOST_NUMBERS_BYTES = 8 << 20

MakeStep = Callable[[Next, Callable[[BaseException], None], DeadLetters, WorkerMetrics], Step]
Makers = Mapping[Stage, MakeStep]


def load_stages(settings: EnsembleSettings, stages: Sequence[Stage]) -> Makers:
    """What takes seconds: tokenizer, model, engine. Raises UserError, WorkerFailure."""
    return {stage: _MAKERS[stage](settings) for stage in stages}


def _tokenize_step(settings: EnsembleSettings) -> MakeStep:
    stage = open_tokenize_stage(settings)
    return lambda then, fail, dead_letters, metrics: TokenizeStep(
        stage, then=then, on_failure=fail, dead_letters=dead_letters, metrics=metrics.stage("tokenize")
    )


def _encode_step(settings: EnsembleSettings) -> MakeStep:
    return encode_step(open_encode_stage(settings), settings)


def encode_step(stage: EncodeStage, settings: EnsembleSettings) -> MakeStep:
    """What makes the step of a stage that is open."""
    return lambda then, fail, dead_letters, metrics: EncodeStep(
        stage,
        micro_batcher(settings.batching),
        then=then,
        on_failure=fail,
        dead_letters=dead_letters,
        metrics=metrics.stage("encode"),
        threads=settings.engine.batches_at_once,
        lanes=[*settings.batching.lanes],
    )


def micro_batcher(batching: BatchingSettings) -> MicroBatcher[Window[Unit]]:
    """A queue for an encode step."""
    return MicroBatcher(
        max_batch_size=batching.max_batch_size,
        max_batch_tokens=batching.max_batch_tokens,
        max_queue_delay_ms=batching.max_queue_delay_ms,
        knee_tokens=batching.knee_tokens,
        weights=[*batching.lanes.values()],
    )


def _postprocess_step(settings: EnsembleSettings) -> MakeStep:
    return postprocess_step(open_postprocess_stage(settings), settings)


def postprocess_step(stage: PostprocessStage, settings: EnsembleSettings) -> MakeStep:
    """What makes the step of a stage that is open."""
    return lambda then, fail, dead_letters, metrics: PostprocessStep(
        stage,
        results_topic=settings.topic_names.results,
        then=then,
        on_failure=fail,
        dead_letters=dead_letters,
        metrics=metrics.stage("postprocess"),
        answer_superseded=settings.requests.answer_superseded,
    )


_MAKERS: dict[Stage, Callable[[EnsembleSettings], MakeStep]] = {
    "tokenize": _tokenize_step,
    "encode": _encode_step,
    "postprocess": _postprocess_step,
}


def intake_of(settings: EnsembleSettings, stage: Stage, dead_letters: DeadLetters) -> Intake:
    match stage:
        case "tokenize":
            return RequestIntake(max_pack_size=settings.batching.max_pack_size)
        case "encode":
            return PackIntake(
                decode_token_pack,
                joined_tokens,
                max_pack_size=settings.batching.max_pack_size,
                requests_topic=settings.topic_names.requests,
                dead_letters=dead_letters,
            )
        case "postprocess":
            return PackIntake(
                decode_encoding_pack,
                joined_encodings,
                max_pack_size=settings.batching.max_pack_size,
                requests_topic=settings.topic_names.requests,
                dead_letters=dead_letters,
            )


def sealed(stage: Stage, settings: EnsembleSettings, finish: Next) -> Next:
    """What a worker's last step does with a unit: its pack becomes a record, unless it was results already."""

    def seal(unit: Unit) -> None:
        if stage == "tokenize" and unit.tokens is not None:
            unit.outputs.append(_pack_record(settings.topic_names.tokens, unit.tokens))
        elif stage == "encode" and unit.encodings is not None:
            for part in parted(unit.encodings, most_bytes=_MOST_NUMBERS_BYTES):
                unit.outputs.append(_pack_record(settings.topic_names.encodings, part))
        # Nothing of it is needed any more, and it waits for its delivery.
        unit.tokens = unit.encodings = None
        finish(unit)

    return seal


def _pack_record(topic: str, pack: TokenPack | EncodingPack) -> OutputRecord:
    return OutputRecord(topic, None, encode_pack(pack), [], sources_of(pack))
