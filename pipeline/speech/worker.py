"""A member of the transcripts' group: reads the feed, the results and the dead letters of some partitions.

One thread. It reads a batch, the desk says what follows from it, and all of that is delivered before the next batch is
read. So where partitions come or go, or a delivery fails, nothing is on its way that must be waited for: the state is
read from the changelog and the records from the group's offsets, as after a crash.

A partition's feed, results, dead letters and state are one member's: the group assigns by ranges, which gives the same
numbers of all topics to the same member.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from pipeline import clients
from pipeline.clock import now_ms, wall_ms
from pipeline.deadline import returns_within
from pipeline.errors import WorkerFailure
from pipeline.group_offsets import committed_offsets
from pipeline.metrics import StageMetrics
from pipeline.settings import EnsembleSettings
from pipeline.speech.changelog import read_changelog
from pipeline.speech.delivery import Batch, NotDelivered, TranscriptsDelivery
from pipeline.speech.desk import Desk, Outgoing, Write, without_superseded
from pipeline.worker_health import WorkerHealth, told
from schemas.records import InputRecord, OutputRecord, Source

Place = tuple[str, int]
OnError = Callable[[KafkaError], None]

log = logging.getLogger("penstock.transcripts")

# The more wait, the more of them are superseded by others of the same batch, and the less a record costs: so falling
# behind ends by itself.
_MAX_BATCH = 4_000
# How long an idle poll waits, and so how late a stop is noticed.
_POLL_S = 0.05
# How late silence and what is overdue are noticed, and how often metrics are told.
_TICK_MS = 250.0
# Asking a broker where a partition ends, or whether it is back.
_ASK_S = 1.0
# Leaving the group, where a broker that is away does not answer.
_LEAVE_S = 5.0


class TranscriptsWorker:
    """`connect` makes the consumer, which reports errors; `delivery` takes what follows from what it reads."""

    def __init__(
        self,
        settings: EnsembleSettings,
        *,
        connect: Callable[[OnError], Consumer],
        delivery: Callable[[TranscriptsWorker], TranscriptsDelivery],
        metrics: StageMetrics,
        clock_ms: Callable[[], float] = now_ms,
        clock_wall_ms: Callable[[], float] = wall_ms,
    ) -> None:
        names = settings.topic_names
        self.desk = Desk(settings)
        self._settings = settings
        self._feed = settings.speech_topic_names.speech
        self._changelog = settings.speech_topic_names.changelog
        self._hear = {
            self._feed: self.desk.speech,
            names.results: self.desk.result,
            names.dead_letters: self.desk.dead_letter,
        }
        self.health = WorkerHealth(self._feed, clock_ms=clock_ms)
        self._metrics = metrics
        self._clock_ms = clock_ms
        self._clock_wall_ms = clock_wall_ms
        self._delivery = delivery(self)
        self._consumer = connect(self.health.on_error)
        # Of each partition that is this member's the offset of the next record.
        self._next: dict[Place, int] = {}
        # Of each partition of the feed whose end was reached, where that was.
        self._ends: dict[int, int] = {}
        # What is known no longer follows from what was kept.
        self._adrift = False
        self._joined = False
        self._tick_due_ms = 0.0
        self._undelivered_places: set[Place] = set()

    def live(self) -> bool:
        """Whether the polling thread still comes round."""
        return self.health.live()

    def not_ready(self) -> str | None:
        """Why this member takes no work at the moment; None where it does."""
        if (unwell := self.health.not_ready()) is not None:
            return unwell
        if self._adrift:
            return "reading its state anew"
        # A member without partitions is a spare, and ready.
        return None if self._joined else "waiting to join the consumer group"

    def run(self, stopped: Callable[[], bool]) -> None:
        """Read and answer until `stopped`, then leave the group. Raises WorkerFailure."""
        try:
            while not stopped() and not self._failed() and not self._delivery.ready():
                self.health.polled()
                time.sleep(_POLL_S)
            self._consumer.subscribe(
                [*self._hear], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
            while not stopped() and not self._failed():
                self.turn()
        except Exception as err:
            log.debug("", exc_info=True)
            self.health.fail(err)
        if not returns_within(_LEAVE_S, self._consumer.close):
            log.warning("the broker does not answer: left without a good-bye")
        self._delivery.close()
        if (failure := self.health.failure) is not None:
            raise WorkerFailure(told(failure)) from failure

    def turn(self) -> None:
        """Once round: read, say what follows, deliver it."""
        self.health.polled()
        self._joined = self._joined or bool(self._consumer.memberid())
        if self._adrift:
            self._begin_anew()
        records = self._read()
        if self._adrift or self._failed():
            return
        now_ms, wall_ms = self._clock_ms(), self._clock_wall_ms()
        sent: list[Outgoing] = []
        for record in records:
            sent += self._hear[record.source.topic](record, now_s=now_ms / 1e3, now_ms=wall_ms)
        is_due = now_ms >= self._tick_due_ms
        if is_due:
            self._tick_due_ms = now_ms + _TICK_MS
            self._look_around()
            sent += self.desk.tick(now_s=now_ms / 1e3, now_ms=wall_ms, quiet=self._is_quiet)
        self._deliver(without_superseded(sent), self._kept(self.desk.writes()), is_due=is_due)

    def _deliver(self, sent: Sequence[Outgoing], kept: Sequence[Outgoing], *, is_due: bool) -> None:
        """What only moves offsets on is no hurry."""
        if not (sent or kept or is_due):
            return
        done = [TopicPartition(*place, self._next[place]) for place in sorted(self._undelivered_places)]
        try:
            self._delivery.deliver(Batch(sent, kept, done), self._consumer)
        except NotDelivered as err:
            log.warning("not delivered: %s", err)
            self._adrift = True
        self._undelivered_places.clear()

    def _kept(self, writes: Iterable[Write]) -> list[Outgoing]:
        return [Outgoing(each.partition, OutputRecord(self._changelog, each.key, each.value, [])) for each in writes]

    def _read(self) -> list[InputRecord]:
        try:
            messages = clients.read(self._consumer, _MAX_BATCH, _POLL_S)
        except KafkaException as err:
            self.health.fail(WorkerFailure(f"{self._feed}: {err.args[0].str()}"))
            return []
        return [record for message in messages if (record := self._record(message)) is not None]

    def _record(self, message: Message) -> InputRecord | None:
        error = message.error()
        if error is None:
            record = clients.input_record(message)
            return record if self._is_next(record.source) else None
        place = message.topic() or "", message.partition() or 0
        if error.code() == KafkaError._PARTITION_EOF:
            if place[0] == self._feed:
                self._ends[place[1]] = message.offset() or 0
        elif error.code() == KafkaError._AUTO_OFFSET_RESET and place in self._next:
            self._metrics.records_lost()
            log.error("%s [%d]: records were deleted before they were read: %s", *place, error.str())
            self._next[place] = OFFSET_BEGINNING
            self._consumer.assign(self._places())
        else:
            self.health.on_read_error(error)
        return None

    def _is_next(self, source: Source) -> bool:
        """Whether a record is this member's to hear now. Where partitions moved between two reads it may be another's,
        or come again."""
        place = source.topic, source.partition
        expected = self._next.get(place)
        if expected is None or source.offset < expected:
            return False
        self._next[place] = source.offset + 1
        self._undelivered_places.add(place)
        if place[0] == self._feed:
            self._ends.pop(place[1], None)
        return True

    def _is_quiet(self, partition: int) -> bool:
        """Whether all that the feed has was heard: silence there is the speakers' own."""
        end = self._ends.get(partition)
        if end is None:
            return False
        try:
            place = TopicPartition(self._feed, partition)
            return clients.bounds(self._consumer, place, _ASK_S)[1] <= end
        except KafkaException:
            return False

    def _look_around(self) -> None:
        if self.health.broker_error is not None:
            try:
                self._consumer.list_topics(self._feed, timeout=_ASK_S)
            except KafkaException:
                return
            self.health.broker_is_back()
        self._metrics.speech(self.desk.counts, streams=len(self.desk.streams))
        for place, following in self._next.items():
            _, end = self._consumer.get_watermark_offsets(TopicPartition(*place), cached=True)
            self._metrics.lag(*place, end, following, 0)

    def _begin_anew(self) -> None:
        """After a delivery that failed: as if the partitions had just come."""
        if self._delivery.ready():
            self._on_assign(self._consumer, self._places())

    def _begin(self, places: Iterable[Place]) -> None:
        """Know what was kept of these partitions, and read on from there. Raises KafkaException, WorkerFailure."""
        self._forget()
        partitions = sorted({partition for _, partition in places})
        # First the offsets: the group tells them when no transaction that would move them is open.
        for topic in self._hear:
            committed = committed_offsets(self._consumer, topic, partitions)
            self._next |= {(topic, each): committed.get(each, OFFSET_BEGINNING) for each in partitions}
        kafka, group = self._settings.kafka.consumer_settings(), self._settings.transcripts_group
        kept = read_changelog(kafka, self._changelog, partitions, client_id=group)
        self.desk.load(kept.items(), self._clock_ms() / 1e3)
        self._consumer.assign(self._places())
        log.info("streams: %d, of partitions %s", len(self.desk.streams), partitions)

    def _places(self) -> list[TopicPartition]:
        return [TopicPartition(*place, offset) for place, offset in self._next.items()]

    def _failed(self) -> bool:
        return self.health.failure is not None

    # The group's callbacks, which the client runs inside of a poll.

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._joined = True
        places = {(each.topic, each.partition) for each in partitions}
        mine = sorted({partition for _, partition in places})
        if places != {(topic, partition) for topic in self._hear for partition in mine}:
            self.health.fail(WorkerFailure(f"{self._feed} {mine}: the group gives their results to another member"))
        try:
            self._begin(places)
        except (KafkaException, WorkerFailure) as err:
            log.warning("the state can't be read, it is tried again: %s", err)
            self._next = dict.fromkeys(places, OFFSET_BEGINNING)
            self._adrift = True
            consumer.assign(self._places())
        else:
            self._adrift = False

    def _on_revoke(self, consumer: Consumer, _partitions: list[TopicPartition]) -> None:
        self._drop(consumer)

    def _on_lost(self, consumer: Consumer, _partitions: list[TopicPartition]) -> None:
        log.warning("lost %s: others may work on it now", self._feed)
        self._drop(consumer)

    def _drop(self, consumer: Consumer) -> None:
        if not self._failed():
            self._delivery.let_go(consumer)
        for topic, partition in self._next:
            self._metrics.forget(topic, partition)
        self._forget()
        self.desk.load((), 0.0)
        consumer.unassign()

    def _forget(self) -> None:
        self._next, self._ends = {}, {}
        self._undelivered_places.clear()
