"""Triton's counters under Triton's exact names, and the page on which Prometheus reads them.

prometheus_client's own Counter would append `_total` to each name, as OpenMetrics wants; dashboards made for Triton
look for the names without it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from schemas.errors import Reason

_COUNTERS = {
    "nv_inference_request_success": "Texts whose outputs were delivered",
    "nv_inference_request_failure": "Texts that became dead letters, by reason",
    "nv_inference_count": "Texts, in encode windows, that were computed",
    "nv_inference_exec_count": "Units or micro-batches that were computed",
    "nv_inference_request_duration_us": "From reading a record to the delivery of what was made of it, summed",
    "nv_inference_queue_duration_us": "Waiting for a thread, an instance or a fuller batch, summed",
    "nv_inference_compute_input_duration_us": "Preparing the engine's input: packing rows, summed",
    "nv_inference_compute_infer_duration_us": "Computing: the tokenizer, the engine or the task, summed",
    "nv_inference_compute_output_duration_us": "Sorting the engine's output, or writing JSON, summed",
}
_PENDING = "nv_inference_pending_request_count"
_MODEL_VERSION = "1"

# OpenMetrics knows no counter without _total, hence "unknown", which the older format calls "untyped".
_UNTYPED = re.compile(rb"^(# TYPE nv_inference_\w+) untyped$", re.MULTILINE)


class TritonCollector(Collector):
    """Counters of each model, which here is a stage, and how many texts wait. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # (metric, model, reason) -> value; only failures have a reason.
        self._values: dict[tuple[str, str, str], float] = {}
        self._pending: dict[str, int] = {}

    def declare(self, model: str) -> None:
        """Start a model's series at 0: a rate needs to see the first step."""
        with self._lock:
            for name in _COUNTERS:
                reasons: Iterable[str] = Reason if name == "nv_inference_request_failure" else ("",)
                for reason in reasons:
                    self._values.setdefault((name, model, str(reason)), 0.0)
            self._pending.setdefault(model, 0)

    def add(self, model: str, **amounts: float) -> None:
        """Count up, each metric by its name."""
        with self._lock:
            for name, amount in amounts.items():
                key = (name, model, "")
                self._values[key] = self._values.get(key, 0.0) + amount

    def fail(self, model: str, reason: Reason, count: int = 1) -> None:
        """Count requests that were not answered."""
        key = ("nv_inference_request_failure", model, str(reason))
        with self._lock:
            self._values[key] = self._values.get(key, 0.0) + count

    def set_pending(self, model: str, count: int) -> None:
        """How many texts wait now."""
        with self._lock:
            self._pending[model] = count

    def collect(self) -> Iterator[Metric]:
        """What prometheus_client asks for at each scrape."""
        with self._lock:
            values, pending = dict(self._values), dict(self._pending)
        families = {name: Metric(name, text, "unknown") for name, text in _COUNTERS.items()}
        for (name, model, reason), value in values.items():
            labels = {"model": model, "version": _MODEL_VERSION} | ({"reason": reason} if reason else {})
            families[name].add_sample(name, labels, value)
        # Of a process that computes nothing there are none.
        yield from (family for family in families.values() if family.samples)
        gauge = Metric(_PENDING, "Texts that wait for a batch", "gauge")
        for model, count in pending.items():
            gauge.add_sample(_PENDING, {"model": model, "version": _MODEL_VERSION}, count)
        if pending:
            yield gauge


def exposition(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The page that Prometheus reads and its content type, in the format that an `Accept` header asks for."""
    encode, content_type = choose_encoder(accept)
    return _UNTYPED.sub(rb"\1 counter", encode(registry)), content_type
