"""The demo's numbers, out of a ledger and of workers' metrics."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pipeline.demo.ledger import Ledger
from pipeline.demo.summary import Counters, StageTime, Summary, summarize
from pipeline.metrics import WorkerMetrics
from pipeline.triton_metrics import exposition

JSON_KEYS = {
    *("requests", "results", "dead_letters", "lost", "repeated", "out_of_order", "restarts", "seconds"),
    *("texts_per_s", "tokens_per_s", "padding_share", "mean_batch_texts", "latency_ms", "time_ms", "memory_mib"),
    "stopped",
}


def page(metrics: WorkerMetrics) -> str:
    return exposition(metrics.registry, "")[0].decode()


def ledger_of(latencies_s: list[float]) -> Ledger:
    ledger = Ledger()
    for number, latency_s in enumerate(latencies_s):
        ledger.send("text", 4, 0.0)
        ledger.answer(number, partition=0, offset=number, tokens=30, now_s=latency_s)
    return ledger


def summary_of(ledger: Ledger, counters: Counters | None = None, stopped: str | None = None) -> Summary:
    return summarize(ledger, counters or Counters.of([]), restarts=0, memory_mib={}, stopped=stopped)


def batch(metrics: WorkerMetrics, windows: int) -> None:
    metrics.stage("encode").batch_done(
        windows=windows,
        tokens=windows * 30,
        padded_tokens=windows * 32,
        waited_ms=[40.0] * windows,
        input_ms=1.0,
        infer_ms=10.0,
        output_ms=2.0,
    )


def test_where_the_time_went_adds_up_to_the_mean_latency() -> None:
    tokenize, encode, postprocess = (WorkerMetrics("demo") for _ in range(3))
    before = Counters.of(map(page, (tokenize, encode, postprocess)))
    tokenize.stage("tokenize").stage_done(texts=4, queue_ms=3.0, compute_ms=5.0)
    batch(encode, 3)
    batch(encode, 1)
    postprocess.stage("postprocess").stage_done(texts=4, queue_ms=1.0, compute_ms=2.0, output_ms=4.0)
    after = Counters.of(map(page, (tokenize, encode, postprocess)))
    summary = summary_of(ledger_of([0.1] * 4), after.since(before))
    assert summary.time_ms == {
        "tokenize": StageTime(3.0, 5.0),
        "encode": StageTime(40.0, 13.0),
        "postprocess": StageTime(1.0, 6.0),
        "topics": pytest.approx(32.0, abs=0.01),
    }
    assert summary.padding_share == 0.0625
    assert summary.mean_batch_texts == 2.0


def test_a_text_of_several_windows_is_one_text_of_its_micro_batches() -> None:
    metrics = WorkerMetrics("demo")
    batch(metrics, 64)
    batch(metrics, 36)
    assert summary_of(ledger_of([0.1]), Counters.of([page(metrics)])).mean_batch_texts is None
    metrics.stage("postprocess").stage_done(texts=5, queue_ms=1.0, compute_ms=2.0)
    assert summary_of(ledger_of([0.1]), Counters.of([page(metrics)])).mean_batch_texts == 2.5


def test_a_fused_worker_s_page_has_all_stages() -> None:
    fused = WorkerMetrics("demo")
    for name in ("tokenize", "postprocess"):
        fused.stage(name).stage_done(texts=1, queue_ms=1.0, compute_ms=2.0)
    batch(fused, 1)
    times = summary_of(ledger_of([0.1]), Counters.of([page(fused)])).time_ms
    assert times["tokenize"] == times["postprocess"] == StageTime(1.0, 2.0)
    assert times["encode"] == StageTime(40.0, 13.0)


def test_only_the_run_counts_and_a_restarted_worker_began_anew() -> None:
    before = Counters({("a", "encode"): 5.0, ("b", "encode"): 5.0})
    after = Counters({("a", "encode"): 7.0, ("b", "encode"): 2.0, ("c", "encode"): 1.0})
    assert after.since(before).values == {("a", "encode"): 2.0, ("b", "encode"): 2.0, ("c", "encode"): 1.0}


def test_topics_are_never_below_zero() -> None:
    metrics = WorkerMetrics("demo")
    for name in ("tokenize", "postprocess"):
        metrics.stage(name).stage_done(texts=1, queue_ms=1.0, compute_ms=2.0)
    batch(metrics, 1)
    assert summary_of(ledger_of([0.01]), Counters.of([page(metrics)])).time_ms["topics"] == 0.0


def test_a_stage_that_was_not_heard_of_is_left_out() -> None:
    metrics = WorkerMetrics("demo")
    metrics.stage("tokenize")
    batch(metrics, 1)
    assert summary_of(ledger_of([0.1]), Counters.of([page(metrics)])).time_ms.keys() == {"encode"}


def test_rates_and_percentiles() -> None:
    summary = summary_of(ledger_of([number / 100 for number in range(1, 101)]))
    assert (summary.requests, summary.results, summary.seconds) == (100, 100, 1.0)
    assert (summary.texts_per_s, summary.tokens_per_s) == (100.0, 3_000.0)
    assert summary.latency_ms is not None
    assert (summary.latency_ms.p50, summary.latency_ms.p99) == pytest.approx((505.0, 990.1), abs=0.5)
    assert (summary.padding_share, summary.mean_batch_texts) == (None, None)


def test_a_run_without_any_result_has_a_summary() -> None:
    summary = summary_of(Ledger(), stopped="interrupted")
    decoded: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(summary))
    assert decoded.keys() == JSON_KEYS
    assert (decoded["requests"], decoded["latency_ms"], decoded["time_ms"]) == (0, None, {})


def test_good_is_every_request_once_and_in_order() -> None:
    good = ledger_of([0.1, 0.2])
    assert summary_of(good).good
    assert summary_of(good).verdict == "2 requests, each answered exactly once, in order"
    assert not summary_of(good, stopped="interrupted").good
    lost = ledger_of([0.1])
    lost.send("text", 4, 0.0)
    assert not summary_of(lost).good
    assert summary_of(lost).verdict == "2 requests, 1 results, 1 lost"
    dead = ledger_of([0.1])
    dead.send("text", 4, 0.0)
    dead.dead_letter(1, 0.2)
    assert not summary_of(dead).good
    assert summary_of(dead).verdict == "2 requests, 1 results, 1 dead letters"
    repeated = ledger_of([0.1])
    repeated.answer(0, partition=0, offset=0, tokens=30, now_s=0.2)
    assert not summary_of(repeated).good
    assert summary_of(repeated).verdict == "1 requests, 1 results, 1 answered again"
    disordered = ledger_of([0.1])
    disordered.send("text", 4, 0.0)
    disordered.answer(1, partition=0, offset=-1, tokens=30, now_s=0.2)
    assert not summary_of(disordered).good
    assert summary_of(disordered).verdict == "2 requests, 2 results, 1 out of order"
