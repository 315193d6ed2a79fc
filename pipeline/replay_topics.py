"""Where `penstock replay` writes to: topics beside the live ones, and never one of them."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import NamedTuple

from pipeline.errors import UserError
from pipeline.names import topic_name
from pipeline.reach import reach_broker
from pipeline.settings import EnsembleSettings
from pipeline.topics import WantedTopic, compare_topics, wanted_topics
from pipeline.up import make_missing


class ReplayTopics(NamedTuple):
    results: str
    dead_letters: str


def replay_topics(settings: EnsembleSettings, into: str | None, partitions: int, *, create: bool) -> ReplayTopics:
    """The two topics, which are there, or with `create` are made. Raises UserError."""
    results = into if into is not None else f"{settings.name}.replay"
    topics = ReplayTopics(results, f"{results}.dead-letters")
    live = {topic.replace(".", "_"): option for option, topic in asdict(settings.topic_names).items()}
    for topic in topics:
        try:
            topic_name(topic)
        except ValueError as err:
            raise UserError(f"--into: {err}") from err
        # Kafka's own metrics write _ for . and so it refuses two topics that differ by no more.
        if option := live.get(topic.replace(".", "_")):
            raise UserError(f"--into: {topic} is the live ensemble's topic of {option}; name another")
    admin = reach_broker(settings.kafka)
    wanted = _wanted(settings, topics, partitions)
    if create:
        for topic in make_missing(settings, admin, wanted):
            sys.stderr.write(f"penstock: made topic {topic}\n")
    differences = compare_topics(admin, wanted)
    if differences:
        hint = ["make what is missing with --create"] if any(each.missing for each in differences) else []
        raise UserError(*map(str, differences), *hint)
    return topics


def _wanted(settings: EnsembleSettings, topics: ReplayTopics, partitions: int) -> list[WantedTopic]:
    """As the live ones, with as many partitions as the requests have: a record keeps its partition."""
    names = settings.topic_names
    live = {topic.name: topic for topic in wanted_topics(settings)}
    return [
        WantedTopic(
            name=name,
            partitions=partitions,
            replication_factor=settings.topics.replication_factor,
            config=live[like].config,
        )
        for name, like in ((topics.results, names.results), (topics.dead_letters, names.dead_letters))
    ]
