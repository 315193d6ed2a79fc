"""Metrics of a worker, as Prometheus reads them: Triton's names for requests and durations, its own for the rest.

One WorkerMetrics a process with a registry of its own, one StageMetrics a stage in it (a fused worker has three).
Durations are Triton's: microseconds, summed over texts, so that a batch's 5 ms count 5 ms for each text in it, and
`duration / count` is what one text spent. A step calls once for each unit or micro-batch: 6 us, from any thread.

Padding share: 1 - penstock_tokens_total / penstock_padded_tokens_total.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)

from pipeline.triton_metrics import TritonCollector
from schemas.errors import Reason
from schemas.urgency import Unanswered

_TOKEN_BUCKETS = tuple(1 << power for power in range(5, 17))  # 32 to 65,536
_WINDOW_BUCKETS = tuple(1 << power for power in range(11))  # 1 to 1,024
_AGE_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_COMMIT_BUCKETS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 20.0)


class WorkerMetrics:
    """All metrics of one process, of any number of stages. `restarts` is how often its supervisor had to start it
    again."""

    def __init__(self, ensemble: str, *, restarts: int = 0) -> None:
        # When each series began: a second series for each, which nobody asks for and OpenMetrics can do without.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.ensemble = ensemble
        self._stages: dict[str, StageMetrics] = {}
        self.triton = TritonCollector()
        self.registry.register(self.triton)
        ProcessCollector(registry=self.registry)
        Info("penstock_build", "What runs here", registry=self.registry).info(
            {"version": _version(), "ensemble": ensemble}
        )
        self.restarts = self._counter("restarts", "Times this worker was started again")
        self.restarts.labels(ensemble).inc(restarts)
        stage, place = ("stage",), ("stage", "topic", "partition")
        self.tokens = self._counter("tokens", "Real tokens that were computed", stage)
        self.padded_tokens = self._counter("padded_tokens", "Tokens that were computed, padding included", stage)
        self.expired = self._counter("expired", "Texts whose deadline had passed", stage)
        self.superseded = self._counter("superseded", "Texts that a newer revision took the place of", stage)
        self.dead_letters = self._counter("dead_letters", "Records that became dead letters", ("stage", "reason"))
        self.records_lost = self._counter("records_lost", "Times that retention deleted unread records", stage)
        self.delivery_failures = self._counter("delivery_failures", "Records that a broker did not take", stage)
        self.transactions = self._counter("transactions", "Transactions that ended", ("stage", "outcome"))
        self.commit_seconds = self._histogram("commit_seconds", "What a commit took", _COMMIT_BUCKETS_S)
        self.speech_events = self._counter("speech_events", "What became of a speech feed's events", ("outcome",))
        self.speech_streams = self._gauge("speech_streams", "Streams of speech that are known now", ())
        self.in_flight_tokens = self._gauge("in_flight_tokens", "Tokens read and not yet delivered", stage)
        self.paused = self._gauge("paused", "1 while in-flight tokens are above their bound", stage)
        self.watermark_lag = self._gauge("watermark_lag", "Records read and not yet delivered", place)
        self.consumer_lag = self._gauge("consumer_lag", "Records of the topic not yet delivered", place)
        self.batch_tokens = self._histogram("batch_tokens", "Tokens of a micro-batch", _TOKEN_BUCKETS)
        self.batch_windows = self._histogram("batch_windows", "Windows of a micro-batch", _WINDOW_BUCKETS)
        self.batch_age = self._histogram("batch_age_seconds", "Wait of a micro-batch's oldest window", _AGE_BUCKETS_S)

    def stage(self, name: str, *, computes: bool = True) -> StageMetrics:
        """The metrics of one stage; of one that computes nothing without Triton's."""
        if name not in self._stages:
            self._stages[name] = StageMetrics(self, name, computes=computes)
        return self._stages[name]

    def _counter(self, name: str, documentation: str, labels: Iterable[str] = ()) -> Counter:
        return Counter(f"penstock_{name}", documentation, ("ensemble", *labels), registry=self.registry)

    def _gauge(self, name: str, documentation: str, labels: Iterable[str]) -> Gauge:
        return Gauge(f"penstock_{name}", documentation, ("ensemble", *labels), registry=self.registry)

    def _histogram(self, name: str, documentation: str, buckets: Sequence[float]) -> Histogram:
        labels = ("ensemble", "stage")
        return Histogram(f"penstock_{name}", documentation, labels, buckets=buckets, registry=self.registry)


class StageMetrics:
    """What a stage's worker and steps tell of themselves. Thread-safe; milliseconds in, microseconds out."""

    def __init__(self, worker: WorkerMetrics, stage: str, *, computes: bool) -> None:
        self._worker = worker
        self._computes = computes
        self._triton = worker.triton
        self._stage = stage
        self._labels = labels = (worker.ensemble, stage)
        self._tokens = worker.tokens.labels(*labels)
        self._padded_tokens = worker.padded_tokens.labels(*labels)
        self._unanswered: dict[Unanswered, Counter] = {
            "expired": worker.expired.labels(*labels),
            "superseded": worker.superseded.labels(*labels),
        }
        self._records_lost = worker.records_lost.labels(*labels)
        self._delivery_failures = worker.delivery_failures.labels(*labels)
        self._in_flight_tokens = worker.in_flight_tokens.labels(*labels)
        self._paused = worker.paused.labels(*labels)
        self._batch_tokens = worker.batch_tokens.labels(*labels)
        self._batch_windows = worker.batch_windows.labels(*labels)
        self._batch_age = worker.batch_age.labels(*labels)
        self._transactions_committed = worker.transactions.labels(*labels, "committed")
        self._transactions_aborted = worker.transactions.labels(*labels, "aborted")
        self._commit_seconds = worker.commit_seconds.labels(*labels)
        self._tokens_by_topic: dict[str, int] = {}
        self._paused_by_topic: dict[str, bool] = {}
        self._told: Counts[str] = Counts()
        self._told_refused: Counts[Reason] = Counts()
        for reason in Reason:
            worker.dead_letters.labels(*labels, reason)
        if computes:
            worker.triton.declare(stage)

    def stage_done(self, *, texts: int, queue_ms: float, compute_ms: float, output_ms: float = 0.0) -> None:
        """A unit of `texts` waited and was computed, each of its texts for so long."""
        self._triton.add(
            self._stage,
            nv_inference_count=texts,
            nv_inference_exec_count=1,
            nv_inference_queue_duration_us=texts * queue_ms * 1e3,
            nv_inference_compute_infer_duration_us=texts * compute_ms * 1e3,
            nv_inference_compute_output_duration_us=texts * output_ms * 1e3,
        )

    def batch_done(
        self,
        *,
        windows: int,
        tokens: int,
        padded_tokens: int,
        waited_ms: Sequence[float],
        input_ms: float,
        infer_ms: float,
        output_ms: float,
    ) -> None:
        """A micro-batch was computed; `waited_ms` has the wait of each window."""
        self._triton.add(
            self._stage,
            nv_inference_count=windows,
            nv_inference_exec_count=1,
            nv_inference_queue_duration_us=sum(waited_ms) * 1e3,
            nv_inference_compute_input_duration_us=windows * input_ms * 1e3,
            nv_inference_compute_infer_duration_us=windows * infer_ms * 1e3,
            nv_inference_compute_output_duration_us=windows * output_ms * 1e3,
        )
        self._tokens.inc(tokens)
        self._padded_tokens.inc(padded_tokens)
        self._batch_tokens.observe(tokens)
        self._batch_windows.observe(windows)
        self._batch_age.observe(max(waited_ms, default=0.0) / 1e3)

    def arrived(self, *, texts: int, total_ms: float) -> None:
        """What was made of `texts` is delivered, so long after they were read."""
        self._triton.add(
            self._stage,
            nv_inference_request_success=texts,
            nv_inference_request_duration_us=texts * total_ms * 1e3,
        )

    def dead_letter(self, reason: Reason, records: int = 1) -> None:
        """Records became dead letters."""
        self._worker.dead_letters.labels(*self._labels, reason).inc(records)
        if self._computes:
            self._triton.fail(self._stage, reason, records)

    def unanswered(self, why: Unanswered, texts: int = 1) -> None:
        """Texts were not computed."""
        self._unanswered[why].inc(texts)

    def records_lost(self) -> None:
        """The topic no longer had what was to be read next; how many records that were nobody knows."""
        self._records_lost.inc()

    def delivery_failed(self, records: int = 1) -> None:
        """A broker did not take what was produced."""
        self._delivery_failures.inc(records)

    def committed(self, took_ms: float) -> None:
        """A transaction was committed, which took so long."""
        self._transactions_committed.inc()
        self._commit_seconds.observe(took_ms / 1e3)

    def aborted(self) -> None:
        """A transaction was aborted, to be tried again."""
        self._transactions_aborted.inc()

    def pending(self, texts: int) -> None:
        """How many wait for a batch now."""
        self._triton.set_pending(self._stage, texts)

    def in_flight(self, topic: str, tokens: int) -> None:
        """How many tokens of a topic are read and not yet delivered now."""
        self._tokens_by_topic[topic] = tokens
        self._in_flight_tokens.set(tokens if len(self._tokens_by_topic) == 1 else sum(self._tokens_by_topic.values()))

    def paused(self, topic: str, paused: bool) -> None:
        """Whether a topic's partitions are paused now."""
        self._paused_by_topic[topic] = paused
        self._paused.set(any(self._paused_by_topic.values()))

    def lag(self, topic: str, partition: int, end: int, watermark: int | None, in_flight: int) -> None:
        """How far a partition is behind: `end` is its next offset to be written (below 0 where that isn't known),
        `watermark` the next to commit (None before the first), `in_flight` counts records."""
        labels = (*self._labels, topic, str(partition))
        self._worker.watermark_lag.labels(*labels).set(in_flight)
        if watermark is not None and end >= 0:
            self._worker.consumer_lag.labels(*labels).set(max(0, end - watermark))

    def speech(self, counts: Mapping[str, int], refused: Mapping[Reason, int], *, streams: int) -> None:
        """What became of events since this process began, by outcome; its dead letters, by reason; and how many streams
        it knows now."""
        for outcome, count in counts.items():
            self._worker.speech_events.labels(self._worker.ensemble, outcome).inc(count - self._told[outcome])
        for reason, count in refused.items():
            self.dead_letter(reason, count - self._told_refused[reason])
        self._told = Counts(counts)
        self._told_refused = Counts(refused)
        self._worker.speech_streams.labels(self._worker.ensemble).set(streams)

    def forget(self, topic: str, partition: int) -> None:
        """The partition is another worker's now: a lag that stood still here would be a false alarm."""
        for gauge in (self._worker.watermark_lag, self._worker.consumer_lag):
            with suppress(KeyError):  # nothing was ever told of it
                gauge.remove(*self._labels, topic, str(partition))


def _version() -> str:
    try:
        return version("penstock")
    except PackageNotFoundError:  # a source tree that was not installed
        return "unknown"
