"""What an ensemble is: its topics, tokenizer, models, batching, engine and Kafka settings, validated together.

One frozen object, built once from the ensemble file or for one model. Every option's docstring says why one would
change it and what it touches. What is wrong with a model's folder, or with stride and special tokens, is known only
to who loads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pipeline.class_paths import ClassPath
from pipeline.delivery_settings import DEFAULT_COMMIT_INTERVAL_MS, Delivery, TransactionSettings
from pipeline.engine_settings import (
    GPU_BATCHING,
    LATENCY_BATCHING,
    LATENCY_GPU_BATCHING,
    MAX_THREADS,
    BatchingSettings,
    EngineSettings,
    processors,
)
from pipeline.ensemble_file import Section, WholeFile, read_settings, validate_settings
from pipeline.kafka_settings import KafkaSettings, checked_servers, is_secret
from pipeline.mistakes import Contradictions, SettingsError, shown
from pipeline.model_settings import ModelSettings, TokenizerSettings
from pipeline.names import MAX_NAME_CHARACTERS, MAX_TOPIC_CHARACTERS, Name, TopicName
from pipeline.share_settings import EncodeOrder, ShareGroupSettings
from pipeline.speech_settings import SpeechSettings
from schemas.headers import HeaderStyle
from schemas.requests import RequestFormat

Stage = Literal["tokenize", "encode", "postprocess"]

STAGES: tuple[Stage, ...] = ("tokenize", "encode", "postprocess")
# Which have an HTTP port each, in this order.
PROCESSES: tuple[Stage | Literal["transcripts"], ...] = (*STAGES, "transcripts")
BOOTSTRAP_VARIABLE = "PENSTOCK_BOOTSTRAP_SERVERS"


class RequestSettings(Section):
    """How a record of the requests topic is read."""

    format: RequestFormat = "json"
    """`json` is `{"text": ..., "id": ...}`; `text` takes the whole value as the text, for producers that have
    nothing else to say."""

    max_text_bytes: int = Field(default=1 << 20, ge=1, le=4 << 20)
    """Longer texts are dead letters. So may be a shorter one that is too large between the stages, where a record has
    up to 16 MiB: 4 MiB of nothing but punctuation, a token a byte, are 19,000 windows, of 1.5 KB at 384 numbers a
    vector. Its reason is `result_too_large`."""

    deadline_ms: int | None = Field(default=None, ge=1, le=1 << 40)
    """How long after it was written, by its record's time, a request is worth an answer; null: for ever. One that waits
    longer is not computed, at whichever stage it is, and its result has no outputs and says `"unanswered":
    "expired"`. What is final (`penstock.final: true`) is exempt. A request's header `ce_expirytime` (RFC 3339) says
    it of one request; the earlier counts."""

    answer_superseded: bool = False
    """Whether a revision of an utterance that a newer one took the place of, while it waited for the engine, is
    answered too: without outputs, and with `"unanswered": "superseded"`. Revisions are told by headers:
    `penstock.utterance`, `penstock.revision` and `penstock.final`."""


class TopicSettings(Section):
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


class DeadLetterSettings(Section):
    """What a dead letter looks like."""

    header_style: HeaderStyle = "kafka"
    """Which names its headers have, so that tools that know them can read it: `kafka` is Kafka's own,
    `__dlq.errors.topic` and so on; `connect` Kafka Connect's, `__connect.errors.topic`; `spring` Spring Kafka's,
    `kafka_dlt-original-topic`. `penstock dead-letters` reads all three, also mixed in one topic."""


def _host(host: str) -> str:
    """An address, or what may be a machine's name: a label that is a number makes no name. Raises ValueError."""
    try:
        ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        if not re.fullmatch(r"([A-Za-z0-9_-]+\.)*(?![0-9]+$)[A-Za-z0-9_-]+", host):
            allowed = "an address or a name of this machine, such as 127.0.0.1, 0.0.0.0, ::1"
            raise ValueError(f"{shown(host)} is not allowed; allowed: {allowed}") from None
    return host


class HttpSettings(Section):
    """Where each worker answers `/metrics` and `/v2/health/...`."""

    host: Annotated[str, AfterValidator(_host)] = "127.0.0.1"
    """The address to listen on. Only this machine's own programs reach 127.0.0.1; 0.0.0.0 lets Prometheus in."""

    port: int = Field(default=8002, ge=0, le=65_532)
    """Of tokenize, or of a fused worker; encode, postprocess and transcripts take the next ones. 0: any free port. A
    worker that finds its port taken, as a second one of its stage on this machine does, takes any free one; its log
    says which."""


def _at_least_one(models: tuple[ModelSettings, ...]) -> tuple[ModelSettings, ...]:
    if not models:
        raise ValueError("an empty list is not allowed; allowed: a list with at least one model")
    return models


def _with_nothing_in_it(section: object) -> object:
    """A section of which the file has no more than its name."""
    return {} if section is None else section


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechTopicNames:
    """The names of the topics that `penstock transcripts` has besides the ensemble's own."""

    speech: str
    transcripts: str
    changelog: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicNames:
    """The names of an ensemble's topics, in the order of the data path."""

    requests: str
    tokens: str
    encodings: str
    results: str
    dead_letters: str


class EnsembleSettings(WholeFile):
    """Everything that the ensemble file says."""

    name: Name
    """Topics, consumer groups and metrics are named after it."""

    requests: RequestSettings = RequestSettings()
    topics: TopicSettings = TopicSettings()
    dead_letters: DeadLetterSettings = DeadLetterSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()

    models: Annotated[tuple[ModelSettings, ...], Field(strict=False), AfterValidator(_at_least_one)]
    """All read the same tokens, so they must share a tokenizer; a model with another one is another ensemble."""

    objective: Literal["throughput", "latency"] = "throughput"
    """What is more wanted. `latency`, for speech and other conversations: all stages in one process (`penstock up`),
    nothing waits for company (`batching.pack_delay_ms: 0`), batches are small (`batching.max_batch_tokens` 512, on a
    GPU 2048, `max_batch_size` as many), so that who comes waits for little, and on processors one engine computes on
    all of them (`engine.instances: 1`, `engine.threads`). What the file says itself comes before."""

    batching: BatchingSettings = BatchingSettings()
    engine: EngineSettings = EngineSettings()

    delivery: Delivery = "at_least_once"
    """`at_least_once`: no request is lost; after a kill some are answered twice, with the same id. `exactly_once`:
    results, dead letters and offsets are committed together, and whoever reads committed records only (Kafka's
    `isolation.level`) sees each once. It costs the wait for the commit at each stage, and needs a Kafka with
    transactions: the embedded broker has none."""

    commit_interval_ms: int | None = Field(default=None, ge=1, le=60_000)
    """How often delivered offsets are committed: load on the broker against what is answered twice after a kill, or,
    with exactly_once, against how long a result is not seen yet. Default: 500, with exactly_once 100."""

    transactions: TransactionSettings = TransactionSettings()

    encode_order: EncodeOrder = "partition"
    """`partition`: encode keeps the order of each partition, and no more encode workers than partitions have work.
    `none`, an experiment: any number of encode workers share all packs (a share group, KIP-932). Given up are order, so
    that results of one key may overtake each other, and `exactly_once`. It needs Apache Kafka 4.2 or newer: the
    embedded broker has no share groups. Changing it begins a new group, which answers all packs that are kept anew."""

    share_group: ShareGroupSettings = ShareGroupSettings()

    drain_timeout_ms: int = Field(default=20_000, ge=0, le=240_000)
    """How long a worker that stops, or loses a partition, finishes what it has read. Under the 30 s between SIGTERM
    and SIGKILL, and under max.poll.interval.ms (300 s)."""

    speech: Annotated[SpeechSettings | None, BeforeValidator(_with_nothing_in_it)] = None
    """Where it is there, `penstock up` starts the transcripts too. `penstock transcripts` runs without it, on its
    defaults."""

    http: HttpSettings = HttpSettings()
    kafka: KafkaSettings = Field(default_factory=KafkaSettings)

    @model_validator(mode="before")
    @classmethod
    def _batch_as_the_engine_likes(cls, data: Any) -> Any:
        """And as the objective wants it: a GPU is fed by the thousand, save where somebody waits for the answer."""
        if not isinstance(data, Mapping):
            return data
        engine, batching = data.get("engine", {}), data.get("batching", {})
        if not isinstance(engine, Mapping) or not isinstance(batching, Mapping):
            return data
        on_gpu = engine.get("kind") == "tensorrt"
        by_default: dict[str, int] = {**GPU_BATCHING} if on_gpu else {}
        if data.get("objective") == "latency":
            by_default = {**by_default, **(LATENCY_GPU_BATCHING if on_gpu else LATENCY_BATCHING)}
            if isinstance(row := batching.get("row_length"), int):
                by_default["max_batch_tokens"] = max(row, by_default["max_batch_tokens"])
            # Either is of little use without the other, and who says one has thought of both.
            if not on_gpu and not engine.keys() & {"instances", "threads"}:
                engine = {**engine, "instances": 1, "threads": min(MAX_THREADS, processors())}
        return {**data, "engine": engine, "batching": {**by_default, **batching}}

    @model_validator(mode="after")
    def _check(self) -> Self:
        wrong = Contradictions()
        models: dict[str, int] = {}
        for index, model in enumerate(self.models):
            if model.name in STAGES:
                message = f"{model.name!r} is a stage's name, and metrics would mix them up; allowed: any other name"
                wrong.add("models", index, "name", message=message)
            if (first := models.setdefault(model.name, index)) != index:
                message = f"{shown(model.name)} is also the name of models[{first}]; allowed: a name of its own"
                wrong.add("models", index, "name", message=message)
            if model.onnx is not None and isinstance(self.engine.kind, ClassPath):
                message = f"has no effect with engine.kind: {self.engine.kind}; allowed with: onnxruntime, openvino"
                wrong.add("models", index, "onnx", message=message)
            if model.plan is not None and not self.engine.on_gpu:
                message = f"a plan needs engine.kind: tensorrt, and not {self.engine.kind}; allowed with any: onnx"
                wrong.add("models", index, "plan", message=message)
        topics: dict[str, str] = {}
        names = [("topics", option, topic) for option, topic in asdict(self.topic_names).items()]
        if self.speech is not None:
            speech = self.speech_topic_names
            names += [("speech", "topic", speech.speech), ("speech", "transcripts", speech.transcripts)]
        for section, option, topic in names:
            # Kafka's own metrics write _ for . and so it refuses two topics that differ by no more.
            if (other := topics.setdefault(topic.replace(".", "_"), option)) != option:
                message = f"{shown(topic)} is also the topic of {other}; allowed: a topic of its own"
                wrong.add(section, option, message=message)
        for name, lane in self.other_lanes().items():
            for topic in (lane.topic_names.requests, lane.topic_names.tokens, lane.topic_names.encodings):
                other = topics.setdefault(topic.replace(".", "_"), name)
                if other != name or len(topic) > MAX_TOPIC_CHARACTERS:
                    message = f"{shown(topic)} would be a topic twice, or too long; allowed: another name of the lane"
                    wrong.add("batching", "lanes", message=message)
                    break
        if self.encode_order == "none" and len(self.batching.lanes) > 1:
            wrong.add("encode_order", message="'none' is not allowed with batching.lanes; allowed: partition")
        if self.encode_order == "none" and self.delivery == "exactly_once":
            message = "'none' is not allowed with delivery: exactly_once (share groups have no transactions)"
            wrong.add("encode_order", message=f"{message}; allowed: partition")
        if self.speech is not None and self.most_speech_bytes < 1:
            message = f"leaves no room for text in the {self.requests.max_text_bytes} bytes of requests.max_text_bytes"
            wrong.add("speech", "context_characters", message=f"{message}; allowed: less, at 4 bytes a character")
        wrong.raise_if_any()
        return self

    @property
    def speech_or_default(self) -> SpeechSettings:
        """What `speech` says, or its defaults."""
        return self.speech or SpeechSettings()

    @property
    def most_speech_bytes(self) -> int:
        """How long a hypothesis may be, so that it and what is read before it make a request."""
        speech = self.speech_or_default
        context_bytes = 4 * speech.context_characters + 1 if speech.context_characters else 0
        return min(speech.max_text_bytes, self.requests.max_text_bytes - context_bytes)

    @property
    def speech_topic_names(self) -> SpeechTopicNames:
        """What `speech` says, and where it says nothing what follows from the ensemble's name."""
        speech = self.speech_or_default
        return SpeechTopicNames(
            speech=speech.topic or f"{self.name}.speech",
            transcripts=speech.transcripts or f"{self.name}.transcripts",
            changelog=f"{self.transcripts_group}-streams-changelog",
        )

    @property
    def transcripts_group(self) -> str:
        """The consumer group of `penstock transcripts`."""
        return f"{self.name}.transcripts"

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

    @property
    def tokenizer_place(self) -> tuple[str | int, ...]:
        """Where the file names it."""
        return ("tokenizer", "source") if self.tokenizer.source else ("models", 0, "source")

    def computes_checkpoint(self, index: int) -> bool:
        """Whether a model's graph is written here, and neither the user's own nor computed by a class of theirs."""
        return self.models[index].is_checkpoint and not isinstance(self.engine.kind, ClassPath)

    @property
    def commit_every_ms(self) -> int:
        """`commit_interval_ms`, or what suits the delivery."""
        return self.commit_interval_ms or DEFAULT_COMMIT_INTERVAL_MS[self.delivery]

    def by_lane(self) -> dict[str, EnsembleSettings]:
        """By lane, as its reader sees it: the first lane has the ensemble's topics and groups. Of each other one the
        requests and packs go over topics of its own, and its groups are its own."""
        first, *_ = self.batching.lanes
        return {first: self, **self.other_lanes()}

    def other_lanes(self) -> dict[str, EnsembleSettings]:
        """The same of all lanes but the first."""
        names = self.topic_names
        shared = {topic: getattr(names, topic) for topic in ("results", "dead_letters")}
        found: dict[str, EnsembleSettings] = {}
        for lane in [*self.batching.lanes][1:]:
            own = {topic: f"{getattr(names, topic)}.{lane}" for topic in ("requests", "tokens", "encodings")}
            topics = self.topics.model_copy(update=own | shared)
            # No ensemble is called so.
            found[lane] = self.model_copy(update={"name": f"{self.name}:{lane}", "topics": topics})
        return found

    def runs_fused(self, wanted: bool = False) -> bool:
        """Whether all stages run in one process, by the command or by the objective."""
        return wanted or self.objective == "latency"

    def group_id(self, stage: Stage) -> str:
        """A stage's consumer group. A fused worker reads requests as `tokenize`, so that one may change over."""
        if stage == "encode" and self.encode_order == "none":
            return f"{self.name}.encode-shared"  # a group of one kind can't become one of the other
        return f"{self.name}.{stage}"

    def http_port(self, process: Stage | Literal["transcripts"]) -> int:
        """A stage's port, and the next one after them; a fused worker takes that of `tokenize`."""
        return self.http.port + PROCESSES.index(process) if self.http.port else 0

    def log_lines(self, *, changed: bool = False) -> list[str]:
        """Each setting as `path = value`, topics by their names, secrets masked; or those that are no defaults."""
        values = self.model_dump(by_alias=True, exclude_defaults=changed)
        if not changed:
            values["topics"] |= asdict(self.topic_names)
        kafka = values.pop("kafka", {})
        lines = [f"{path} = {'***' if _is_secret_option(path) else value}" for path, value in _flat(values, "")]
        masked = ((path, "***" if is_secret(path) else value) for path, value in _flat(kafka, "kafka"))
        return lines + [f"{path} = {value}" for path, value in masked]


def load_ensemble(
    path: str | Path, *, bootstrap: str | None = None, environ: Mapping[str, str] | None = None
) -> EnsembleSettings:
    """The ensemble file at `path`.

    `bootstrap`, a command's flag, comes before PENSTOCK_BOOTSTRAP_SERVERS in `environ`, and that before the file. A
    variable that is empty counts as not set; a flag that is empty is a mistake. Raises SettingsError with one line for
    every mistake.
    """
    settings = read_settings(Path(path), EnsembleSettings)
    override = bootstrap if bootstrap is not None else (environ or {}).get(BOOTSTRAP_VARIABLE) or None
    if override is None:
        return settings
    try:
        servers = checked_servers(override)
    except ValueError as err:
        raise SettingsError([f"{BOOTSTRAP_VARIABLE if bootstrap is None else '--bootstrap'}: {err}"]) from err
    return settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"bootstrap_servers": servers})})


def settings_for_model(source: str, task: str | None = None) -> EnsembleSettings:
    """One model with every default, for `penstock predict --model`: a folder (relative to the working folder) or a
    package. Its output is called like the folder or package."""
    name = re.sub(r"[^a-zA-Z0-9_-]+", "-", Path(source).name)[:MAX_NAME_CHARACTERS]
    if not name or name in STAGES:
        name = "model"
    data = {"name": "predict", "models": [{"name": name, "source": source, "task": task}]}
    return validate_settings(data, EnsembleSettings, origin="--model")


def _is_secret_option(path: str) -> bool:
    """Of a class of the user's own: what that is called tells what it is."""
    _, _, option = path.partition("options.")
    return bool(option) and is_secret(option)


def _flat(value: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _flat(part, f"{path}.{name}" if path else str(name))
    elif isinstance(value, tuple):
        for index, part in enumerate(value):
            yield from _flat(part, f"{path}[{index}]")
    else:
        yield path, str(value) if isinstance(value, str | Path) else shown(value)
