"""A member of the transcripts' group: reads the feed, the results and the dead letters of some partitions.

One thread. It reads a batch, the desk says what follows from it, and all of that is delivered before the next batch is
read. So where partitions come or go, or a delivery fails, nothing is on its way that must be waited for: the state is
read from the changelog and the records from the group's offsets, as after a crash. Meanwhile it goes on polling.

A partition's feed, results, dead letters and state are one member's: the group assigns by ranges, which gives the same
numbers of all topics to the same member.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import cache

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from pipeline import clients
from pipeline.clock import now_ms, wall_ms
from pipeline.deadline import returns_within
from pipeline.errors import WorkerFailure
from pipeline.group_offsets import next_offsets
from pipeline.metrics import StageMetrics
from pipeline.settings import EnsembleSettings
from pipeline.speech.changelog import ChangelogReader
from pipeline.speech.delivery import Batch, NotDelivered, TranscriptsDelivery
from pipeline.speech.desk import Desk
from pipeline.speech.outgoing import Outgoing, without_superseded
from pipeline.speech.partitions import Partitions, Place
from pipeline.worker_health import OnError, WorkerHealth, told
from schemas.errors import BadRecord, Reason
from schemas.records import InputRecord, Source

log = logging.getLogger("penstock.transcripts")

# The more wait, the more of them are superseded by others of the same batch, and the less a record costs: so falling
# behind ends by itself.
_MAX_BATCH = 4_000
# How long an idle poll waits, and so how late a stop is noticed.
_POLL_S = 0.05
# How late silence and what is overdue are noticed, and how often metrics are told.
_TICK_MS = 250.0
# Asking a broker where a partition begins or ends, what is committed, or whether it is back.
_ASK_S = 1.0
# Leaving the group, where a broker that is away does not answer.
_LEAVE_S = 5.0
# How often it is told that something is still awaited.
_TELL_EVERY_MS = 10_000.0
_FOR_TRANSACTIONS = "waiting for the broker to take transactions"
_FOR_THE_GROUP = "waiting for the consumer group"
_FOR_THE_STATE = "reading the state of its streams"


class TranscriptsWorker:
    """`connect` makes the consumer, which reports errors; `deliver` what delivers what follows from what it reads."""

    def __init__(
        self,
        settings: EnsembleSettings,
        *,
        connect: Callable[[OnError], Consumer],
        deliver: Callable[[TranscriptsWorker], TranscriptsDelivery],
        metrics: StageMetrics,
        clock_ms: Callable[[], float] = now_ms,
        clock_wall_ms: Callable[[], float] = wall_ms,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        names = settings.topic_names
        self.desk = Desk(settings)
        self._settings = settings
        self._feed = settings.speech_topic_names.speech
        self._changelog = settings.speech_topic_names.changelog
        self._handlers = {
            self._feed: self.desk.speech,
            names.results: self.desk.result,
            names.dead_letters: self.desk.dead_letter,
        }
        self.health = WorkerHealth(self._feed, clock_ms=clock_ms)
        self._metrics = metrics
        self._clock_ms = clock_ms
        self._clock_wall_ms = clock_wall_ms
        self._sleep = sleep
        self._delivery = deliver(self)
        self._consumer = connect(self.health.on_error)
        self._partitions = Partitions(self._feed)
        # Why no work is taken; empty while it is.
        self._waiting_for = _FOR_TRANSACTIONS
        self._restoring: ChangelogReader | None = None
        self._most = _MAX_BATCH
        # Records of which the desk raised what nobody foresaw, until they are done with.
        self._poison: dict[Source, str] = {}
        self._tick_due_ms = 0.0
        # Not of a start, which waits for a moment always.
        self._tell_due_ms = clock_ms() + _TELL_EVERY_MS

    def live(self) -> bool:
        """Whether the polling thread still comes round."""
        return self.health.live()

    def not_ready(self) -> str | None:
        """Why this member takes no work at the moment; None where it does."""
        return self.health.not_ready() or self._waiting_for or None

    def run(self, stopped: Callable[[], bool]) -> None:
        """Read and answer until `stopped`, then leave the group. Raises WorkerFailure."""
        try:
            self._start(stopped)
            while not stopped() and not self._failed():
                self.turn()
        except Exception as err:
            log.debug("", exc_info=True)
            self.health.fail(err)
        if not returns_within(_LEAVE_S, self._consumer.close):
            log.warning("%s: the broker does not answer: left without a good-bye", self._feed)
        self._delivery.close()
        self.desk.letters_told.close()
        if (failure := self.health.failure) is not None:
            raise WorkerFailure(told(failure)) from failure

    def turn(self) -> None:
        """Once round: read, say what follows, deliver it; or, where the state must be read, read on in that."""
        self.health.polled()
        records = self._read()
        if self._failed():
            return
        if self._waiting_for:
            # What came is from before partitions moved, and comes again once it is known from where on.
            if self._waiting_for == _FOR_THE_STATE:
                self._restore()
            return
        now_ms, wall_ms = self._clock_ms(), self._clock_wall_ms()
        sent: list[Outgoing] = []
        for record in records:
            outgoing = self._handle(record, now_s=now_ms / 1e3, now_ms=wall_ms)
            if outgoing is None:
                return
            sent += outgoing
        is_due = now_ms >= self._tick_due_ms
        if is_due:
            self._tick_due_ms = now_ms + _TICK_MS
            self._observe()
            quiet = cache(lambda partition: self._partitions.is_quiet(partition, self._end))
            sent += self.desk.tick(now_s=now_ms / 1e3, now_ms=wall_ms, quiet=quiet)
        self._send(without_superseded(sent), self.desk.writes(), is_due=is_due)

    def _start(self, stopped: Callable[[], bool]) -> None:
        """Get ready to deliver, then join the group. So a predecessor of the same name has nothing open any more."""
        while not self._delivery.ready() and not stopped() and not self._failed():
            self.health.polled()
            self._tell(_FOR_TRANSACTIONS)
            self._sleep(_POLL_S)
        self._waiting_for = _FOR_THE_GROUP
        self._consumer.subscribe(
            [*self._handlers], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def _handle(self, record: InputRecord, *, now_s: float, now_ms: float) -> list[Outgoing] | None:
        """What follows from a record. None where the desk fails of it: then nobody knows what is in its state, which is
        read anew, and the record is a dead letter next time."""
        if (why := self._poison.get(record.source)) is not None:
            is_feed = record.source.topic == self._feed
            return [self.desk.refuse(record, BadRecord(Reason.STAGE_FAILED, why))] if is_feed else []
        try:
            return self._handlers[record.source.topic](record, now_s=now_s, now_ms=now_ms)
        except Exception as err:
            log.exception("%s: can't be handled, and is left out", record.source)
            self._poison[record.source] = f"{type(err).__name__}: {err}"
            self._forget_the_state()
            return None

    def _send(self, sent: Sequence[Outgoing], kept: Sequence[Outgoing], *, is_due: bool) -> None:
        """What only moves offsets on is no hurry."""
        if not (sent or kept or is_due):
            return
        done = self._partitions.to_commit({each.partition for each in (*sent, *kept)})
        try:
            self._delivery.deliver(Batch(sent, kept, done), self._consumer)
        except NotDelivered as err:
            log.warning("not delivered, the state is read anew: %s", err)
            # A batch that a slow broker does not take in time must not come again as it was.
            self._most = max(1, self._most // 2)
            self._forget_the_state()
        else:
            self._partitions.committed()
            self._poison = {each: why for each, why in self._poison.items() if self._partitions.is_ahead(each)}
            self._sleep(self._delivery.rest_s if done else 0.0)
            self._most = min(_MAX_BATCH, self._most + self._most // 8 + 1)

    def _read(self) -> list[InputRecord]:
        wait_s = 0 if self._restoring is not None else _POLL_S
        try:
            messages = clients.read(self._consumer, self._most, wait_s)
        except KafkaException as err:
            self.health.fail(WorkerFailure(f"{', '.join(self._handlers)}: {err.args[0].str()}"))
            return []
        return [record for message in messages if (record := self._record(message)) is not None]

    def _record(self, message: Message) -> InputRecord | None:
        error = message.error()
        if error is None:
            record = clients.input_record(message)
            return record if self._partitions.hear(record.source) else None
        place = message.topic() or "", message.partition() or 0
        if error.code() == KafkaError._PARTITION_EOF:
            self._partitions.reach_the_end(*place, message.offset() or 0)
        elif error.code() == KafkaError._AUTO_OFFSET_RESET:
            self._skip_to_what_is_left(place, error)
        else:
            self.health.on_read_error(error, topic=message.topic())
        return None

    def _skip_to_what_is_left(self, place: Place, error: KafkaError) -> None:
        if self._waiting_for or place not in self._partitions.places:
            return  # of a position that counts no more
        self._metrics.records_lost()
        log.error("%s [%d]: records were deleted before they were read: %s", *place, error.str())
        with clients.failures(place[0]):
            oldest, _ = clients.bounds(self._consumer, TopicPartition(*place), _ASK_S)
        self._partitions.skip_to(place, oldest)
        self._consumer.assign(self._partitions.positions)

    def _observe(self) -> None:
        self.health.look(self._consumer, _ASK_S)
        self._metrics.speech(self.desk.counts, self.desk.refused, streams=len(self.desk.streams))
        for each in self._partitions.positions:
            _, end = self._consumer.get_watermark_offsets(each, cached=True)
            self._metrics.lag(each.topic, each.partition, end, each.offset, 0)

    def _end(self, place: TopicPartition) -> int | None:
        """Where a partition ends now; None where the broker doesn't say."""
        if self.health.broker_error is not None:
            return None
        try:
            return clients.bounds(self._consumer, place, _ASK_S)[1]
        except KafkaException:
            return None

    # The state, which is read when partitions have come, or when what is known doesn't follow from what is kept.

    def _forget_the_state(self) -> None:
        self._stop_restoring()
        self._waiting_for = _FOR_THE_STATE
        # Nothing is read before it is known from where on.
        self._consumer.assign([])

    def _restore(self) -> None:
        """Read on in the changelog; once all is known, in the topics."""
        try:
            if self._restoring is None:
                if not self._delivery.ready():
                    self._tell(_FOR_TRANSACTIONS)
                    return
                # First the offsets: the group tells them when no transaction is open that would move them.
                self._partitions.begin(next_offsets(self._consumer, self._partitions.places, budget_s=_ASK_S))
                kafka, group = self._settings.kafka.consumer_settings(), self._settings.transcripts_group
                self._restoring = ChangelogReader(kafka, self._changelog, self._partitions.numbers, client_id=group)
            if not self._restoring.read(_POLL_S):
                return
        except KafkaException as err:
            self._tell(f"the group's offsets and {self._changelog} can't be read yet: {err.args[0].str()}")
            self._stop_restoring()
            return
        self.desk.load(self._restoring.kept.items(), self._clock_ms() / 1e3)
        self._stop_restoring()
        self._waiting_for = ""
        self._consumer.assign(self._partitions.positions)
        log.info("streams: %d, of partitions %s", len(self.desk.streams), self._partitions.numbers)

    def _stop_restoring(self) -> None:
        if self._restoring is not None:
            self._restoring.close()
            self._restoring = None

    def _failed(self) -> bool:
        return self.health.failure is not None

    def _tell(self, what: str) -> None:
        """Now and then."""
        if self._clock_ms() >= self._tell_due_ms:
            self._tell_due_ms = self._clock_ms() + _TELL_EVERY_MS
            log.warning("%s", what)

    # The group's callbacks, which the client runs inside of a poll.

    def _on_assign(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        places = {(each.topic, each.partition) for each in partitions}
        mine = sorted({partition for _, partition in places})
        if places != {(topic, partition) for topic in self._handlers for partition in mine}:
            self.health.fail(
                WorkerFailure(
                    f"{' and '.join(self._handlers)}: not assigned alike ({sorted(places)}): all topics of an ensemble "
                    "must have the same number of partitions, and all members of the group be of one version"
                )
            )
        self._partitions.begin(dict.fromkeys(places, 0))
        self._forget_the_state()

    def _on_revoke(self, consumer: Consumer, _partitions: list[TopicPartition]) -> None:
        self._drop(consumer)

    def _on_lost(self, consumer: Consumer, _partitions: list[TopicPartition]) -> None:
        log.warning("lost %s: others may work on it now", self._feed)
        self._drop(consumer)

    def _drop(self, consumer: Consumer) -> None:
        if not self._failed():
            self._delivery.let_go(consumer)
        for place in self._partitions.places:
            self._metrics.forget(*place)
        self._partitions.begin({})
        self._stop_restoring()
        self._waiting_for = _FOR_THE_GROUP
        self.desk.load((), 0.0)
        consumer.unassign()
