"""The page that Prometheus reads: exact names, true types, sums that add up from many threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client import REGISTRY
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from pipeline.metrics import WorkerMetrics
from pipeline.triton_metrics import exposition
from schemas.errors import Reason

OPENMETRICS = "application/openmetrics-text; version=1.0.0"

TRITON_COUNTERS = [
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_request_duration_us",
    "nv_inference_queue_duration_us",
    "nv_inference_compute_input_duration_us",
    "nv_inference_compute_infer_duration_us",
    "nv_inference_compute_output_duration_us",
]


@pytest.fixture
def worker():
    return WorkerMetrics("demo")


def samples(worker: WorkerMetrics) -> dict[tuple[str, ...], float]:
    """(name, label values in the order of their names) -> value, by the names on the page."""
    page = exposition(worker.registry, OPENMETRICS)[0].decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in parse_openmetrics(page)
        for sample in family.samples
    }


def test_tritons_counters_have_tritons_names_and_are_counters(worker):
    worker.stage("encode")
    page, content_type = exposition(worker.registry, "")
    assert content_type.startswith("text/plain; version=0.0.4")
    lines = page.decode().splitlines()
    for name in TRITON_COUNTERS:
        assert f"# TYPE {name} counter" in lines
        assert any(line.startswith(f'{name}{{model="encode",') and line.endswith(" 0.0") for line in lines)
    assert "# TYPE nv_inference_pending_request_count gauge" in lines
    assert not any("untyped" in line for line in lines)


@pytest.mark.parametrize(("accept", "parse"), [("", parse_text), ("*/*", parse_text), (OPENMETRICS, parse_openmetrics)])
def test_the_page_can_be_parsed_in_either_format(worker, accept, parse):
    worker.stage("tokenize").dead_letter(Reason.NOT_JSON)
    families = {family.name: family for family in parse(exposition(worker.registry, accept)[0].decode())}
    assert {"nv_inference_count", "penstock_build_info", "penstock_tokens", "process_resident_memory_bytes"} <= {
        *families,
        *(f"{name}_info" for name, family in families.items() if family.type == "info"),
    }


def test_a_micro_batch_counts_for_each_of_its_windows(worker):
    worker.stage("encode").batch_done(
        windows=2, tokens=60, padded_tokens=128, waited_ms=[1.0, 3.0], input_ms=0.5, infer_ms=10.0, output_ms=0.25
    )
    found = samples(worker)
    assert found["nv_inference_count", "encode", "1"] == 2
    assert found["nv_inference_exec_count", "encode", "1"] == 1
    assert found["nv_inference_queue_duration_us", "encode", "1"] == 4000
    assert found["nv_inference_compute_input_duration_us", "encode", "1"] == 1000
    assert found["nv_inference_compute_infer_duration_us", "encode", "1"] == 20000
    assert found["nv_inference_compute_output_duration_us", "encode", "1"] == 500
    assert found["penstock_tokens_total", "demo", "encode"] == 60
    assert found["penstock_padded_tokens_total", "demo", "encode"] == 128
    assert found["penstock_batch_tokens_sum", "demo", "encode"] == 60
    assert found["penstock_batch_windows_sum", "demo", "encode"] == 2
    assert found["penstock_batch_age_seconds_sum", "demo", "encode"] == pytest.approx(0.003)


def test_a_unit_of_another_stage(worker):
    stage = worker.stage("postprocess")
    stage.stage_done(texts=3, queue_ms=1.0, compute_ms=2.0, output_ms=0.5)
    stage.arrived(texts=3, total_ms=7.0)
    found = samples(worker)
    assert found["nv_inference_count", "postprocess", "1"] == 3
    assert found["nv_inference_queue_duration_us", "postprocess", "1"] == 3000
    assert found["nv_inference_compute_infer_duration_us", "postprocess", "1"] == 6000
    assert found["nv_inference_compute_output_duration_us", "postprocess", "1"] == 1500
    assert found["nv_inference_request_success", "postprocess", "1"] == 3
    assert found["nv_inference_request_duration_us", "postprocess", "1"] == 21000


def test_failures_are_told_by_reason_from_zero_on(worker):
    for reason in (Reason.NOT_JSON, Reason.NOT_JSON, Reason.NULL_VALUE):
        worker.stage("tokenize").dead_letter(reason)
    found = samples(worker)
    for name, labels in (
        ("nv_inference_request_failure", ("tokenize", "{}", "1")),
        ("penstock_dead_letters_total", ("demo", "{}", "tokenize")),
    ):
        counts = {reason: found[name, *(label.format(reason) for label in labels)] for reason in Reason}
        assert counts == dict.fromkeys(Reason, 0) | {Reason.NOT_JSON: 2, Reason.NULL_VALUE: 1}


def test_gauges_say_how_it_is_now(worker):
    stage = worker.stage("encode")
    stage.in_flight("t", 500)
    stage.paused("t", True)
    stage.pending(7)
    stage.in_flight("t", 200)
    stage.in_flight("t.bulk", 100)
    found = samples(worker)
    assert found["penstock_in_flight_tokens", "demo", "encode"] == 300
    assert found["penstock_paused", "demo", "encode"] == 1
    assert found["nv_inference_pending_request_count", "encode", "1"] == 7


def test_counters_of_rare_events(worker):
    stage = worker.stage("encode")
    stage.unanswered("expired", 2)
    stage.unanswered("superseded")
    stage.records_lost()
    stage.delivery_failed()
    found = samples(worker)
    assert found["penstock_expired_total", "demo", "encode"] == 2
    assert found["penstock_superseded_total", "demo", "encode"] == 1
    assert found["penstock_records_lost_total", "demo", "encode"] == 1
    assert found["penstock_delivery_failures_total", "demo", "encode"] == 1


def test_restarts_are_told_by_the_one_that_was_restarted():
    assert samples(WorkerMetrics("demo", restarts=3))["penstock_restarts_total", "demo"] == 3


def test_lag_of_a_partition_until_it_is_revoked(worker):
    stage = worker.stage("encode")
    stage.lag("t", 0, end=-1001, watermark=None, in_flight=2)
    assert ("penstock_consumer_lag", "demo", "0", "encode", "t") not in samples(worker)
    stage.lag("t", 0, end=10, watermark=4, in_flight=2)
    stage.lag("t", 1, end=9, watermark=9, in_flight=0)
    found = samples(worker)
    assert found["penstock_consumer_lag", "demo", "0", "encode", "t"] == 6
    assert found["penstock_watermark_lag", "demo", "0", "encode", "t"] == 2
    assert found["penstock_consumer_lag", "demo", "1", "encode", "t"] == 0
    stage.forget("t", 0)
    stage.forget("t", 5)
    assert {key[2] for key in samples(worker) if key[0] == "penstock_consumer_lag"} == {"1"}


def test_stages_of_a_fused_worker_share_one_page(worker):
    for name in ("tokenize", "encode", "postprocess"):
        worker.stage(name).stage_done(texts=1, queue_ms=0.0, compute_ms=1.0)
    assert {key[1] for key in samples(worker) if key[0] == "nv_inference_count"} == {
        "tokenize",
        "encode",
        "postprocess",
    }


def test_nothing_is_global(worker):
    WorkerMetrics("demo").stage("encode")
    assert not [family.name for family in REGISTRY.collect() if family.name.startswith(("nv_", "penstock_"))]


def test_threads_lose_no_count(worker):
    stage = worker.stage("encode")

    def work(_: int) -> None:
        for _ in range(200):
            stage.stage_done(texts=1, queue_ms=1.0, compute_ms=1.0)
            stage.dead_letter(Reason.BAD_PACK)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    found = samples(worker)
    assert found["nv_inference_count", "encode", "1"] == 800
    assert found["nv_inference_queue_duration_us", "encode", "1"] == 800_000
    assert found["nv_inference_request_failure", "encode", "bad_pack", "1"] == 800


def test_what_computes_nothing_has_no_series_that_never_leave_0(worker):
    worker.stage("transcripts", computes=False).dead_letter(Reason.BAD_EVENT)
    found = samples(worker)
    assert not [name for name, *_ in found if name.startswith("nv_")]
    assert found["penstock_dead_letters_total", "demo", "bad_event", "transcripts"] == 1


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_no_series_says_when_another_began(worker, accept):
    worker.stage("encode")
    assert b"_created" not in exposition(worker.registry, accept)[0]
