"""The ensemble file's section `kafka`: the brokers' address, and librdkafka's settings, which librdkafka checks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Self

from confluent_kafka import Consumer, KafkaException, Producer
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pipeline.ensemble_file import Section
from pipeline.kafka_names import close_name
from pipeline.mistakes import MAX_NUMBER, Contradictions, shown

KafkaValue = str | int | float | bool

DEFAULT_BOOTSTRAP_SERVERS = "127.0.0.1:9092"

# What an address may begin with, as in ssl://kafka:9093.
_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")

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
# What "nothing is lost, order is kept" rests on: a report of delivery must mean that all replicas have it.
_ALL: frozenset[KafkaValue] = frozenset({"all", "-1", -1})
_DELIVERY: dict[str, tuple[frozenset[KafkaValue], str]] = {
    "acks": (_ALL, "all"),
    "request.required.acks": (_ALL, "all"),
    "enable.idempotence": (frozenset({True, "true"}), "true"),
}
_KAFKA_VALUES = "a string, a number, true, false"
# How librdkafka begins what it says of a name that it doesn't know.
_UNKNOWN = "No such configuration property"
# How the client begins what speaks against all its settings together.
_FAILED = "Failed to create "
_JUDGED_HERE = _REFUSED_KAFKA_SETTINGS.keys() | _DELIVERY.keys()
_SECRET = re.compile(r"password|passphrase|secret|token|jaas|private|key\.pem|oauthbearer\.config", re.IGNORECASE)


def is_secret(path: str) -> bool:
    """Whether a setting's value must not be printed, by what it is called."""
    return _SECRET.search(path) is not None


def checked_servers(servers: str) -> str:
    """The brokers' addresses as they are. Raises ValueError."""
    for server in servers.split(","):
        address = re.fullmatch(
            rf"\s*((?i:{'|'.join(_PROTOCOLS)})://)?(\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+)(:(\d{{1,5}}))?\s*", server
        )
        if not address or int(address[4] or 1) not in range(1, 65536):
            before = f"; before it at most {', '.join(_PROTOCOLS)} and ://" if "://" in server else ""
            raise ValueError(
                f"{shown(servers)} is not allowed; allowed: host:port, several with commas between{before}"
            )
    return servers


def _kafka_value(value: object) -> object:
    # The value itself isn't told: it may be a password.
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise ValueError(f"a number of more than 64 bits is not allowed; allowed: {_KAFKA_VALUES}")
    if not isinstance(value, str | int | float):
        raise ValueError(f"{shown(value)} is not allowed; allowed: {_KAFKA_VALUES}")
    if isinstance(value, str) and re.search("[\ud800-\udfff]", value):  # the client can't encode it, and breaks
        raise ValueError(f"half of a surrogate pair is not allowed; allowed: {_KAFKA_VALUES}")
    return value


# A validator of its own, since of a union pydantic would tell each member's opinion.
KafkaMapping = dict[str, Annotated[KafkaValue, BeforeValidator(_kafka_value)]]


class KafkaSettings(Section, extra="allow"):
    """librdkafka's settings under their own dotted names, for every client, for consumers, for producers."""

    __pydantic_extra__: KafkaMapping = Field(init=False)

    bootstrap_servers: Annotated[str, AfterValidator(checked_servers)] = Field(
        default=DEFAULT_BOOTSTRAP_SERVERS, alias="bootstrap.servers"
    )
    """The brokers to ask first. The command's flag and PENSTOCK_BOOTSTRAP_SERVERS come before it."""

    consumer: KafkaMapping = Field(default_factory=dict)
    """For consumers only, before what is set for every client."""

    producer: KafkaMapping = Field(default_factory=dict)
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
        for place, value in places.items():
            if place[-1] in _REFUSED_KAFKA_SETTINGS:
                wrong.add(*place, message=f"can't be set: {_REFUSED_KAFKA_SETTINGS[place[-1]]}")
            elif place[-1] in _DELIVERY and value not in _DELIVERY[place[-1]][0]:
                wrong.add(
                    *place,
                    message=f"{shown(value)} is not allowed: delivery would no longer be at least once and "
                    f"in order; allowed: {_DELIVERY[place[-1]][1]}",
                )
        for place, message in _librdkafka_refusals(places):
            wrong.add(*place, message=message)
        wrong.raise_if_any()
        return self


def _librdkafka_refusals(places: Mapping[tuple[str, ...], KafkaValue]) -> Iterator[tuple[tuple[str, ...], str]]:
    """What librdkafka says of each setting alone and, where it takes each, of all together.

    A client without bootstrap.servers connects to nothing; making one takes 0.4 ms.
    """
    refused = False
    for place, value in places.items():
        if place[-1] in _JUDGED_HERE:
            continue
        message = _refusal("producer" if place[0] == "producer" else "consumer", {place[-1]: value})
        # That a client can't be created may be due to what else is set.
        if message and not message.startswith(_FAILED):
            refused = True
            yield place, _no_such(place[-1]) if message.startswith(_UNKNOWN) else f"librdkafka refuses it: {message}"
    if refused:
        return
    messages: dict[str, list[str]] = {}
    for client in ("consumer", "producer"):
        relevant = {place: value for place, value in places.items() if len(place) == 1 or place[0] == client}
        settings = {p[-1]: value for p, value in relevant.items() if p[-1] not in _JUDGED_HERE}
        if settings and (message := _refusal(client, settings)):
            messages.setdefault(message.removeprefix(f"{_FAILED}{client}: "), []).append(client)
    for message, clients in messages.items():
        # What both clients are refused for is one mistake, made for every client.
        own = len(clients) == 1 and any(place[0] == clients[0] for place in places)
        yield (clients[0],) if own else (), f"librdkafka refuses it: {message}"


def _no_such(name: str) -> str:
    close = close_name(name)
    return "no such option; " + (f"did you mean {close}?" if close else "allowed: librdkafka's CONFIGURATION.md")


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
