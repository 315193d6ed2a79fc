"""A member of a share group, and the records of its last poll.

librdkafka lets a member poll again when every record of its last poll is accepted, released or rejected, and it has no
way to renew a lock (confluent-kafka 2.16, a preview). So a worker has two members: one fetches while the records of the
other are computed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from confluent_kafka import (
    AcknowledgeType,
    IllegalStateException,
    KafkaException,
    Message,
    ShareConsumer,
    TopicPartition,
)

from schemas.records import Source

log = logging.getLogger("penstock.share_member")


class ShareMember:
    """Belongs to the thread that polls. `on_refused(source)`: the broker did not take the record's acceptance, and
    hands it out again."""

    def __init__(self, consumer: ShareConsumer, topic: str, *, on_refused: Callable[[Source], None]) -> None:
        self._consumer = consumer
        self._topic = topic
        self._on_refused = on_refused
        self._held: set[Source] = set()
        self._accepted: set[Source] = set()
        self._unsent = False

    @property
    def free(self) -> bool:
        """Whether it may poll: nothing of its last poll is open."""
        return not self._held

    def join(self) -> None:
        """Become a member; the first records come some seconds later, with a heartbeat."""
        self._consumer.set_acknowledgement_commit_callback(self._on_acknowledged)
        self._consumer.subscribe([self._topic])

    def poll(self, wait_s: float) -> list[Message]:
        """What it was handed: each is held until it is accepted or released. Raises KafkaException."""
        assert self.free
        messages = list(self._consumer.poll(wait_s))
        self._unsent = False  # a poll sends what was acknowledged
        self._held = {
            Source(self._topic, message.partition() or 0, message.offset() or 0)
            for message in messages
            if message.error() is None
        }
        return messages

    def accept(self, source: Source) -> None:
        """A record is answered: nobody gets it again."""
        if self._acknowledge(source, AcknowledgeType.ACCEPT):
            self._accepted.add(source)
        else:
            self._on_refused(source)

    def send(self) -> None:
        """Tell the broker, without waiting for it."""
        if self._unsent:
            self._unsent = False
            self._consumer.commit_async()

    def leave(self) -> None:
        """Release what is held, so that others get it at once, and leave the group. Waits for the broker."""
        for source in [*self._held]:
            self._acknowledge(source, AcknowledgeType.RELEASE)
        self._consumer.close()

    def _acknowledge(self, source: Source, how: AcknowledgeType) -> bool:
        self._held.discard(source)
        self._unsent = True
        try:
            self._consumer.acknowledge_offset(source.topic, source.partition, source.offset, how)
        except IllegalStateException as err:
            # The client lost its session with the broker, and with it what it held.
            log.debug("%s: %s", source, err)
            return False
        return True

    def _on_acknowledged(self, offsets: Mapping[TopicPartition, set[int]], error: KafkaException | None) -> None:
        for place, numbers in offsets.items():
            sources = {Source(self._topic, place.partition, number) for number in numbers}
            accepted = sources & self._accepted
            self._accepted -= accepted
            if error is not None and accepted:
                log.warning(
                    "%s [%d]: %d answered packs are not accepted (%s): they come again",
                    *(self._topic, place.partition, len(accepted), error.args[0].str()),
                )
                for source in accepted:
                    self._on_refused(source)
