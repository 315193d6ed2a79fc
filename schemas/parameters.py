"""Parameters: what a request asks of the tasks that answer it, under `transformers`' and sentence-transformers' names.

They hold for every model of the ensemble whose task knows them, in place of what the ensemble file says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import UNSET, Meta, UnsetType

from schemas.errors import BadRecord, Reason

Value = TypeVar("Value")

# A pack takes no larger number than 64 bits hold; nobody has so many labels.
_MOST = 2**31 - 1

# Of question answering: of these depends how many spans of a window are looked at, and kept.
MAX_ANSWER_LEN = 512
MAX_ANSWERS = 100

# `transformers`' names for its `function_to_apply`.
ScoreFunction = Literal["softmax", "sigmoid", "none"]
# sentence-transformers' names for its `precision`, and float16.
EmbeddingPrecision = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]

# `transformers`' names for how a token classification puts tokens together.
AggregationStrategy = Literal["none", "simple", "first", "average", "max"]


class Parameters(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """What of it is UNSET is as the ensemble file says."""

    # text-classification, text-ranking, fill-mask
    top_k: Annotated[int, Meta(ge=1, le=_MOST)] | UnsetType | None = UNSET
    function_to_apply: ScoreFunction | UnsetType = UNSET
    threshold: float | UnsetType = UNSET
    # sentence-embedding
    truncate_dim: Annotated[int, Meta(ge=1, le=_MOST)] | UnsetType = UNSET
    normalize: bool | UnsetType = UNSET
    precision: EmbeddingPrecision | UnsetType = UNSET
    # zero-shot-classification
    multi_label: bool | UnsetType = UNSET
    hypothesis_template: Annotated[str, Meta(max_length=1_000)] | UnsetType = UNSET
    # token-classification
    aggregation_strategy: AggregationStrategy | UnsetType = UNSET
    ignore_labels: list[str] | UnsetType = UNSET
    # fill-mask
    targets: Annotated[list[str], Meta(min_length=1)] | str | UnsetType = UNSET
    # question-answering
    max_answer_len: Annotated[int, Meta(ge=1, le=MAX_ANSWER_LEN)] | UnsetType = UNSET
    max_question_len: Annotated[int, Meta(ge=1, le=_MOST)] | UnsetType = UNSET
    max_seq_len: Annotated[int, Meta(ge=1, le=_MOST)] | UnsetType = UNSET
    doc_stride: Annotated[int, Meta(ge=0, le=_MOST)] | UnsetType = UNSET
    handle_impossible_answer: bool | UnsetType = UNSET
    align_to_words: bool | UnsetType = UNSET

    def names(self) -> list[str]:
        """Of those that are set."""
        return [name for name in self.__struct_fields__ if getattr(self, name) is not UNSET]


NOTHING_ASKED = Parameters()


def asked_or(value: Value | UnsetType, default: Value) -> Value:
    """A parameter, or what the ensemble file says where the request says nothing."""
    return default if value is UNSET else value


# Of each task.
KNOWN_PARAMETERS: dict[str, tuple[str, ...]] = {
    "text-classification": ("top_k", "function_to_apply", "threshold"),
    "sentence-embedding": ("truncate_dim", "normalize", "precision"),
    "feature-extraction": (),
    "token-classification": ("aggregation_strategy", "ignore_labels"),
    "fill-mask": ("top_k", "targets"),
    "text-ranking": ("top_k", "function_to_apply"),
    "zero-shot-classification": ("multi_label", "hypothesis_template"),
    "question-answering": (
        "top_k",
        "max_answer_len",
        "max_question_len",
        "max_seq_len",
        "doc_stride",
        "handle_impossible_answer",
        "align_to_words",
    ),
}


def known_names(tasks: Mapping[str, Collection[str]]) -> list[str]:
    """Of what any of an ensemble's tasks knows, each once; `tasks` says what each knows."""
    return list(dict.fromkeys(name for task in sorted(tasks) for name in tasks[task]))


def allowed_values(name: str) -> list[str]:
    """Of the parameter, where it is one of a few words; else none."""
    types = [get_type_hints(Parameters)[name]] if name in Parameters.__struct_fields__ else []
    for each in types:
        if get_origin(each) is Literal:
            return [*get_args(each)]
        types += get_args(each)
    return []


def check_parameters(parameters: Parameters, tasks: Mapping[str, Collection[str]]) -> None:
    """Raises BadRecord where none of the ensemble's tasks knows one of them, or one of them can't take its value;
    `tasks` says what each knows."""
    known = known_names(tasks)
    for name in parameters.names():
        if name not in known:
            raise BadRecord(
                Reason.BAD_REQUEST,
                f"parameters.{name}: no model here knows it ({', '.join(sorted(tasks))}); known: "
                f"{', '.join(known) or 'none'}",
            )
    if parameters.top_k is None and "fill-mask" in tasks:
        raise BadRecord(Reason.BAD_REQUEST, "parameters.top_k: null, which fill-mask does not take: give a number")
    if "question-answering" in tasks and not may_be_answers(asked_or(parameters.top_k, 1)):
        message = f"parameters.top_k: {parameters.top_k or 'null'}; question-answering gives 1 to {MAX_ANSWERS} answers"
        raise BadRecord(Reason.BAD_REQUEST, message)


def may_be_answers(top_k: int | None) -> bool:
    """Whether so many answers may be asked of question answering, which has no "all"."""
    return top_k is not None and 1 <= top_k <= MAX_ANSWERS
