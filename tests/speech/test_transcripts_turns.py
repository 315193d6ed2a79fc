"""A member's turns with a consumer, a delivery, a changelog and a clock of the test's own: what it does when time
passes, when partitions come and go, and when a delivery fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, cast

import pytest
from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, Message, TopicPartition

from pipeline.metrics import WorkerMetrics
from pipeline.speech import worker as worker_module
from pipeline.speech.delivery import Batch, NotDelivered
from pipeline.speech.worker import TranscriptsWorker
from schemas.headers import read_cause
from tests.speech.speech_world import end, event, make_settings

FEED, RESULTS, LETTERS = "talk.speech", "talk.results", "talk.dead-letters"
TOPICS = (FEED, RESULTS, LETTERS)


class FakeMessage:
    """A record, or, with `code`, what comes in place of one."""

    def __init__(
        self, topic: str, partition: int, offset: int, *, key: str = "", value: bytes = b"", code: int | None = None
    ) -> None:
        self.topic = lambda: topic
        self.partition = lambda: partition
        self.offset = lambda: offset
        self.key = lambda: key.encode()
        self.value = lambda: value
        self.headers = lambda: None
        self.timestamp = lambda: (0, 0)
        self.error = lambda: None if code is None else KafkaError(code)


class FakeReader:
    """A changelog of which all is read at once."""

    def __init__(self, kept: dict[bytes, bytes]) -> None:
        self.kept = kept

    def read(self, _wait_s: float) -> bool:
        return True

    def close(self) -> None:
        """Nothing to do."""


class Rig:
    """A member of which the test is the group, the broker and the clock. It has partition 0."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **speech: Any) -> None:
        self.now_s = 0.0
        self.offsets: dict[int, int] = {}
        self.beginnings: dict[tuple[str, int], int] = {}
        self.asked: Counter[tuple[str, int]] = Counter()
        self.most: list[int] = []
        self.unreadable = 0
        self.rest_s = 0.25
        self.slept: list[float] = []
        self.committed_offsets: dict[tuple[str, int], int] = {}
        self.kept: dict[bytes, bytes] = {}
        self.waiting: list[FakeMessage] = []
        self.assigned: list[tuple[str, int, int]] = []
        self.delivered: list[Batch] = []
        self.failing = 0
        self.is_ready = True
        self.let_go_count = 0
        self.at_poll: Callable[[], None] = lambda: None
        self.metrics = WorkerMetrics("talk")
        monkeypatch.setattr(worker_module, "ChangelogReader", self._read_changelog)
        self.worker = TranscriptsWorker(
            make_settings(**speech),
            connect=lambda _: cast(Consumer, self),
            deliver=lambda _: self,
            metrics=self.metrics.stage("transcripts"),
            clock_ms=lambda: self.now_s * 1e3,
            clock_wall_ms=lambda: self.now_s * 1e3,
            sleep=self.slept.append,
        )
        self.desk = self.worker.desk
        self.assign_to_it(0)
        self.turn()
        assert self.worker.not_ready() is None

    # What the test does.

    def assign_to_it(self, *partitions: int, topics: Collection[str] = TOPICS) -> None:
        self.worker._on_assign(
            cast(Consumer, self), [TopicPartition(topic, number) for topic in topics for number in partitions]
        )

    def say(self, stream_id: str, value: bytes, *, partition: int = 0) -> FakeMessage:
        offset = self.offsets.setdefault(partition, 0)
        self.offsets[partition] += 1
        message = FakeMessage(FEED, partition, offset, key=stream_id, value=value)
        self.waiting.append(message)
        return message

    def reach_the_end(self, partition: int = 0) -> None:
        offset = self.offsets.get(partition, 0)
        self.waiting.append(FakeMessage(FEED, partition, offset, code=KafkaError._PARTITION_EOF))

    def turn(self, now_s: float | None = None) -> None:
        if now_s is not None:
            self.now_s = now_s
        self.worker.turn()

    def sent(self) -> list[bytes | None]:
        """Keys of the requests that were delivered, as the streams' ids."""
        return [
            each.record.key for batch in self.delivered for each in batch.sent if each.record.topic == "talk.requests"
        ]

    # What it has for a consumer and a delivery.

    def _read_changelog(self, _kafka: object, _topic: str, partitions: Sequence[int], **_: object) -> FakeReader:
        if self.unreadable:
            self.unreadable -= 1
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        return FakeReader(dict(self.kept))

    def committed(self, places: list[TopicPartition], **_: object) -> list[TopicPartition]:
        return [
            TopicPartition(
                each.topic, each.partition, self.committed_offsets.get((each.topic, each.partition), OFFSET_INVALID)
            )
            for each in places
        ]

    def poll(self, _wait_s: float) -> Message | None:
        self.at_poll()
        return cast(Message, self.waiting.pop(0)) if self.waiting else None

    def consume(self, most: int, _wait_s: float) -> list[Message]:
        self.most.append(most + 1)
        taken, self.waiting = self.waiting[:most], self.waiting[most:]
        return cast("list[Message]", taken)

    def assign(self, places: list[TopicPartition]) -> None:
        self.assigned = [(each.topic, each.partition, each.offset) for each in places]

    def unassign(self) -> None:
        self.assigned = []

    def list_topics(self, *_: object, **__: object) -> None:
        raise KafkaException(KafkaError(KafkaError._TRANSPORT))

    def get_watermark_offsets(self, place: TopicPartition, *, cached: bool = False, **_: object) -> tuple[int, int]:
        where = place.topic, place.partition
        if not cached:
            self.asked[where] += 1
        return self.beginnings.get(where, 0), self.offsets.get(place.partition, 0) if place.topic == FEED else 0

    def ready(self) -> bool:
        return self.is_ready

    def deliver(self, batch: Batch, _consumer: object) -> None:
        if self.failing:
            self.failing -= 1
            raise NotDelivered("the broker is away")
        self.delivered.append(batch)
        for each in batch.kept:
            assert each.record.key is not None
            if each.record.value is None:
                self.kept.pop(each.record.key, None)
            else:
                self.kept[each.record.key] = each.record.value
        self.committed_offsets |= {(each.topic, each.partition): each.offset for each in batch.done}

    def let_go(self, _consumer: object) -> None:
        self.let_go_count += 1

    def close(self) -> None:
        """Nothing to do."""


def test_a_stream_ends_by_silence_while_another_one_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, silence_ms=1_000, remember_ms=2_000, resend_after_ms=1_000)
    rig.say("gone", event("gone", "0", 0, "hm"))
    rig.say("over", end("over"))
    rig.turn(0)
    for tenth in range(1, 31):
        rig.say("busy", event("busy", "0", tenth, f"word {tenth}"))
        rig.reach_the_end()
        rig.turn(tenth / 10)
    streams = rig.desk.streams
    assert (streams["gone"].head.ended_by, streams["busy"].head.ended_by) == ("silence", None)
    assert "over" not in streams, "forgotten"
    assert rig.desk.counts["asked_again"] == 1


def test_silence_is_no_silence_while_records_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, silence_ms=1_000)
    rig.say("a", event("a", "0", 0, "hm"))
    rig.turn(0)
    rig.turn(5)  # nothing more came, but its end was not reached
    assert rig.desk.streams["a"].head.ended_by is None
    rig.reach_the_end()
    rig.offsets[0] += 1  # one that was written since
    rig.turn(12)
    assert rig.desk.streams["a"].head.ended_by is None
    rig.reach_the_end()
    rig.turn(13)
    assert rig.desk.streams["a"].head.ended_by == "silence"


def test_a_broker_is_asked_once_whether_a_partition_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, silence_ms=1_000)
    for number in range(20):
        rig.say(f"s{number}", event(f"s{number}", "0", 0, "hm"))
    rig.reach_the_end()
    rig.turn(0)
    rig.asked.clear()
    rig.offsets[0] += 1
    rig.turn(5)
    assert rig.asked == {(FEED, 0): 1}
    rig.asked.clear()
    rig.worker.health.on_error(KafkaError(KafkaError._ALL_BROKERS_DOWN))
    rig.offsets[0] -= 1
    rig.turn(6)
    assert not rig.asked, "it is away"
    assert {each.head.ended_by for each in rig.desk.streams.values()} == {None}


def test_what_failed_to_arrive_is_read_and_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    rig.say("a", event("a", "0", 0, "good"))
    rig.turn()
    lost = rig.say("a", event("a", "0", 1, "good morning"))
    rig.failing = 1
    rig.turn()
    rig.is_ready = False
    rig.say("a", event("a", "0", 2, "good morning all"))
    rig.turn()
    assert rig.worker.not_ready() == "reading the state of its streams"
    assert rig.assigned == [], "nothing is read meanwhile"
    assert len(rig.sent()) == 1, "nothing that came meanwhile counts"
    rig.is_ready = True
    rig.turn()
    assert rig.worker.not_ready() is None
    assert (FEED, 0, lost.offset()) in rig.assigned
    rig.waiting = [lost]
    rig.turn()
    assert rig.sent() == [b"a", b"a"]
    [utterance] = rig.desk.streams["a"].utterances.values()
    assert utterance.newest.revision == 1


def test_what_a_broker_does_not_take_in_time_comes_in_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    sizes: list[int] = []
    for failing in (True, True, False, False, False):
        rig.say("a", event("a", "0", len(sizes), f"word {len(sizes)}"))
        rig.failing = int(failing)
        rig.turn()
        sizes.append(rig.most[-1])
        rig.turn()
    assert sizes == [4000, 2000, 1000, 1126, 1267], "and then grow slowly"


def test_a_state_that_cannot_be_read_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    rig.unreadable = 1
    rig.assign_to_it(0, 1)
    early = rig.say("a", event("a", "0", 0, "good"))
    rig.turn()
    assert rig.worker.not_ready() == "reading the state of its streams"
    assert rig.assigned == [], "nothing is read before it is known from where on"
    rig.turn()
    assert rig.worker.not_ready() is None
    assert {(topic, partition) for topic, partition, _ in rig.assigned} == {(t, p) for t in TOPICS for p in (0, 1)}
    rig.waiting = [early]
    rig.turn()
    assert rig.sent() == [b"a"]


def test_what_is_awaited_is_told_where_it_takes_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(monkeypatch)
    rig.unreadable = 100
    rig.assign_to_it(0)
    for second in range(25):
        rig.turn(second)
    awaited = "the group's offsets and talk.transcripts-streams-changelog can't be read yet: Local: Timed out"
    assert caplog.messages == [awaited, awaited]


def test_partitions_that_go_take_their_streams_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    rig.assign_to_it(0, 1)
    rig.turn()
    rig.say("a", event("a", "0", 0, "good"))
    rig.say("b", event("b", "0", 0, "bad"), partition=1)
    rig.turn()
    mine = {key: value for key, value in rig.kept.items() if b'"a"' in key}

    def rebalanced() -> None:
        rig.at_poll = lambda: None
        rig.worker._on_revoke(cast(Consumer, rig), [])
        assert (rig.assigned, [*rig.desk.streams]) == ([], [])
        rig.kept = mine
        rig.assign_to_it(0)

    # Read before the rebalance, and handed over after it.
    rig.say("b", event("b", "0", 1, "bad!"), partition=1)
    rig.at_poll = rebalanced
    again = rig.say("a", event("a", "0", 1, "good!"))
    rig.turn()
    assert rig.let_go_count == 1
    assert [*rig.desk.streams] == ["a"]
    assert rig.desk.counts["changed"] == 2, "what was read before the state comes again"
    rig.waiting = [again]
    rig.turn()
    assert rig.sent() == [b"a", b"b", b"a"]


def test_partitions_that_are_lost_and_come_back_are_not_written_to_before_all_is_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch)
    rig.say("a", event("a", "0", 0, "good"))
    rig.failing = 1
    rig.turn()
    rig.is_ready = False

    def lost() -> None:
        rig.at_poll = lambda: None
        rig.worker._on_lost(cast(Consumer, rig), [])
        assert rig.assigned == []
        assert rig.worker.not_ready() == "waiting for the consumer group"
        rig.assign_to_it(0)

    rig.at_poll = lost
    delivered = len(rig.delivered)
    rig.turn()
    rig.turn()
    assert rig.worker.not_ready() == "reading the state of its streams"
    assert len(rig.delivered) == delivered


def test_whatever_is_written_is_checked_by_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence writes too, without any record that was read."""
    rig = Rig(monkeypatch, silence_ms=1_000)
    rig.say("a", event("a", "0", 0, "hm"))
    rig.reach_the_end()
    rig.turn(0)
    rig.turn(5)
    last = rig.delivered[-1]
    assert rig.desk.streams["a"].head.ended_by == "silence"
    assert (last.sent[0].partition, [(each.topic, each.partition, each.offset) for each in last.done]) == (
        0,
        [(FEED, 0, 1)],
    )


def poisoned(rig: Rig) -> None:
    hear = rig.worker._handlers[FEED]

    def fail_of_poison(record: Any, **now: float) -> Any:
        if record.value == b"poison":
            raise ZeroDivisionError("of this")
        return hear(record, **now)

    rig.worker._handlers[FEED] = fail_of_poison


def test_a_record_that_nobody_foresaw_is_a_dead_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    poisoned(rig)
    all_of_it = [
        rig.say("a", event("a", "0", 0, "good")),
        rig.say("a", b"poison"),
        rig.say("a", event("a", "0", 1, "good!")),
    ]
    rig.turn()
    assert rig.worker.not_ready() == "reading the state of its streams"
    rig.turn()
    rig.waiting = all_of_it
    rig.turn()
    [letter] = [each.record for each in rig.delivered[-1].sent if each.record.topic == LETTERS]
    cause = read_cause(letter.headers)
    assert (letter.value, cause and cause.reason, cause and cause.message) == (
        b"poison",
        "stage_failed",
        "ZeroDivisionError: of this",
    )
    assert rig.desk.streams["a"].utterances["0"].newest.revision == 1
    assert rig.worker.live()


def test_each_record_that_nobody_foresaw_costs_one_look_at_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    poisoned(rig)
    all_of_it = [rig.say("a", b"poison") for _ in range(8)]
    for _ in all_of_it:
        rig.waiting = [*all_of_it]
        rig.turn()
        assert rig.worker.not_ready() == "reading the state of its streams"
        rig.turn()
    rig.waiting = [*all_of_it]
    rig.failing = 1
    rig.turn()
    rig.turn()
    rig.waiting = [*all_of_it]
    rig.turn()
    assert len(rig.delivered[-1].sent) == len(all_of_it)
    assert not rig.worker._poison, "they are done with"


def test_after_a_delivery_records_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    rig.turn()
    assert set(rig.slept) <= {0.0}, "nothing was delivered"
    rig.say("a", event("a", "0", 0, "good"))
    rig.turn()
    assert rig.slept[-1] == 0.25


def test_a_record_that_comes_again_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    again = rig.say("a", event("a", "0", 0, "good"))
    rig.turn()
    rig.waiting = [again]
    rig.turn()
    assert rig.desk.counts["repeated"] == 0, "the desk has not seen it"


def test_a_feed_that_was_deleted_unread_goes_on_with_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    rig.offsets[0] = rig.beginnings[FEED, 0] = 500
    rig.reach_the_end()
    rig.turn()
    rig.waiting = [FakeMessage(FEED, 0, 0, code=KafkaError._AUTO_OFFSET_RESET)]
    rig.turn()
    assert (FEED, 0, 500) in rig.assigned
    assert not rig.worker._partitions.is_quiet(0, lambda _: 0), "its end is not known"
    rig.say("a", event("a", "0", 0, "good"))
    rig.turn()
    assert rig.sent() == [b"a"]
    labels = {"ensemble": "talk", "stage": "transcripts"}
    assert rig.metrics.registry.get_sample_value("penstock_records_lost_total", labels) == 1


def test_what_is_not_read_yet_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A position that a client still had from before is none of those that the group goes on with."""
    rig = Rig(monkeypatch)
    rig.assign_to_it(0)
    rig.waiting = [FakeMessage(FEED, 0, 0, code=KafkaError._AUTO_OFFSET_RESET)]
    rig.turn()
    rig.waiting = [FakeMessage(FEED, 1, 0, code=KafkaError._AUTO_OFFSET_RESET)]
    rig.turn()
    assert rig.worker.not_ready() is None
    labels = {"ensemble": "talk", "stage": "transcripts"}
    assert rig.metrics.registry.get_sample_value("penstock_records_lost_total", labels) == 0


def test_results_at_another_member_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    rig.assign_to_it(0, topics=(FEED, RESULTS))
    assert "all topics of an ensemble must have the same number of partitions" in str(rig.worker.not_ready())
    assert not rig.worker.live()


def test_what_becomes_of_events_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    for value in (event("a", "0", 0, "good"), event("a", "0", 0, "good"), b"rubbish"):
        rig.say("a", value)
    rig.turn(200)
    rig.turn(201)

    def sample(name: str, **labels: str) -> float | None:
        return rig.metrics.registry.get_sample_value(name, {"ensemble": "talk", **labels})

    assert sample("penstock_speech_streams") == 1
    assert sample("penstock_dead_letters_total", stage="transcripts", reason="not_json") == 1
    assert sample("penstock_speech_events_total", outcome="changed") == 1
    assert sample("penstock_speech_events_total", outcome="unchanged") == 1
    assert sample("penstock_speech_events_total", outcome="asked") == 1
    for topic in TOPICS:
        assert sample("penstock_consumer_lag", stage="transcripts", topic=topic, partition="0") == 0
