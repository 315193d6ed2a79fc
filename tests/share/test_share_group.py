"""Encode workers that share a partition: nothing is lost, whoever dies, hangs, stops or can't read a pack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, ConfigResource

from pipeline import clients
from pipeline.apache_kafka.broker import ApacheBroker
from pipeline.errors import UserError
from pipeline.serve import serve
from pipeline.settings import EnsembleSettings
from pipeline.share_group import prepare_share_group
from schemas.packs import decode_token_pack
from tests.eventually import eventually
from tests.share.conftest import (
    Echo,
    MakeSettings,
    answers,
    pack,
    read,
    send,
    send_requests,
    settings_on,
)

pytestmark = [pytest.mark.apache, pytest.mark.slow]

Start = Callable[..., Echo]

# A worker that hangs has a fetch at the broker, which may take a pack once more.
SHORT_LOCK = {"packs_per_poll": 2, "lock_ms": 2_000, "max_deliveries": 8}


def all_answered(settings: EnsembleSettings, count: int) -> Counter[int]:
    """How often each, once all are."""
    found: Counter[int] = Counter()

    def holds() -> bool:
        nonlocal found
        found = answers(settings)
        return found.keys() == set(range(count))

    eventually(holds, lambda: sorted(set(range(count)) - found.keys()))
    return found


def test_three_workers_share_one_partition_and_answer_each_pack_once(settings: MakeSettings, start: Start) -> None:
    made = settings()
    workers = [start(made, holding=True) for _ in range(3)]
    send(made, [pack(made, number) for number in range(200)])
    # Each holds what its two members may take, and nobody more.
    eventually(lambda: [len(each.held) for each in workers] == [4, 4, 4], lambda: [each.seen for each in workers])
    for each in workers:
        each.holding = False
        each.let_go()
    assert all_answered(made, 200) == Counter(range(200))
    assert sum(each.answered for each in workers) == 200
    for each in workers:
        each.end()
        assert each.error is None


def test_what_was_written_before_the_first_worker_came_is_answered(settings: MakeSettings, start: Start) -> None:
    made = settings()
    send(made, [pack(made, number) for number in range(20)])
    start(made)
    assert all_answered(made, 20) == Counter(range(20))


def test_what_is_accepted_does_not_come_again(settings: MakeSettings, start: Start) -> None:
    made = settings()
    send(made, [pack(made, number) for number in range(20)])
    first = start(made)
    all_answered(made, 20)
    first.end()
    second = start(made)
    send(made, [pack(made, 20)])
    assert all_answered(made, 21) == Counter(range(21))
    assert second.seen == [20]


def test_packs_of_a_worker_that_fails_are_answered_by_others(settings: MakeSettings, start: Start) -> None:
    made = settings()
    first = start(made, holding=True)
    send(made, [pack(made, number) for number in range(4)])
    eventually(lambda: len(first.held) == 4)
    second = start(made)
    first.fail()
    # The lock is 60 s: they were released.
    assert all_answered(made, 4) == Counter(range(4))
    assert sorted(second.seen) == [0, 1, 2, 3]
    assert "broken" in str(first.error)
    assert first.worker.not_ready() == "failed: RuntimeError: broken"
    assert not first.worker.live()


def test_packs_of_a_worker_that_hangs_are_answered_by_others_when_their_lock_runs_out(
    settings: MakeSettings, start: Start
) -> None:
    made = settings(share_group=SHORT_LOCK)
    first = start(made, holding=True)
    send(made, [pack(made, number) for number in range(4)])
    eventually(lambda: len(first.held) == 4)
    first.hang()
    second = start(made)
    assert all_answered(made, 4) == Counter(range(4))
    assert sorted(second.seen) == [0, 1, 2, 3]


def test_a_worker_slower_than_the_lock_answers_once_where_nobody_else_is(settings: MakeSettings, start: Start) -> None:
    """The pack comes to it again, by its other member: it is the same work."""
    made = settings(share_group=SHORT_LOCK)
    slow = start(made, holding=True)
    send(made, [pack(made, 0)])
    eventually(lambda: len(slow.held) == 1)
    eventually(lambda: len(next(iter(slow.worker._in_flight.values())).holders) > 1)
    slow.holding = False
    slow.let_go()
    send(made, [pack(made, 1)])
    assert all_answered(made, 2) == Counter(range(2))
    assert slow.seen == [0, 1]
    eventually(lambda: not slow.worker._in_flight)
    slow.end()
    assert slow.error is None


def test_a_repeat_carries_the_same_ids(settings: MakeSettings, start: Start) -> None:
    made = settings(share_group=SHORT_LOCK)
    first = start(made, holding=True)
    send(made, [pack(made, 0, texts=3)])
    eventually(lambda: len(first.held) == 1)
    first.hang()
    second = start(made)
    all_answered(made, 1)
    first.let_go()  # it answers after all, and may not accept any more
    eventually(lambda: answers(made) == Counter({0: 2}))
    values = [decode_token_pack(value) for value, _ in read(made, made.topic_names.encodings)]
    assert [[text.id for text in each.texts] for each in values] == [["id-0", "id-1", "id-2"]] * 2
    second.end()


def test_a_pack_that_cannot_be_read_is_a_dead_letter_once_and_hurts_no_other(
    settings: MakeSettings, start: Start
) -> None:
    made = settings()
    send(made, [pack(made, 0), b"not a pack", None, pack(made, 1)])
    worker = start(made)
    assert all_answered(made, 2) == Counter(range(2))
    eventually(lambda: len(read(made, made.topic_names.dead_letters)) == 2)
    eventually(lambda: not worker.worker._in_flight)
    worker.end()
    again = start(made)
    send(made, [pack(made, 2)])
    all_answered(made, 3)
    assert again.seen == [4]
    letters = read(made, made.topic_names.dead_letters)
    reasons = {headers["__dlq.errors.reason"]: value for value, headers in letters}
    assert len(letters) == 2
    assert reasons == {b"bad_pack": b"not a pack", b"null_value": None}
    assert {headers["__dlq.errors.group"] for _, headers in letters} == {made.group_id("encode").encode()}


def test_a_pack_that_comes_back_too_often_is_a_dead_letter_for_each_of_its_texts(
    settings: MakeSettings, start: Start
) -> None:
    made = settings()  # max_deliveries is 2
    send_requests(made, 3)
    send(made, [pack(made, 0, texts=3)])
    for _ in range(2):
        worker = start(made, holding=True)
        eventually(lambda: worker.seen == [0])  # noqa: B023
        worker.fail()
    third = start(made, holding=True)
    eventually(lambda: len(read(made, made.topic_names.dead_letters)) == 3)
    eventually(lambda: not third.worker._in_flight)
    assert third.seen == []
    assert third.counted("dead_letters_total", reason="returned_too_often") == 3
    letters = read(made, made.topic_names.dead_letters)
    assert [value for value, _ in letters] == [b'{"text": "0"}', b'{"text": "1"}', b'{"text": "2"}']
    assert {headers["__dlq.errors.topic"] for _, headers in letters} == {made.topic_names.requests.encode()}
    third.end()
    assert third.error is None


def test_what_a_worker_releases_does_not_come_to_its_other_member(settings: MakeSettings, start: Start) -> None:
    made = settings()
    first = start(made, holding=True)
    send(made, [pack(made, 0)])
    eventually(lambda: first.seen == [0])
    order: list[bool] = []
    for member in first.worker._members:
        leave = member.leave
        member.leave = lambda leave=leave, member=member: (order.append(member.free), leave())  # type: ignore[misc,method-assign]
    first.fail()
    assert order == [True, False]


def test_a_stop_answers_what_was_read_and_leaves_the_rest(settings: MakeSettings, start: Start) -> None:
    made = settings()
    first = start(made, holding=True)
    send(made, [pack(made, number) for number in range(20)])
    eventually(lambda: len(first.held) == 4)
    first.stopped = True
    first.holding = False
    first.let_go()
    first.end()
    assert first.error is None
    assert answers(made) == Counter(first.seen)
    second = start(made)
    assert all_answered(made, 20) == Counter(range(20))
    assert not set(first.seen) & set(second.seen)


def test_a_stop_that_runs_out_of_time_releases_what_is_left(settings: MakeSettings, start: Start) -> None:
    made = settings(drain_timeout_ms=200)
    first = start(made, holding=True)
    send(made, [pack(made, number) for number in range(4)])
    eventually(lambda: len(first.held) == 4)
    second = start(made)
    first.end()
    assert "4 records did not arrive in time" in str(first.error)
    assert all_answered(made, 4) == Counter(range(4))
    assert sorted(second.seen) == [0, 1, 2, 3]
    first.let_go()  # too late: it belongs to others
    second.end()
    assert answers(made) == Counter(range(4))


def test_nothing_is_lost_while_workers_come_and_go(settings: MakeSettings, start: Start) -> None:
    made = settings(share_group=SHORT_LOCK)
    send_requests(made, 400)
    workers = [start(made) for _ in range(2)]
    for base in range(0, 400, 50):
        send(made, [pack(made, number) for number in range(base, base + 50)], batches=base % 100 == 0)
        victim = workers.pop(0)
        victim.holding = True
        (victim.fail, victim.end, victim.hang)[base // 50 % 3]()
        workers.append(start(made))
    found = all_answered(made, 400)
    assert max(found.values()) <= 8
    assert read(made, made.topic_names.dead_letters) == []


def test_a_full_worker_takes_no_more_until_half_is_done(settings: MakeSettings, start: Start) -> None:
    # A pack of one text here is 3 tokens; 8 is the least bound.
    made = settings(
        batching={"max_in_flight_tokens": 8, "max_batch_tokens": 8, "row_length": 8, "max_batch_size": 1},
        share_group={"packs_per_poll": 3},
        tokenizer={"max_length": 8},
    )
    send(made, [pack(made, number) for number in range(40)])
    worker = start(made, holding=True)
    eventually(lambda: len(worker.held) == 3, lambda: worker.seen)
    eventually(lambda: worker.counted("paused") == 1)
    assert worker.counted("in_flight_tokens") == 9
    worker.holding = False
    worker.let_go()
    assert all_answered(made, 40) == Counter(range(40))
    eventually(lambda: worker.counted("paused") == 0)


def test_health_and_metrics_are_those_of_any_worker(settings: MakeSettings, start: Start) -> None:
    made = settings()
    worker = start(made)
    send(made, [pack(made, 0, texts=5)])
    all_answered(made, 1)
    eventually(lambda: worker.worker.not_ready() is None)
    assert worker.worker.live()
    labels = {"model": "encode", "version": "1"}
    eventually(lambda: worker.metrics.registry.get_sample_value("nv_inference_request_success", labels) == 5)
    eventually(
        lambda: (
            worker.counted("watermark_lag", topic=made.topic_names.tokens, partition="0") == 0
            and worker.counted("in_flight_tokens") == 0
        )
    )


def test_a_broker_that_dies_and_comes_back_loses_nothing(apache_runtime: Any, tmp_path: Any, start: Start) -> None:
    with ApacheBroker(tmp_path, runtime=apache_runtime) as apache:
        made = settings_on(apache)
        worker = start(made)
        send(made, [pack(made, number) for number in range(20)])
        all_answered(made, 20)
        apache.kill()
        eventually(lambda: "the broker is away" in (worker.worker.not_ready() or ""))
        assert worker.worker.live()
        apache.start()
        send(made, [pack(made, number) for number in range(20, 40)])
        all_answered(made, 40)
        eventually(lambda: worker.worker.not_ready() is None)
        worker.end()
        assert worker.error is None


# What is refused, and what the broker is told.


def test_the_group_s_settings_are_written_once(settings: MakeSettings, share_broker: ApacheBroker) -> None:
    made = settings(lock_ms=20_000)
    admin = AdminClient({"bootstrap.servers": share_broker.bootstrap})
    resource = ConfigResource(ConfigResource.Type.GROUP, made.group_id("encode"))
    (future,) = admin.describe_configs([resource]).values()
    found = {name: entry.value for name, entry in future.result().items()}
    assert found["share.auto.offset.reset"] == "earliest"
    assert found["share.record.lock.duration.ms"] == "20000"
    assert found["share.delivery.count.limit"] == "10"

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("they are there already")

    admin.incremental_alter_configs = refuse  # type: ignore[method-assign]
    prepare_share_group(made, admin)


def test_a_lock_that_the_broker_does_not_allow_is_told_in_one_line(settings: MakeSettings) -> None:
    made = settings()
    longer = made.model_copy(update={"share_group": made.share_group.model_copy(update={"lock_ms": 90_000})})
    with pytest.raises(UserError, match=r"share\.record\.lock\.duration\.ms=90000; the broker refuses") as raised:
        prepare_share_group(longer, clients.admin(made.kafka.client_settings()))
    assert len(raised.value.lines) == 1


def test_fused_is_refused(settings: MakeSettings) -> None:
    with pytest.raises(UserError, match="--fused"):
        serve(settings(), "fused", http_port=0)
