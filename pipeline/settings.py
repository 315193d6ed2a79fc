"""What an ensemble is: its topics, tokenizer, models, batching, engine and Kafka settings, validated together.

One frozen object, built once from the ensemble file or for one model. Every option's docstring says why one would
change it and what it touches. What is wrong with a model's folder, or with stride and special tokens, is known only
to who loads them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from confluent_kafka import Consumer, KafkaException, Producer
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from pipeline.ensemble_file import (
    Contradictions,
    SettingsError,
    read_settings,
    shown,
    validate_settings,
)
from schemas.requests import RequestFormat

__all__ = ["EnsembleSettings", "SettingsError", "load_ensemble", "settings_for_model"]

Stage = Literal["tokenize", "encode", "postprocess"]
Task = Literal["sentence-embedding", "text-classification"]
KafkaValue = str | int | float | bool

STAGES: tuple[Stage, ...] = ("tokenize", "encode", "postprocess")
BOOTSTRAP_VARIABLE = "PENSTOCK_BOOTSTRAP_SERVERS"
DEFAULT_BOOTSTRAP_SERVERS = "127.0.0.1:9092"

# Kafka allows topics of 249 characters; ".dead-letters" takes 13.
_MAX_TOPIC_CHARACTERS = 249
_MAX_NAME_CHARACTERS = 200

# [CLS] and [SEP], or what a model has in their place. The tokenizer checks its own number when it is loaded.
_SPECIAL_TOKENS = 2

# What is larger is no setting, and Python refuses to print numbers of more than 4,300 digits.
_MAX_NUMBER = 1 << 63

_OWNED = "Penstock commits an offset only when what was made of it is delivered"
_REFUSED_KAFKA_SETTINGS: dict[str, str] = {
    "enable.auto.commit": _OWNED,
    "enable.auto.offset.store": _OWNED,
    "enable.partition.eof": "the workers read without end",
    "group.id": "it is the ensemble's name and the stage, so that each stage reads every record",
    "group.instance.id": "it must differ from worker to worker, and a file is shared by many",
    "transactional.id": "delivery is at_least_once",
    "partitioner": "it would have no effect: a record keeps the partition that it was read from",
    "metadata.broker.list": "use bootstrap.servers",
    "auto.offset.reset": "records that were deleted before they were read are counted, not skipped",
    "bootstrap.servers": "one address serves every client: set it in kafka",
    "logger": "Penstock logs librdkafka's lines itself",
}
_SECRET = re.compile(r"password|passphrase|secret|token|jaas|private|key\.pem|oauthbearer\.config", re.IGNORECASE)


def _topic_name(name: str, most_characters: int = _MAX_TOPIC_CHARACTERS) -> str:
    if not re.fullmatch(r"[a-zA-Z0-9._-]+", name) or name in (".", "..") or len(name) > most_characters:
        allowed = f"letters, digits, '.', '_' and '-', at most {most_characters} of them"
        raise ValueError(f"{shown(name)} is not allowed; allowed: {allowed}")
    return name


def _ensemble_name(name: str) -> str:
    return _topic_name(name, _MAX_NAME_CHARACTERS)


def _model_name(name: str) -> str:
    if name in STAGES:
        raise ValueError(f"{name!r} is a stage's name, and metrics would mix them up; allowed: any other name")
    return _ensemble_name(name)


def _bootstrap_servers(servers: str) -> str:
    for server in servers.split(","):
        address = re.fullmatch(r"\s*([A-Za-z_0-9]+://)?(\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+)(:(\d{1,5}))?\s*", server)
        if not address or int(address[4] or 1) not in range(1, 65536):
            raise ValueError(f"{shown(servers)} is not allowed; allowed: host:port, several with commas between")
    return servers


def _kafka_value(value: object) -> object:
    # The value itself isn't told: it may be a password.
    if isinstance(value, int) and abs(value) > _MAX_NUMBER:
        raise ValueError("a number of more than 64 bits is not allowed; allowed: a string, a number, true, false")
    if not isinstance(value, str | int | float):
        raise ValueError(f"{shown(value)} is not allowed; allowed: a string, a number, true, false")
    return value


def _source(source: str, info: ValidationInfo) -> str:
    """A folder becomes its absolute path; what is no folder and looks like no path is a package's name."""
    path = _resolved(Path(source), info)
    looks_like_path = "/" in source or source.startswith(("~", "."))
    return str(path) if looks_like_path or os.path.isdir(path) else source


def _resolved(path: Path, info: ValidationInfo) -> Path:
    folder: Path | None = (info.context or {}).get("folder")
    return (folder or Path.cwd()) / os.path.expanduser(path)


ModelSource = Annotated[str, Field(min_length=1), AfterValidator(_source)]
TopicName = Annotated[str, AfterValidator(_topic_name)]
# A validator of its own, since of a union pydantic would tell each member's opinion.
KafkaMapping = dict[str, Annotated[KafkaValue, BeforeValidator(_kafka_value)]]


class _Section(BaseModel):
    """A mapping of the file: no option it doesn't know, no value of another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class RequestSettings(_Section):
    """How a record of the requests topic is read."""

    format: RequestFormat = "json"
    """`json` is `{"text": ..., "id": ...}`; `text` takes the whole value as the text, for producers that have
    nothing else to say."""

    max_text_bytes: int = Field(default=1 << 20, ge=1, le=4 << 20)
    """Longer texts are dead letters. Under 4 MiB so that a text's tokens, 4 bytes each, fit one pack."""


class TopicSettings(_Section):
    """The ensemble's topics. All have the same number of partitions: a record keeps its partition to the end."""

    partitions: int = Field(default=4, ge=1, le=10_000)
    """The most workers that can share one stage. Only counts when topics are created: Kafka can add partitions
    later, but then keys move, and all topics of the ensemble must be changed together."""

    replication_factor: int = Field(default=1, ge=1, le=100)
    """Copies of each partition: 3 in production, 1 where there is one broker."""

    requests: TopicName | None = None
    """Default `<name>.requests`. Several ensembles may read one requests topic."""

    tokens: TopicName | None = None
    """Default `<name>.tokens`; unused when the stages run fused."""

    encodings: TopicName | None = None
    """Default `<name>.encodings`; unused when the stages run fused."""

    results: TopicName | None = None
    """Default `<name>.results`."""

    dead_letters: TopicName | None = None
    """Default `<name>.dead-letters`."""


class TokenizerSettings(_Section):
    """The tokenizer that all models of the ensemble share."""

    source: ModelSource | None = None
    """A model's folder or an installed package that ships one. Default: the first model's source."""

    max_length: int | None = Field(default=None, ge=_SPECIAL_TOKENS + 1, le=32_768)
    """Tokens of one window, special ones included. Default: what the model's files say. Attention costs its square,
    so a smaller one makes long texts cheaper, in more windows."""

    long_texts: Literal["stride", "truncate", "reject"] = "stride"
    """A text of more than `max_length` tokens: `stride` reads it in overlapping windows and joins their outputs,
    `truncate` reads the first window and says so in the result, `reject` makes it a dead letter."""

    stride: int = Field(default=32, ge=0, le=32_768)
    """Tokens that neighbouring windows share (transformers' meaning of stride): context for what would otherwise
    be cut in two, computed twice. Without effect unless `long_texts` is `stride`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        wrong = Contradictions()
        most = (self.max_length or 1 << 20) - _SPECIAL_TOKENS - 1
        if self.long_texts == "stride" and self.stride > most:
            what = f"{self.stride} leaves no new token in a window of {self.max_length} (max_length)"
            wrong.add("stride", message=f"{what}; allowed: at most {most}")
        wrong.raise_if_any()
        return self


class ModelSettings(_Section):
    """One model: an output of every result, under the model's name."""

    name: Annotated[str, AfterValidator(_model_name)]
    """The key in a result's `outputs`."""

    source: ModelSource
    """A model's folder or an installed package that ships one. Models of the same source share one encoder pass."""

    task: Task | None = None
    """Default: what the checkpoint is made for: text-classification with a head, else sentence-embedding."""

    pooling: Literal["mean", "cls"] | None = None
    """How the tokens' vectors become one. Default: what the checkpoint says, else mean. The checkpoint's own
    classification head has its own."""

    normalize: bool | None = None
    """Whether the pooled vector gets length 1, which makes cosine and dot product the same. Default like pooling.
    A `head` must be trained on vectors made the same way."""

    head: Annotated[Path, Field(strict=False), AfterValidator(_resolved)] | None = None
    """A safetensors file with a linear head on the pooled vector and its labels, relative to the ensemble file.
    Default: the checkpoint's own head."""

    top_k: int | None = Field(default=1, ge=1, le=100_000)
    """How many labels a classification answers, best first; null: all of them."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        wrong = Contradictions()
        if self.task == "sentence-embedding":
            if self.head is not None:
                wrong.add("head", message="has no effect on a sentence-embedding; allowed with: text-classification")
            if "top_k" in self.model_fields_set:
                wrong.add("top_k", message="has no effect on a sentence-embedding; allowed with: text-classification")
        elif self.task == "text-classification" and self.head is None:
            for option in ("pooling", "normalize"):
                if getattr(self, option) is not None:
                    wrong.add(option, message="has no effect on the checkpoint's own head; allowed with: head")
        wrong.raise_if_any()
        return self


class BatchingSettings(_Section):
    """How texts are gathered for an engine: work-conserving, under caps of count, tokens and time."""

    max_pack_size: int = Field(default=64, ge=1, le=4096)
    """Texts in one record of the tokens topic. Packs of 64 cost Python 0.5 us a text, single records 1.9."""

    max_batch_size: int = Field(default=64, ge=1, le=65_536)
    """Windows in one micro-batch."""

    max_batch_tokens: int = Field(default=2048, ge=8, le=1 << 20)
    """Tokens in one micro-batch, the bound on an engine's memory and on the wait behind it. A longer window
    stands alone."""

    max_queue_delay_ms: int = Field(default=0, ge=0, le=60_000)
    """How long the oldest window waits for more while there are fewer than `knee_tokens`."""

    knee_tokens: int = Field(default=0, ge=0, le=1 << 20)
    """Below it more tokens cost no more time, as on a GPU with idle units, so waiting for them pays. On a CPU
    there is no knee: 0 dispatches as soon as an instance is free."""

    row_length: int = Field(default=128, ge=8, le=32_768)
    """Tokens of a packed row, a multiple of 8. On a CPU 64 to 128; on a GPU 256 fills it better."""

    max_in_flight_tokens: int = Field(default=65_536, ge=8, le=1 << 30)
    """Tokens that a worker has read and not yet delivered. Above it partitions are paused, below half of it
    resumed. Bounds memory and what is repeated after a kill."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        wrong = Contradictions()
        row, batch, knee, in_flight = (
            self.row_length,
            self.max_batch_tokens,
            self.knee_tokens,
            self.max_in_flight_tokens,
        )
        if row % 8:
            wrong.add("row_length", message=f"{row} is not allowed; allowed: a multiple of 8")
        if batch < row:
            message = f"{batch} doesn't fill a row; allowed: at least {row} (row_length)"
            wrong.add("max_batch_tokens", message=message)
        if knee > batch:
            message = f"{knee} is never reached; allowed: at most {batch} (max_batch_tokens)"
            wrong.add("knee_tokens", message=message)
        if self.max_queue_delay_ms and not knee:
            message = f"{self.max_queue_delay_ms} has no effect while knee_tokens is 0; allowed: 0, or a knee"
            wrong.add("max_queue_delay_ms", message=message)
        if in_flight < batch:
            message = f"{in_flight} lets no batch gather; allowed: at least {batch} (max_batch_tokens)"
            wrong.add("max_in_flight_tokens", message=message)
        wrong.raise_if_any()
        return self


class EngineSettings(_Section):
    """What computes."""

    kind: Literal["onnxruntime", "openvino", "numpy"] = "onnxruntime"
    """`openvino` is an extra (`penstock[openvino]`) and faster on some processors; `numpy` is slow and exact."""

    instances: int | None = Field(default=None, ge=1, le=256)
    """Batches that are computed at the same time. Default: as many as the process has processors for."""

    threads: int = Field(default=1, ge=1, le=256)
    """Threads of one instance. More instances give throughput, more threads make a lone text faster."""

    @property
    def instance_count(self) -> int:
        """`instances`, or what fits the processors that this process may use."""
        return self.instances or max(1, len(os.sched_getaffinity(0)) // self.threads)


class HttpSettings(_Section):
    """Where each worker answers `/metrics` and `/v2/health/...`."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """The address to listen on. Only this machine's own programs reach 127.0.0.1; 0.0.0.0 lets Prometheus in."""

    port: int = Field(default=8002, ge=0, le=65_533)
    """Of tokenize, or of a fused worker; encode and postprocess take the next two. 0: any free port."""


class KafkaSettings(_Section, extra="allow"):
    """librdkafka's settings under their own dotted names, for every client, for consumers, for producers."""

    __pydantic_extra__: KafkaMapping = Field(init=False)

    bootstrap_servers: Annotated[str, AfterValidator(_bootstrap_servers)] = Field(
        default=DEFAULT_BOOTSTRAP_SERVERS, alias="bootstrap.servers"
    )
    """The brokers to ask first. The command's flag and PENSTOCK_BOOTSTRAP_SERVERS come before it."""

    consumer: KafkaMapping = {}
    """For consumers only, before what is set for every client."""

    producer: KafkaMapping = {}
    """For producers only, before what is set for every client."""

    def client_settings(self) -> dict[str, KafkaValue]:
        """For any client, an admin client say."""
        return {"bootstrap.servers": self.bootstrap_servers, **self.__pydantic_extra__}

    def consumer_settings(self) -> dict[str, KafkaValue]:
        """What the user says of consumers; `group.id` and offsets are the worker's."""
        return {**self.client_settings(), **self.consumer}

    def producer_settings(self) -> dict[str, KafkaValue]:
        """What the user says of producers."""
        return {**self.client_settings(), **self.producer}

    @model_validator(mode="after")
    def _check(self) -> Self:
        wrong = Contradictions()
        places: dict[tuple[str, ...], KafkaValue] = {(name,): value for name, value in self.__pydantic_extra__.items()}
        places |= {("consumer", name): value for name, value in self.consumer.items()}
        places |= {("producer", name): value for name, value in self.producer.items()}
        for place in places:
            if place[-1] in _REFUSED_KAFKA_SETTINGS:
                wrong.add(*place, message=f"can't be set: {_REFUSED_KAFKA_SETTINGS[place[-1]]}")
        for place, message in _librdkafka_refusals(places):
            wrong.add(*place, message=f"librdkafka refuses it: {message}")
        wrong.raise_if_any()
        return self


def _at_least_one(models: tuple[ModelSettings, ...]) -> tuple[ModelSettings, ...]:
    if not models:
        raise ValueError("an empty list is not allowed; allowed: a list with at least one model")
    return models


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicNames:
    """The names of an ensemble's topics, in the order of the data path."""

    requests: str
    tokens: str
    encodings: str
    results: str
    dead_letters: str


class EnsembleSettings(_Section):
    """Everything that the ensemble file says."""

    name: Annotated[str, AfterValidator(_ensemble_name)]
    """Topics, consumer groups and metrics are named after it."""

    requests: RequestSettings = RequestSettings()
    topics: TopicSettings = TopicSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()

    models: Annotated[tuple[ModelSettings, ...], Field(strict=False), AfterValidator(_at_least_one)]
    """All read the same tokens, so they must share a tokenizer; a model with another one is another ensemble."""

    batching: BatchingSettings = BatchingSettings()
    engine: EngineSettings = EngineSettings()

    delivery: Literal["at_least_once"] = "at_least_once"
    """No request is lost; after a kill some are answered twice, with the same id."""

    commit_interval_ms: int = Field(default=500, ge=1, le=60_000)
    """How often delivered offsets are committed: load on the broker against what is answered twice after a kill."""

    drain_timeout_ms: int = Field(default=20_000, ge=0, le=240_000)
    """How long a worker that stops, or loses a partition, finishes what it has read. Under the 30 s between SIGTERM
    and SIGKILL, and under max.poll.interval.ms (300 s)."""

    http: HttpSettings = HttpSettings()
    kafka: KafkaSettings = Field(default_factory=KafkaSettings)

    @model_validator(mode="after")
    def _check(self) -> Self:
        wrong = Contradictions()
        models: dict[str, int] = {}
        for index, model in enumerate(self.models):
            if (first := models.setdefault(model.name, index)) != index:
                message = f"{shown(model.name)} is also the name of models[{first}]; allowed: a name of its own"
                wrong.add("models", index, "name", message=message)
        topics: dict[str, str] = {}
        for option, topic in asdict(self.topic_names).items():
            # Kafka's own metrics write _ for . and so it refuses two topics that differ by no more.
            if (other := topics.setdefault(topic.replace(".", "_"), option)) != option:
                message = f"{shown(topic)} is also the topic of {other}; allowed: a topic of its own"
                wrong.add("topics", option, message=message)
        wrong.raise_if_any()
        return self

    @property
    def topic_names(self) -> TopicNames:
        """What `topics` says, and where it says nothing what follows from the ensemble's name."""
        return TopicNames(
            requests=self.topics.requests or f"{self.name}.requests",
            tokens=self.topics.tokens or f"{self.name}.tokens",
            encodings=self.topics.encodings or f"{self.name}.encodings",
            results=self.topics.results or f"{self.name}.results",
            dead_letters=self.topics.dead_letters or f"{self.name}.dead-letters",
        )

    @property
    def tokenizer_source(self) -> str:
        """The tokenizer's folder or package."""
        return self.tokenizer.source or self.models[0].source

    def group_id(self, stage: Stage) -> str:
        """A stage's consumer group. A fused worker reads requests as `tokenize`, so that one may change over."""
        return f"{self.name}.{stage}"

    def http_port(self, stage: Stage) -> int:
        """A stage's port; a fused worker takes that of `tokenize`."""
        return self.http.port + STAGES.index(stage) if self.http.port else 0

    def log_lines(self) -> list[str]:
        """Each setting as `path = value`, topics by their names, secrets masked."""
        values = self.model_dump(by_alias=True)
        values["topics"] |= asdict(self.topic_names)
        kafka = values.pop("kafka")
        lines = [f"{path} = {value}" for path, value in _flat(values, "")]
        masked = ((path, "***" if _SECRET.search(path) else value) for path, value in _flat(kafka, "kafka"))
        return lines + [f"{path} = {value}" for path, value in masked]


def load_ensemble(
    path: str | Path, *, bootstrap: str | None = None, environ: Mapping[str, str] | None = None
) -> EnsembleSettings:
    """The ensemble file at `path`.

    `bootstrap`, a command's flag, comes before PENSTOCK_BOOTSTRAP_SERVERS in `environ`, and that before the file.
    Raises SettingsError with one line for every mistake.
    """
    settings = read_settings(Path(path), EnsembleSettings)
    override = bootstrap or (environ or {}).get(BOOTSTRAP_VARIABLE)
    if not override:
        return settings
    try:
        servers = _bootstrap_servers(override)
    except ValueError as err:
        raise SettingsError([f"{'--bootstrap' if bootstrap else BOOTSTRAP_VARIABLE}: {err}"]) from err
    return settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"bootstrap_servers": servers})})


def settings_for_model(source: str, task: str | None = None) -> EnsembleSettings:
    """One model with every default, for `penstock predict --model`: a folder (relative to the working folder) or a
    package. Its output is called like the folder or package."""
    name = re.sub(r"[^a-zA-Z0-9_-]+", "-", Path(source).name)[:_MAX_NAME_CHARACTERS] or "model"
    data = {"name": "predict", "models": [{"name": name, "source": source, "task": task}]}
    return validate_settings(data, EnsembleSettings, origin="--model")


def _librdkafka_refusals(places: Mapping[tuple[str, ...], KafkaValue]) -> Iterator[tuple[tuple[str, ...], str]]:
    """What librdkafka says of each setting alone and, where it takes each, of all together.

    A client without bootstrap.servers connects to nothing; making one takes 0.4 ms.
    """
    refused = False
    for place, value in places.items():
        if place[-1] in _REFUSED_KAFKA_SETTINGS:
            continue
        message = _refusal("producer" if place[0] == "producer" else "consumer", {place[-1]: value})
        # That a client can't be created may be due to what else is set.
        if message and not message.startswith("Failed to create"):
            refused = True
            yield place, message
    for client in () if refused else ("consumer", "producer"):
        relevant = {place: value for place, value in places.items() if len(place) == 1 or place[0] == client}
        settings = {p[-1]: value for p, value in relevant.items() if p[-1] not in _REFUSED_KAFKA_SETTINGS}
        if settings and (message := _refusal(client, settings)):
            yield (client,) if any(len(place) == 2 for place in relevant) else (), message


def _refusal(client: str, settings: Mapping[str, KafkaValue]) -> str | None:
    config = {"group.id": "penstock", **settings, "log_level": settings.get("log_level", 0)}
    try:
        if client == "consumer":
            Consumer(config).close()
        else:
            Producer(config)
    except KafkaException as err:
        return str(err.args[0].str()).strip()
    except (TypeError, ValueError, AttributeError) as err:  # the client's own settings, which take functions
        return str(err)
    return None


def _flat(value: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _flat(part, f"{path}.{name}" if path else str(name))
    elif isinstance(value, tuple):
        for index, part in enumerate(value):
            yield from _flat(part, f"{path}[{index}]")
    else:
        yield path, str(value) if isinstance(value, str | Path) else shown(value)
