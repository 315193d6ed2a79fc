"""`penstock replay`: history once more, through this ensemble's stages in one process, into a topic of its own.

It reads the requests topic between two places and writes what the live path would have written: results with the
request's key and headers, in its partition and order, and dead letters beside them. It is nobody's group member and
commits nothing; where it stopped is told, and from there it can go on.
"""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from pipeline import clients
from pipeline.ensemble import BLOCK_TEXTS, Ensemble, Refused
from pipeline.errors import WorkerFailure
from pipeline.reach import existing_partitions
from pipeline.replay_range import Range, range_to_replay
from pipeline.replay_topics import ReplayTopics, replay_topics
from pipeline.sending import Sending
from pipeline.settings import EnsembleSettings
from pipeline.topic_reader import TopicReader
from schemas.errors import BadRecord, Reason
from schemas.headers import dead_letter_headers
from schemas.records import InputRecord, Source
from schemas.results import Result, encode_result

# How often progress is told.
_TELL_EVERY_S = 5.0
# After Ctrl-C, what is on its way is waited for this long: what arrives need not be done again.
_LAST_WAIT_S = 5.0
# Long texts: memory is for the engine.
_BLOCK_BYTES = 16 << 20
# Dead letters name a stage. One process does all three here, and its answers don't say which gave up.
_STAGE = "replay"
_CLIENT = "penstock-replay"


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What is asked for, in the words of the command line."""

    start: str | None
    end: str | None
    from_offsets: str | None
    into: str | None
    create: bool


def replay_history(settings: EnsembleSettings, history: History) -> None:
    """Replay all that lies in the range and say how it went. Raises UserError before anything is written, and
    WorkerFailure where something of it was not."""
    requests = settings.topic_names.requests
    partitions = existing_partitions(settings.kafka, requests)
    with TopicReader(settings.kafka.consumer_settings(), requests, partitions, client_id=_CLIENT) as reader:
        ranges = range_to_replay(settings, reader, history.start, history.end, history.from_offsets)
        into = replay_topics(settings, history.into, len(partitions), create=history.create)
        if not any(each.size for each in ranges.values()):
            _say(f"{requests}: nothing was sent in that time")
            return
        run = _Run(settings, reader, ranges, into)
        with Ensemble(settings) as ensemble:
            run.all(ensemble)


class _Run:
    """One run of the command: partition after partition, block after block."""

    def __init__(
        self,
        settings: EnsembleSettings,
        reader: TopicReader,
        ranges: Mapping[int, Range],
        into: ReplayTopics,
    ) -> None:
        self._settings = settings
        self._reader = reader
        self._ranges = ranges
        self._into = into
        self._sending = Sending(settings.kafka, client_id=_CLIENT, told_as="what was made of")
        # Of each partition the next offset that is not done: what was made of all before it has arrived.
        self._next = {partition: each.start for partition, each in ranges.items()}
        # Of the partition that is being read. Results and dead letters arrive in an order of their own.
        self._on_their_way: deque[int] = deque()
        self._ahead: set[int] = set()
        self._written: Counter[str] = Counter()
        self._started_s = self._told_s = 0.0

    def all(self, ensemble: Ensemble) -> None:
        finished = False
        self._started_s = self._told_s = time.monotonic()
        try:
            for partition, each in self._ranges.items():
                for records in self._blocks(partition, each):
                    self._block(ensemble, records)
                self._sending.wait()
                if not self._on_their_way:
                    self._next[partition] = each.start + each.size
                self._on_their_way.clear()
                self._ahead.clear()
            self._sending.finish()
            finished = True
        finally:
            if not finished:
                with suppress(WorkerFailure):  # the one that led here is told
                    self._sending.wait(_LAST_WAIT_S)
            self._tell_end(finished)

    def _blocks(self, partition: int, each: Range) -> Iterator[list[InputRecord]]:
        """The partition's records, as many at a time as give every instance of the engine several batches."""
        gathered: list[InputRecord] = []
        size_bytes = 0
        for messages in self._reader.blocks(partition, each.start, each.end):
            gathered += [clients.input_record(message) for message in messages]
            size_bytes += sum(len(message) for message in messages)
            if len(gathered) >= BLOCK_TEXTS or size_bytes >= _BLOCK_BYTES:
                yield gathered
                gathered, size_bytes = [], 0
        if gathered:
            yield gathered

    def _block(self, ensemble: Ensemble, records: list[InputRecord]) -> None:
        for record, answer in zip(records, ensemble.answer(records), strict=True):
            assert answer.source == record.source, "answers come in the order of their requests"
            self._on_their_way.append(record.source.offset)
            if isinstance(answer, Result):
                self._send_result(record, answer)
            else:
                self._bury(record, answer)
        self._sending.look()
        if time.monotonic() - self._told_s >= _TELL_EVERY_S:
            self._tell_progress()

    def _send_result(self, record: InputRecord, result: Result) -> None:
        def too_large(why: str) -> None:
            self._bury(record, Refused(result.id, why, Reason.RESULT_TOO_LARGE, record.source))

        self._sending.send(
            self._into.results,
            encode_result(result),
            record.key,
            name=record.source,
            partition=record.source.partition,
            headers=record.headers,
            on_delivered=partial(self._arrived, self._into.results, record.source),
            on_too_large=too_large,
        )

    def _bury(self, record: InputRecord, refused: Refused) -> None:
        headers = dead_letter_headers(
            BadRecord(Reason(refused.reason), refused.error),
            source=record.source,
            stage=_STAGE,
            group=f"{self._settings.name}.{_STAGE}",
            style=self._settings.dead_letters.header_style,
        )
        self._sending.send(
            self._into.dead_letters,
            record.value,
            record.key,
            name=record.source,
            partition=record.source.partition,
            headers=[*record.headers, *headers],
            on_delivered=partial(self._arrived, self._into.dead_letters, record.source),
        )

    def _arrived(self, topic: str, source: Source) -> None:
        self._written[topic] += 1
        self._ahead.add(source.offset)
        while self._on_their_way and self._on_their_way[0] in self._ahead:
            offset = self._on_their_way.popleft()
            self._ahead.remove(offset)
            self._next[source.partition] = offset + 1

    def _tell_progress(self) -> None:
        self._told_s = time.monotonic()
        total = sum(each.size for each in self._ranges.values())
        done = sum(self._next[partition] - each.start for partition, each in self._ranges.items())
        _say(f"{done:,} of {total:,} offsets ({done / max(1, total):.0%}), {self._rate():,.0f} records/s")

    def _tell_end(self, finished: bool) -> None:
        _say(f"{self._into.results}: {self._written[self._into.results]:,} results, {self._rate():,.0f} records/s")
        if refused := self._written[self._into.dead_letters]:
            _say(f"{self._into.dead_letters}: {refused:,} that can't be answered")
        if not finished:
            places = ",".join(f"{partition}:{offset}" for partition, offset in self._next.items())
            _say(f"stopped before the end; go on with --from-offsets {places}")

    def _rate(self) -> float:
        return self._written.total() / max(1e-3, time.monotonic() - self._started_s)


def _say(line: str) -> None:
    sys.stderr.write(f"penstock: {line}\n")
