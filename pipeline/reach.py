"""The first question to a broker: whether it answers, and why not.

For commands that a person waits for. A worker waits for its broker however long it takes.
"""

from __future__ import annotations

import sys

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from pipeline import clients
from pipeline.broker import is_embedded
from pipeline.deadline import Deadline
from pipeline.errors import UserError
from pipeline.group_offsets import has_backlog
from pipeline.kafka_settings import KafkaSettings, KafkaValue
from pipeline.settings import STAGES, EnsembleSettings
from pipeline.topics import broker_metadata

# A broker answers in milliseconds, and one that is just starting in a few seconds.
_BUDGET_S = 10.0
# How late Ctrl-C is noticed: nothing interrupts librdkafka while it waits.
_LOOK_S = 0.5
# What librdkafka says where each address begins with another protocol than security.protocol: it takes none of them.
_NO_BROKER_OF_THE_PROTOCOL = "No brokers configured"


def reach_broker(kafka: KafkaSettings, *, budget_s: float = _BUDGET_S) -> AdminClient:
    """A client of a broker that has answered. A person who waits for it is told so.

    Raises UserError: one line with the address and librdkafka's own reason, at once where no time can help.
    """
    address = kafka.bootstrap_servers
    reasons: list[str] = []
    unresolved: set[str] = set()

    def note(error: KafkaError) -> None:
        if error.code() == KafkaError._RESOLVE:
            unresolved.add(error.str().partition("/")[0])
        # That all brokers are down follows from why each of them is, which was told before.
        if error.code() != KafkaError._ALL_BROKERS_DOWN or error.str() == _NO_BROKER_OF_THE_PROTOCOL:
            reasons[:] = [error.str()]

    admin = clients.admin(kafka.client_settings(), on_error=note)
    deadline = Deadline(budget_s)
    is_told = not sys.stderr.isatty()
    while True:
        try:
            admin.list_topics(timeout=_LOOK_S)
        except KafkaException as err:
            admin.poll(0)
            reason = reasons[0] if reasons else err.args[0].str()
            if reason == _NO_BROKER_OF_THE_PROTOCOL:
                raise UserError(
                    f"no broker is asked at {address}: what stands before :// is not kafka.security.protocol; "
                    "leave it out, or set that"
                ) from err
            if len(unresolved) == len(address.split(",")):
                raise UserError(
                    f"no broker is found at {address} ({reason}): correct kafka.bootstrap.servers or --bootstrap; "
                    "allowed: host:port"
                ) from err
            if deadline.expired:
                raise UserError(
                    f"no broker answers at {address} within {budget_s:g} s ({reason}): start one, or correct "
                    "kafka.bootstrap.servers or --bootstrap"
                ) from err
            if not is_told:
                is_told = True
                line = f"penstock: waiting for a broker at {address}, for at most {budget_s:g} s"
                print(line, file=sys.stderr)  # noqa: T201
        else:
            return admin


def existing_partitions(kafka: KafkaSettings, topic: str) -> list[int]:
    """A topic's partitions. Raises UserError where no broker answers or has it."""
    admin = reach_broker(kafka)
    found = broker_metadata(admin).topics.get(topic)
    if found is None:
        raise UserError(f"{topic}: no such topic at {kafka.bootstrap_servers}; make it: penstock topics FILE --create")
    if found.error is not None:
        raise UserError(f"{topic}: can't be used: {found.error.str()}")
    return sorted(found.partitions)


def require_no_packs(settings: EnsembleSettings, admin: AdminClient) -> None:
    """Raises UserError where packs wait between the stages: a fused worker doesn't read them, and their requests are
    committed. TopicError, WorkerFailure where the broker doesn't say."""
    topics = broker_metadata(admin).topics
    between = [
        (lane.group_id(stage), stage, topic)
        for lane in settings.by_lane().values()
        for stage, topic in zip(STAGES[1:], (lane.topic_names.tokens, lane.topic_names.encodings), strict=True)
    ]
    for group, stage, topic in between:
        partitions = [*topics[topic].partitions] if topic in topics else []
        if has_backlog(settings.kafka.consumer_settings(), group, topic, partitions):
            raise UserError(
                f"{topic}: holds packs that {stage} has not answered, and --fused would leave them: run the stages "
                "apart (without --fused) until they are, or delete the topic to give them up"
            )


def fit_to_broker(settings: EnsembleSettings, admin: AdminClient) -> EnsembleSettings:
    """With what an embedded broker needs, unless the file says otherwise. Of a classic group there one worker has all
    partitions, and the others none. A waiting fetch is not woken, and its wait is what a record is late; so with
    `objective: latency` it is short. TopicError where no broker answers."""
    kafka = settings.kafka
    said = kafka.consumer_settings().keys()
    needed: dict[str, KafkaValue] = {}
    if not said & {"group.protocol", *clients.CLASSIC_GROUP_DEFAULTS}:
        needed["group.protocol"] = "consumer"
    if settings.objective == "latency" and "fetch.wait.max.ms" not in said:
        needed["fetch.wait.max.ms"] = 1
    if not needed or not is_embedded(broker_metadata(admin).topics):
        return settings
    kafka = kafka.model_copy(update={"consumer": {**kafka.consumer, **needed}})
    return settings.model_copy(update={"kafka": kafka})


def require_transactions(settings: EnsembleSettings, admin: AdminClient) -> None:
    """Raises UserError where the ensemble promises what this broker can't keep: an embedded one says yes to every
    transaction and keeps none. TopicError where no broker answers."""
    if settings.delivery == "exactly_once" and is_embedded(broker_metadata(admin).topics):
        raise UserError(
            "delivery: exactly_once needs a Kafka with transactions, and the embedded broker has none: "
            "start one with `penstock broker --apache`"
        )
