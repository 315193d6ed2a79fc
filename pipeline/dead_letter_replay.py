"""`penstock dead-letters replay`: dead letters become requests, or events of speech, again, where they were.

At least once: an offset is noted as replayed when what was made of it has arrived. It is noted in the
committed offsets of the group `<ensemble>.dead-letters-replay`, which nobody joins, so that no later replay sends it
again unless it is told to.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial

from pipeline.dead_letter_box import DeadLetter, Wanted, letters, letters_at, open_box
from pipeline.errors import WorkerFailure
from pipeline.exit_codes import EXIT_FAILED
from pipeline.reach import existing_partitions, reach_broker
from pipeline.replayed_offsets import MOST_RANGES, ReplayedOffsets
from pipeline.sending import Sending
from pipeline.settings import EnsembleSettings
from pipeline.topic_reader import TopicReader
from pipeline.topics import broker_metadata
from schemas.headers import with_attempt
from schemas.records import Source

# After Ctrl-C, what is on its way is waited for this long, so that it is noted as replayed.
_LAST_WAIT_S = 5.0


# Where dead letters may go: topics that are read from outside, and the partitions of each.
Destinations = Mapping[str, Collection[int]]


def replay_dead_letters(
    settings: EnsembleSettings,
    wanted: Wanted,
    places: Sequence[str],
    *,
    count: int | None,
    max_attempts: int,
    from_beginning: bool,
    dry_run: bool,
) -> int:
    """Replay those at `places`, or else all that match and were not replayed before; the exit code.

    1 where one that was named can't be replayed. Raises UserError, WorkerFailure.
    """
    names = settings.topic_names
    destinations = _destinations(settings)
    with open_box(settings, group=f"{settings.name}.dead-letters-replay") as reader:
        named = letters_at(reader, places)
        replay = _Replay(settings, reader, destinations, max_attempts=max_attempts, most=count, dry_run=dry_run)
        try:
            if places:
                for letter in named:
                    replay.take(letter, start=letter.offset, passed_for_good=False)
                replay.settle()
            else:
                replay.matching(wanted, from_beginning=from_beginning)
        finally:
            replay.leave()
    if replay.failed:
        raise WorkerFailure(f"{names.requests}: {replay.failed} not replayed: {replay.failure}")
    return EXIT_FAILED if places and replay.skipped else 0


def why_not(letter: DeadLetter, destinations: Destinations, max_attempts: int) -> str | None:
    """Why a dead letter can't be sent again. None where it can."""
    source = None if letter.cause is None else letter.cause.source
    if source is None:
        return "no header says where the original was"
    if source.topic not in destinations:
        allowed = " or ".join(destinations)
        return f"the original was in {source.topic}, and only what was in {allowed} can be sent again"
    if source.partition not in destinations[source.topic]:
        return f"{source.topic} has no partition {source.partition}"
    if letter.record.value is None:
        return "it has no value: the original had none, or it was left out"
    if letter.attempt >= max_attempts:
        return f"it has been sent {letter.attempt} times, --max-attempts are {max_attempts}"
    return None


def _destinations(settings: EnsembleSettings) -> Destinations:
    """The requests, and where the broker has them, those of other lanes and the feed of speech. Raises UserError."""
    requests = settings.topic_names.requests
    destinations = {requests: existing_partitions(settings.kafka, requests)}
    there = broker_metadata(reach_broker(settings.kafka)).topics
    lanes = [lane.topic_names.requests for lane in settings.other_lanes().values()]
    for topic in (*lanes, settings.speech_topic_names.speech):
        if topic in there and there[topic].error is None:
            destinations[topic] = sorted(there[topic].partitions)
    return destinations


class _Replay:
    """One run of the command."""

    def __init__(
        self,
        settings: EnsembleSettings,
        reader: TopicReader,
        destinations: Destinations,
        *,
        max_attempts: int,
        most: int | None,
        dry_run: bool,
    ) -> None:
        self._reader = reader
        self._destinations = destinations
        self._max_attempts = max_attempts
        self._most = most
        self._dry_run = dry_run
        self._sending = Sending(settings.kafka, client_id="penstock-dead-letters", told_as="dead letter")
        self._bounds = reader.bounds()
        self._replayed = self._committed()
        self._noted = self._notes()
        # Partition, first offset and the one after the last of what has arrived or is passed for good since the commit.
        self._done: list[tuple[int, int, int]] = []
        self._taken = 0
        # By topic; with dry_run, what would be.
        self._replayed_to: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()

    @property
    def skipped(self) -> int:
        return self._reasons.total()

    @property
    def failed(self) -> int:
        return self._sending.failed

    @property
    def failure(self) -> str:
        return self._sending.failure

    def matching(self, wanted: Wanted, *, from_beginning: bool) -> None:
        """All up to the topic's end as it is now: what becomes a dead letter once more is left for another time."""
        for partition, (low, high) in self._bounds.items():
            replayed = self._replayed[partition]
            position = low if from_beginning else replayed.place
            for block in letters(self._reader, partition, position, high):
                for letter in block:
                    if self._taken == self._most:
                        self.settle()
                        return
                    if wanted.matches(letter) and (from_beginning or letter.offset not in replayed):
                        # Offsets between two records are a transaction's marks, and go with the record after them.
                        self.take(letter, start=position, passed_for_good=wanted.all)
                    position = letter.offset + 1
                self.settle()
            if wanted.all and not self.failed:
                self._done.append((partition, position, high))
        self.settle()

    def take(self, letter: DeadLetter, *, start: int, passed_for_good: bool) -> None:
        """Send it, or count why not. One that is `passed_for_good` is not looked at again by the next replay of all."""
        noted = letter.record.source.partition, start, letter.offset + 1
        reason = why_not(letter, self._destinations, self._max_attempts)
        if reason is not None:
            self._reasons[reason] += 1
            self._tell(letter, f"skipped: {reason}")
            if passed_for_good:
                self._done.append(noted)
            return
        self._taken += 1
        source = _source(letter)
        attempt = letter.attempt + 1
        self._tell(letter, f"to {source.topic}/{source.partition}, attempt {attempt}")
        if self._dry_run:
            self._replayed_to[source.topic] += 1
        else:
            self._sending.send(
                source.topic,
                letter.record.value,
                letter.record.key,
                name=letter.place,
                partition=source.partition,
                headers=with_attempt(letter.original_headers, attempt),
                on_delivered=partial(self._arrived, source.topic, noted),
            )

    def settle(self) -> None:
        """Wait for what was sent, and commit what has been replayed. Raises WorkerFailure."""
        self._sending.wait()
        self._commit()

    def leave(self) -> None:
        """Also after Ctrl-C and failures: note what has arrived, and say what was done."""
        with suppress(WorkerFailure):  # the one that led here is told
            self._sending.wait(_LAST_WAIT_S)
            self._commit()
        topic = self._reader.topic
        would_be = " would be" if self._dry_run else ""
        for place, destination in enumerate(self._destinations):
            if place == 0 or self._replayed_to[destination]:
                _say(f"{topic}: {self._replayed_to[destination]}{would_be} replayed to {destination}")
        for reason, times in self._reasons.most_common():
            _say(f"{topic}: {times} skipped: {reason}")
        forgotten = sum(each.forgotten for each in self._replayed.values())
        if forgotten:
            _say(
                f"{topic}: {forgotten} ranges of what was replayed are not remembered (at most {MOST_RANGES} a "
                "partition): the next replay sends them again"
            )

    def _arrived(self, destination: str, noted: tuple[int, int, int]) -> None:
        self._replayed_to[destination] += 1
        self._done.append(noted)

    def _committed(self) -> dict[int, ReplayedOffsets]:
        committed = self._reader.committed()
        replayed: dict[int, ReplayedOffsets] = {}
        for partition, (low, high) in self._bounds.items():
            place = committed.get(partition)
            # Beyond the end: the topic was made anew since.
            if place is None or place.offset > high:
                replayed[partition] = ReplayedOffsets(low)
            else:
                replayed[partition] = ReplayedOffsets.committed(place.offset, place.metadata)
                replayed[partition].add(place.offset, low)
        return replayed

    def _notes(self) -> dict[int, tuple[int, str]]:
        return {partition: (each.place, each.metadata()) for partition, each in self._replayed.items()}

    def _commit(self) -> None:
        # In order they join into few ranges.
        for partition, start, end in sorted(self._done):
            self._replayed[partition].add(start, end)
        self._done.clear()
        notes = self._notes()
        changed = {partition: note for partition, note in notes.items() if note != self._noted[partition]}
        if not self._dry_run and changed:
            self._reader.commit(changed)
            self._noted = notes

    def _tell(self, letter: DeadLetter, what: str) -> None:
        if self._dry_run:
            sys.stdout.write(f"{letter.place}  {what}\n")


def _source(letter: DeadLetter) -> Source:
    assert letter.cause is not None
    assert letter.cause.source is not None
    return letter.cause.source


def _say(line: str) -> None:
    sys.stderr.write(f"penstock: {line}\n")
