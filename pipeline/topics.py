"""An ensemble's topics: which ones are wanted, how those of a broker differ, and making what is missing.

All have the same number of partitions, because a record keeps its partition from request to result. Existing topics
are never changed: partitions can't be taken away, and adding some moves keys while records are on their way.

The embedded broker has no admin API: its topics are made by `pipeline.broker.create_topics`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # they are exported, but not in mypy's sense
    AdminClient,
    ClusterMetadata,
    ConfigResource,
    NewTopic,
    TopicMetadata,
)

from pipeline.deadline import Deadline
from pipeline.errors import UserError
from pipeline.settings import EnsembleSettings

# A megabyte of text makes up to 4,700 windows of 1.5 KB, and what came in must be able to go out again as a result
# or a dead letter: far above Kafka's default of 1 MiB.
MAX_RECORD_BYTES = 16 << 20
# Keys and headers of a request.
_OVERHEAD_BYTES = 1 << 20

_SIZE = "max.message.bytes"
_CLEANUP = "cleanup.policy"
_SEGMENT = "segment.bytes"
# Kafka compacts what is behind the newest segment: that is read in whole at each start. It must hold a record.
_SEGMENT_BYTES = 2 * MAX_RECORD_BYTES

# A broker answers in milliseconds; creating takes it up to 0.1 s a topic.
_METADATA_TIMEOUT_S = 10.0
_ADMIN_TIMEOUT_S = 30.0
_AGAIN_S = 0.02


MAKE_MISSING = "make what is missing with: penstock topics FILE --create"


class TopicError(UserError):
    """Raised when a broker can't be asked about topics, or can't make them; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedTopic:
    """A topic as the ensemble wants it. `config` has Kafka's own names and counts when the topic is made."""

    name: str
    partitions: int
    replication_factor: int
    config: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicDifference:
    """One thing about a topic that isn't as wanted. `missing` ones can be created; the others are a person's."""

    topic: str
    message: str
    missing: bool = False

    def __str__(self) -> str:
        return f"{self.topic}: {self.message}"


def wanted_topics(settings: EnsembleSettings, *, fused: bool = False) -> list[WantedTopic]:
    """The topics in the order of the data path; fused stages need none between them."""
    names = settings.topic_names
    # JSON may need two bytes for one of text.
    request_bytes = 2 * settings.requests.max_text_bytes + _OVERHEAD_BYTES
    intermediate = {
        _SIZE: str(MAX_RECORD_BYTES),
        # Packs have no key, which a compacted topic refuses.
        _CLEANUP: "delete",
    }
    configs: dict[str, Mapping[str, str]] = {}
    for lane in (each.topic_names for each in settings.by_lane().values()):
        configs[lane.requests] = {_SIZE: str(request_bytes)}
        if not fused:
            configs |= {lane.tokens: intermediate, lane.encodings: intermediate}
    configs[names.results] = {_SIZE: str(MAX_RECORD_BYTES)}
    configs[names.dead_letters] = {_SIZE: str(MAX_RECORD_BYTES), _CLEANUP: "delete"}
    return [
        WantedTopic(
            name=name,
            partitions=settings.topics.partitions,
            replication_factor=settings.topics.replication_factor,
            config=config,
        )
        for name, config in configs.items()
    ]


def speech_topics(settings: EnsembleSettings) -> list[WantedTopic]:
    """Those that `penstock transcripts` has besides the ensemble's: the feed, the transcripts, and its state."""
    names = settings.speech_topic_names
    # A recognizer's message has words, times and more beside the text.
    configs: dict[str, Mapping[str, str]] = {
        names.speech: {_SIZE: str(MAX_RECORD_BYTES)},
        names.transcripts: {_SIZE: str(MAX_RECORD_BYTES)},
        # The newest of each key is the state; anything older is of no use, and anything newer must not go.
        names.changelog: {_SIZE: str(MAX_RECORD_BYTES), _CLEANUP: "compact", _SEGMENT: str(_SEGMENT_BYTES)},
    }
    return [
        WantedTopic(
            name=name,
            partitions=settings.topics.partitions,
            replication_factor=settings.topics.replication_factor,
            config=config,
        )
        for name, config in configs.items()
    ]


def all_topics(settings: EnsembleSettings, *, fused: bool = False) -> list[WantedTopic]:
    """Those of the stages, and, where the file speaks of speech, those of its transcripts."""
    return [*wanted_topics(settings, fused=fused), *(speech_topics(settings) if settings.speech is not None else ())]


def compare_topics(admin: AdminClient, wanted: Sequence[WantedTopic]) -> list[TopicDifference]:
    """Where the broker's topics differ from the wanted ones; empty where all is well.

    Sizes and cleanup are compared where the broker tells them (the embedded one doesn't). Raises TopicError.
    """
    metadata = broker_metadata(admin)
    existing = [topic for topic in wanted if topic.name in metadata.topics]
    configs = _configs(admin, existing) if existing and _has_controller(metadata) else {}
    differences: list[TopicDifference] = []
    for topic in wanted:
        found = metadata.topics.get(topic.name)
        messages = ["doesn't exist"] if found is None else _differences(topic, found, configs.get(topic.name, {}))
        differences += [
            TopicDifference(topic=topic.name, message=message, missing=found is None) for message in messages
        ]
    return differences


def require_topics(admin: AdminClient, wanted: Sequence[WantedTopic]) -> None:
    """Raises UserError, a line for each difference, where the broker's topics are not as wanted; TopicError."""
    differences = compare_topics(admin, wanted)
    if differences:
        missing = any(each.missing for each in differences)
        raise UserError(*map(str, differences), *([MAKE_MISSING] if missing else []))


def create_topics(admin: AdminClient, wanted: Sequence[WantedTopic]) -> list[str]:
    """Make the topics that don't exist; the names of those made.

    Raises TopicError: no broker, an embedded one, or one that refuses.
    """
    metadata = broker_metadata(admin)
    missing = [topic for topic in wanted if topic.name not in metadata.topics]
    if not missing:
        return []
    if not _has_controller(metadata):
        raise TopicError(
            f"this broker has no admin API (an embedded one): {', '.join(topic.name for topic in missing)} "
            "must be made by the process that runs it, see `penstock broker`"
        )
    requests = [
        NewTopic(topic.name, topic.partitions, topic.replication_factor, config=dict(topic.config)) for topic in missing
    ]
    made = admin.create_topics(requests, operation_timeout=_ADMIN_TIMEOUT_S, request_timeout=_ADMIN_TIMEOUT_S)
    names = [name for name, future in made.items() if _created(name, future)]
    _await_topics(admin, names)
    return names


def _await_topics(admin: AdminClient, names: Sequence[str]) -> None:
    """The controller knows them before the broker that was asked does."""
    deadline = Deadline(_ADMIN_TIMEOUT_S)
    while not all(name in broker_metadata(admin).topics for name in names):
        if deadline.expired:
            raise TopicError(f"made, but not there after {_ADMIN_TIMEOUT_S:g} s: {', '.join(names)}")
        time.sleep(_AGAIN_S)


def _created(name: str, future: Future[None]) -> bool:
    """False where somebody else made the topic in the meantime."""
    try:
        future.result()
    except KafkaException as err:
        error: KafkaError = err.args[0]
        if error.code() == KafkaError.TOPIC_ALREADY_EXISTS:
            return False
        raise TopicError(f"topic {name} can't be made: {error.str()}") from err
    return True


def broker_metadata(admin: AdminClient, *, timeout_s: float = _METADATA_TIMEOUT_S) -> ClusterMetadata:
    """A broker's topics. Raises TopicError where none answers. Of all topics: asking for one by name may create it."""
    try:
        return admin.list_topics(timeout=timeout_s)
    except KafkaException as err:
        message = f"no broker answers within {timeout_s:g} s: {err.args[0].str()}"
        raise TopicError(f"{message}; see kafka.bootstrap.servers") from err


def _has_controller(metadata: ClusterMetadata) -> bool:
    """Without one every admin request waits for its time-out: librdkafka's mock cluster names broker 0, which
    isn't there."""
    return metadata.controller_id in metadata.brokers


def _configs(admin: AdminClient, topics: Sequence[WantedTopic]) -> dict[str, dict[str, str]]:
    """Each topic's configuration, as far as the broker lets this user read it."""
    resources = [ConfigResource(ConfigResource.Type.TOPIC, topic.name) for topic in topics]
    configs: dict[str, dict[str, str]] = {}
    for resource, future in admin.describe_configs(resources, request_timeout=_ADMIN_TIMEOUT_S).items():
        try:
            entries = future.result()
        except KafkaException:
            continue  # describing may be forbidden where reading and writing are not
        configs[resource.name] = {name: entry.value for name, entry in entries.items() if entry.value is not None}
    return configs


def _differences(wanted: WantedTopic, found: TopicMetadata, config: Mapping[str, str]) -> list[str]:
    messages: list[str] = []
    if found.error is not None:
        return [f"can't be used: {found.error.str()}"]
    partitions = len(found.partitions)
    if partitions != wanted.partitions:
        messages.append(
            f"has {partitions} partitions, wanted are {wanted.partitions} (topics.partitions): "
            "all topics of an ensemble have the same number"
        )
    replicas = min((len(partition.replicas) for partition in found.partitions.values()), default=0)
    if replicas < wanted.replication_factor:
        messages.append(f"has replication factor {replicas}, wanted is {wanted.replication_factor}")
    if int(config.get(_SIZE, MAX_RECORD_BYTES)) < int(wanted.config[_SIZE]):
        messages.append(f"has {_SIZE}={config[_SIZE]}, wanted are at least {wanted.config[_SIZE]}")
    cleanup, wanted_cleanup = config.get(_CLEANUP), wanted.config.get(_CLEANUP)
    if cleanup is not None and wanted_cleanup == "compact" != cleanup:
        messages.append(f"has {_CLEANUP}={cleanup}, wanted is compact: it holds what must not be deleted with age")
    elif "compact" in (cleanup or "") and wanted_cleanup == "delete":
        messages.append(f"has {_CLEANUP}={config[_CLEANUP]}, wanted is delete: its records may have no key")
    return messages
