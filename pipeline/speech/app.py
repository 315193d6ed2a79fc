"""The Faust app behind `penstock transcripts`: reads the feed, the results and the dead letters, keeps each stream's
state in a table with a changelog.

Agents put what comes into one queue; one task takes it from there, in batches, so that nothing of the state is ever
changed by two at once. Of a batch first what follows from it is sent and acknowledged, then the state is, then its
records are let go of, and Faust commits them some time later. A kill between any two of these repeats records, which
changes nothing (stages.transcripts), and loses none. Faust's own exactly-once is not asked for: docs/decisions has why.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Iterator, Sequence
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import faust
from faust.tables.manager import TableManager
from faust.types import TP

from pipeline.settings import EnsembleSettings
from pipeline.speech.desk import Desk, Outgoing, Write, without_superseded
from pipeline.speech.faust_clients import client_settings, use_short_fetches
from schemas.records import Headers, InputRecord, Source

log = logging.getLogger("penstock.transcripts")

TABLE = "streams"
# Records that are read and wait for the task: one batch is taken while the next one gathers. The more wait, the more of
# them are superseded by others of the same batch, and the less a record costs: so falling behind ends by itself.
_MAX_BATCH = 4_000
_MAX_WAITING = 8_000
# How late silence and what is overdue are noticed.
_TICK_S = 0.25

Kind = Literal["speech", "result", "dead_letter"]


class _Tables(TableManager):
    """Faust's own waits a second for tables that other modules may still add; there is one, and it is there."""

    async def on_start(self) -> None:
        await self._update_channels()
        await self.recovery.start()


class _Table(faust.Table[bytes, bytes]):
    """Changed from outside of an agent: of each key it is told the partition, and it tells when all is kept."""

    partition: int = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.unacknowledged: list[Awaitable[Any]] = []

    def partition_for_key(self, key: Any) -> int:  # noqa: ARG002 - Faust's signature
        return self.partition

    def send_changelog(self, *args: Any, **options: Any) -> Any:
        sent = super().send_changelog(*args, **options)
        self.unacknowledged.append(sent)
        return sent

    async def keep(self, writes: Sequence[Write]) -> None:
        """Returns when the broker has them all."""
        for write in writes:
            self.partition = write.partition
            if write.value is not None:
                self[write.key] = write.value
            else:
                self.pop(write.key, None)
        waiting, self.unacknowledged = self.unacknowledged, []
        await self.app.producer.flush()
        for each in waiting:
            await each


class TranscriptsApp:
    """One member of the group; `start`, then `stop`. `failure` is set when it can't go on."""

    def __init__(
        self, settings: EnsembleSettings, *, instance: str | None, embedded: bool, stopped: asyncio.Event
    ) -> None:
        self.desk = Desk(settings)
        self.failure: BaseException | None = None
        self.ready = False
        self._stopped = stopped
        self._settings = settings
        self._lock = asyncio.Lock()
        self._queue: asyncio.Queue[tuple[Kind, Any]] = asyncio.Queue(_MAX_WAITING)
        # Of the feed's partitions: records that are read and not handled yet.
        self._unheard: Counter[int] = Counter()
        self._tick_due_s = 0.0
        # Faust makes a folder for tables that it keeps in memory.
        self._folder = TemporaryDirectory(prefix="penstock-transcripts-", ignore_cleanup_errors=True)
        self._app = _faust_app(settings, None if embedded else instance, self._folder.name, embedded=embedded)
        if embedded:
            use_short_fetches(self._app)
        partitions = settings.topics.partitions
        self._table = _Table(self._app, name=TABLE, partitions=partitions, key_type=bytes, value_type=bytes)
        self._app.tables.add(self._table)
        self._table.on_recover(self._recovered)
        names = settings.topic_names
        self._speech_topic = settings.speech_topic_names.speech
        self._topics = {self._speech_topic, names.results, names.dead_letters}
        self._read(self._speech_topic, "speech")
        self._read(names.results, "result")
        self._read(names.dead_letters, "dead_letter")
        self._task: asyncio.Task[None] | None = None

    @property
    def crash_reason(self) -> BaseException | None:
        """Why Faust has given up, if it has."""
        return self._app.crash_reason if self._app.crashed else None

    async def start(self) -> None:
        """Join the group and recover the state; then the work goes on by itself."""
        await self._app.start()
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Finish what is begun, commit, leave."""
        self._stopped.set()
        if self._task is not None:
            await asyncio.wait([self._task])
        if self.failure is None and self.ready:
            await self._app.commit(self._topics)
        await self._app.stop()
        self._folder.cleanup()

    def _read(self, name: str, kind: Kind) -> None:
        topic = self._app.topic(
            name, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw", internal=True
        )

        async def put(stream: Any) -> None:
            async for event in stream.noack().events():
                await self._queue.put((kind, event))
                if kind == "speech":
                    self._unheard[event.message.partition] += 1

        self._app.agent(topic, name=f"{kind}")(put)

    async def _recovered(self) -> None:
        """After a start, and after each time that partitions moved. Faust passes over what is raised here."""
        try:
            async with self._lock:
                mine = self._partitions()
                self.desk.load(self._table.data.items(), time.monotonic())
                await self._keep(self.desk.writes())
                log.info("streams: %d, of partitions %s", len(self.desk.streams), sorted(mine))
                self.ready = True
        except Exception as err:  # noqa: BLE001 - told by whoever waits for the end
            self._fail(err)

    async def _work(self) -> None:
        try:
            while not self._stopped.is_set():
                batch = [each async for each in self._batch()]
                async with self._lock:
                    await self._do(batch, now_s=time.monotonic(), now_ms=time.time() * 1e3)
                for _, event in batch:
                    event.ack()
        except Exception as err:  # noqa: BLE001 - likewise
            self._fail(err)

    async def _batch(self) -> Any:
        """What is there, or comes within a tick."""
        try:
            yield await asyncio.wait_for(self._queue.get(), _TICK_S)
        except TimeoutError:
            return
        for _ in range(min(self._queue.qsize(), _MAX_BATCH - 1)):
            yield self._queue.get_nowait()

    async def _do(self, batch: list[tuple[Kind, Any]], *, now_s: float, now_ms: float) -> None:
        mine = self._partitions()
        outgoing: list[Outgoing] = []
        for kind, event in batch:
            record = _record(event)
            if kind == "speech":
                self._unheard[record.source.partition] -= 1
            if record.source.partition in mine:
                hear = getattr(self.desk, kind)
                outgoing += hear(record, now_s=now_s, now_ms=now_ms)
        # Whatever came: somebody always speaks.
        if now_s >= self._tick_due_s:
            self._tick_due_s = now_s + _TICK_S
            # Behind a full batch there is more, of whose partitions nobody knows.
            quiet = await self._quiet(mine) if len(batch) < _MAX_BATCH else set()
            outgoing += self.desk.tick(now_s=now_s, now_ms=now_ms, quiet=quiet)
        await self._send(without_superseded(outgoing))
        await self._keep(self.desk.writes())

    async def _keep(self, writes: Sequence[Write]) -> None:
        mine = self._partitions()
        await self._table.keep([each for each in writes if each.partition in mine])

    async def _send(self, outgoing: Sequence[Outgoing]) -> None:
        producer = self._app.producer
        reports = [
            await producer.send(
                each.record.topic,
                each.record.key,
                each.record.value,
                each.partition,
                None,
                cast(list[tuple[str, bytes]], each.record.headers),
            )
            for each in outgoing
        ]
        for report in reports:
            await report

    def _partitions(self) -> set[int]:
        """Those of the feed that are this member's."""
        return {each.partition for each in self._app.consumer.assignment() if each.topic == self._speech_topic}

    async def _quiet(self, mine: set[int]) -> set[int]:
        """Those of which everything was read and handled: silence there is the speakers' own."""
        consumer = self._app.consumer
        quiet: set[int] = set()
        for partition in mine:
            if self._unheard[partition]:
                continue
            place = TP(self._speech_topic, partition)
            end, position = consumer.highwater(place), await consumer.position(place)
            if end is not None and position is not None and position >= end:
                quiet.add(partition)
        return quiet

    def _fail(self, err: BaseException) -> None:
        log.error("can't go on: %s: %s", type(err).__name__, err, exc_info=log.isEnabledFor(logging.DEBUG))
        self.failure = err
        self._stopped.set()


def _faust_app(settings: EnsembleSettings, instance: str | None, folder: str, *, embedded: bool) -> faust.App:
    return faust.App(
        settings.transcripts_group,
        datadir=folder,
        **client_settings(settings.kafka, embedded=embedded),
        consumer_group_instance_id=instance,
        consumer_auto_offset_reset="earliest",
        broker_commit_interval=settings.commit_every_ms / 1e3,
        broker_client_id=settings.transcripts_group,
        key_serializer="raw",
        value_serializer="raw",
        store="memory://",
        processing_guarantee="at_least_once",
        # Penstock makes topics, and says what is missing.
        topic_allow_declare=False,
        topic_disable_leader=True,
        topic_partitions=settings.topics.partitions,
        topic_replication_factor=settings.topics.replication_factor,
        # A second copy of the state in another member would speed up a takeover that takes a second.
        table_standby_replicas=0,
        TableManager=_Tables,
        web_enabled=False,
    )


def _record(event: Any) -> InputRecord:
    message = event.message
    headers = message.headers or []
    pairs: Iterator[Any] = iter(headers.items() if isinstance(headers, dict) else headers)
    source = Source(message.topic, message.partition, message.offset)
    return InputRecord(source, message.key, message.value, cast(Headers, [*pairs]))
