"""The ensemble file's sections `models` and `tokenizer`: what reads a text, and what is computed of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from engines.hub import is_hub_name
from pipeline.class_paths import ClassPath, OptionalClass, names_or_class
from pipeline.ensemble_file import FilePath, Section, resolved
from pipeline.mistakes import Contradictions
from pipeline.names import Name
from schemas.parameters import MAX_ANSWER_LEN, AggregationStrategy, EmbeddingPrecision, ScoreFunction
from schemas.requests import TOKEN_TASKS

Task = Literal[
    "sentence-embedding",
    "text-classification",
    "text-ranking",
    "zero-shot-classification",
    "feature-extraction",
    "token-classification",
    "fill-mask",
    "question-answering",
]

# Which tasks an option is for.
_OF_TASKS: dict[str, tuple[Task, ...]] = {
    "head": ("text-classification",),
    "top_k": ("text-classification", "text-ranking", "fill-mask", "question-answering"),
    "function_to_apply": ("text-classification", "text-ranking"),
    "threshold": ("text-classification",),
    "truncate_dim": ("sentence-embedding",),
    "precision": ("sentence-embedding",),
    "aggregation_strategy": ("token-classification",),
    "ranges": ("sentence-embedding",),
    "ignore_labels": ("token-classification",),
    "max_answer_len": ("question-answering",),
    "handle_impossible_answer": ("question-answering",),
    "align_to_words": ("question-answering",),
}
# And a class of the user's own, whatever it reads.
_OF_CLASSES = ("head", "pooling", "normalize")

# Which say that an embedding is wanted, where nothing says what is.
_OF_EMBEDDINGS = frozenset({"pooling", "normalize", "truncate_dim", "precision", "ranges"})

# Of which the checkpoint's own head has its own pooling.
_CLASSIFIERS: tuple[Task, ...] = ("text-classification", "text-ranking", "zero-shot-classification")

# [CLS] and [SEP], or what a model has in their place. The tokenizer checks its own number when it is loaded.
_SPECIAL_TOKENS = 2
_DEFAULT_STRIDE = 32


def _source(source: str, info: ValidationInfo) -> str:
    """A folder becomes its absolute path; what is no folder and looks like no path is a package's name."""
    path = resolved(Path(source), info)
    if is_hub_name(source) and not path.exists():
        return source
    looks_like_path = "/" in source or source.startswith(("~", "."))
    # A file is told as such when it is loaded. It comes before no package: a package may be called like one.
    looks_like_path |= os.path.isfile(path) and not source.replace("-", "_").isidentifier()
    return str(path) if looks_like_path or os.path.isdir(path) else source


ModelSource = Annotated[str, Field(min_length=1), AfterValidator(_source)]


class TokenizerSettings(Section):
    """The tokenizer that all models of the ensemble share."""

    source: ModelSource | None = None
    """A model's folder, an installed package that ships one, or a name of the Hugging Face hub. Default: the first
    model's source."""

    class_: OptionalClass = Field(default=None, alias="class")
    """A tokenizer of your own in place of the model's, as `module:Class`: docs/own-classes.md."""

    options: dict[str, Any] = Field(default_factory=dict)
    """What `class` is called with, by keyword."""

    max_length: int | None = Field(default=None, ge=_SPECIAL_TOKENS + 1, le=32_768)
    """Tokens of one window, special ones included. Default: what the model's files say. Attention costs its square,
    so a smaller one makes long texts cheaper, in more windows. Of question answering it is max_seq_len (transformers'
    name), by default at most 384."""

    long_texts: Literal["stride", "truncate", "reject"] = "stride"
    """A text of more than `max_length` tokens: `stride` reads it in overlapping windows and joins their outputs,
    `truncate` reads the first window and says so in the result, `reject` makes it a dead letter."""

    stride: int | None = Field(default=None, ge=0, le=32_768)
    """Tokens that neighbouring windows share (transformers' meaning of stride): context for what would otherwise
    be cut in two, computed twice. Default: 32, and a quarter of windows that are under 128. Without effect unless
    `long_texts` is `stride`. Of question answering it is doc_stride, by default 128, and half of windows that are under
    256."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        wrong = Contradictions()
        most = (self.max_length or 1 << 20) - _SPECIAL_TOKENS - 1
        if self.long_texts == "stride" and self.stride is not None and self.stride > most:
            what = f"{self.stride} leaves no new token in a window of {self.max_length} (max_length)"
            wrong.add("stride", message=f"{what}; allowed: at most {most}")
        if self.options and self.class_ is None:
            wrong.add("options", message="has no effect without class; allowed with: class")
        wrong.raise_if_any()
        return self

    def stride_in(self, window: int) -> int:
        """`stride` for windows of so many tokens."""
        return min(_DEFAULT_STRIDE, window // 4) if self.stride is None else self.stride


class ModelSettings(Section):
    """One model: an output of every result, under the model's name."""

    name: Name
    """The key in a result's `outputs`."""

    source: ModelSource
    """A model's folder, an installed package that ships one, or a name of the Hugging Face hub (`org/name`, or
    `org/name@revision`), fetched once where there is a network. Models of the same source share one encoder pass."""

    onnx: FilePath | None = None
    """An ONNX file that is computed in place of the checkpoint's weights, relative to the ensemble file: a model of any
    kind that reads `input_ids` and `attention_mask`, (texts, tokens), and `token_type_ids` if it likes. Its texts are
    padded. `source` is where its config.json and its tokenizer's files are."""

    onnx_output: str | None = Field(default=None, min_length=1)
    """The file's output to be used: of texts (texts, width), or of tokens, which are pooled. Default: the first that is
    there of sentence_embedding, logits, last_hidden_state, token_embeddings; or the only one."""

    plan: FilePath | None = None
    """With `engine.kind: tensorrt`, in place of `onnx`: a TensorRT plan, such as trtexec saves, relative to the
    ensemble file, of a model that reads what an `onnx` file's does. It is run as it is, and compared with nothing. A
    vector's width and the labels are those of `source`'s config.json."""

    plan_output: str | None = Field(default=None, min_length=1)
    """The plan's output to be used, as `onnx_output`."""

    task: Annotated[Task | ClassPath | None, names_or_class(get_args(Task), optional=True)] = None
    """Default: what the checkpoint is made for: text-classification with a head, token-classification with one of
    tokens, question-answering with one of answers, fill-mask with a masked language model's (unless another option is
    an embedding's), else sentence-embedding. text-ranking is a cross-encoder's (one logit), zero-shot-classification
    wants a model of natural language inference, feature-extraction answers the vector of each token. A class of your
    own, as `module:Class`, makes the output of the model's numbers: docs/own-classes.md."""

    options: dict[str, Any] = Field(default_factory=dict)
    """What a class that is `task` is called with, by keyword."""

    pooling: Literal["mean", "cls", "max"] | None = None
    """How the tokens' vectors become one: their mean, the first one, or each number's largest. Default: what the
    checkpoint says, else mean. The checkpoint's own classification head has its own."""

    normalize: bool | None = None
    """Whether the pooled vector gets length 1, which makes cosine and dot product the same. Default like pooling.
    A `head` must be trained on vectors made the same way."""

    head: FilePath | None = None
    """A safetensors file with a linear head on the pooled vector and its labels, relative to the ensemble file.
    Default: the checkpoint's own head."""

    top_k: int | None = Field(default=1, ge=1, le=100_000)
    """How many labels a classification answers, passages a ranking and tokens a fill-mask for each mask, best first;
    null: all of them, of a fill-mask not allowed. A ranking has no other default, a fill-mask 5. Of question
    answering how many answers, at most 100."""

    function_to_apply: ScoreFunction | None = None
    """What makes scores of a classification's or a ranking's logits. Default: as transformers chooses it, by the
    config's problem_type and the number of labels."""

    threshold: float | None = Field(default=None, allow_inf_nan=False)
    """Labels of a lower score are left out of a classification."""

    aggregation_strategy: AggregationStrategy = "none"
    """How a token-classification puts tokens together, in transformers' words: `none` answers each token, `simple`
    those of one entity that follow one another; `first`, `average` and `max` do so with whole words, each labelled by
    its tokens' scores."""

    ignore_labels: Annotated[tuple[str, ...], Field(strict=False)] = ("O",)
    """What a token-classification leaves out: labels, or with another strategy than `none` their entities."""

    max_answer_len: int = Field(default=15, ge=1, le=MAX_ANSWER_LEN)
    """Tokens of a question-answering's answer, at most."""

    handle_impossible_answer: bool = False
    """Whether a question-answering may answer that the context has no answer, with an empty one. For models that were
    trained for it (SQuAD 2)."""

    align_to_words: bool = True
    """Whether a question-answering's answers are of whole words, as the tokenizer splits them."""

    truncate_dim: int | None = Field(default=None, ge=1)
    """How many of an embedding's first numbers are kept (Matryoshka). With `normalize: true` what is kept gets length
    1."""

    precision: EmbeddingPrecision = "float32"
    """Of an embedding's numbers, in sentence-transformers' words: `binary` and `ubinary` are signs, eight to a number;
    `int8` and `uint8` need `ranges`."""

    ranges: FilePath | None = None
    """A NumPy file (.npy) of shape (2, width): the least and the largest value of each of an embedding's numbers, as
    sentence-transformers' quantize_embeddings takes them. Relative to the ensemble file."""

    @property
    def embeds(self) -> bool:
        """Whether an option says that its vectors are wanted."""
        return not self.model_fields_set.isdisjoint(_OF_EMBEDDINGS)

    @property
    def is_checkpoint(self) -> bool:
        """Whether its graph is written here, and not the user's."""
        return self.onnx is None and self.plan is None

    @model_validator(mode="after")
    def _check(self) -> Self:
        wrong = Contradictions()
        if self.onnx is None and self.onnx_output is not None:
            wrong.add("onnx_output", message="has no effect without onnx; allowed with: onnx")
        if self.plan is None and self.plan_output is not None:
            wrong.add("plan_output", message="has no effect without plan; allowed with: plan")
        if self.plan is not None and self.onnx is not None:
            wrong.add("plan", message="is not allowed with onnx; allowed: one of them")
        for option, tasks in _OF_TASKS.items():
            of_class = isinstance(self.task, ClassPath) and option in _OF_CLASSES
            if self.task is not None and option in self.model_fields_set and self.task not in tasks and not of_class:
                wrong.add(option, message=f"has no effect on a {self.task}; allowed with: {', '.join(tasks)}")
        if self.options and not isinstance(self.task, ClassPath):
            wrong.add("options", message="has no effect without a class of yours; allowed with: task: module:Class")
        if self.precision in ("int8", "uint8") and self.ranges is None:
            wrong.add("precision", message=f"{self.precision} needs ranges; allowed with: ranges")
        if self.task == "fill-mask" and self.top_k is None:
            wrong.add("top_k", message="null is not allowed for fill-mask; allowed: an integer from 1 to 100,000")
        if self.task in TOKEN_TASKS:
            for option in ("pooling", "normalize"):
                if option in self.model_fields_set:
                    wrong.add(option, message=f"has no effect on a {self.task}; allowed with: sentence-embedding")
        if self.task in _CLASSIFIERS and self.head is None:
            for option in ("pooling", "normalize"):
                if getattr(self, option) is not None:
                    wrong.add(option, message="has no effect on the checkpoint's own head; allowed with: head")
        wrong.raise_if_any()
        return self
