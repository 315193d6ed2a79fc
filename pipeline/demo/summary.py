"""The demo's numbers: the ledger's counts, and what the workers' metrics say of where the time went.

Where a text's time went, mean milliseconds of its way from topic to topic:

    queue, compute   of each stage, as its metrics count them: waiting for a thread, an instance or a fuller batch;
                     then input, inference and output of the unit or micro-batch that it was in
    topics           all the rest of its latency: a pack waits for its last text and for its turn in the partition,
                     is produced, fetched and read, four times from the demo to itself

The stages' own request durations don't tell the last apart: they end with the broker's acknowledgement, when the next
stage has long been reading.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from pipeline.demo.ledger import Ledger
from pipeline.settings import STAGES


class Percentiles(msgspec.Struct, frozen=True):
    """Milliseconds."""

    p50: float
    p95: float
    p99: float


class StageTime(msgspec.Struct, frozen=True):
    """Mean milliseconds of a text in a stage."""

    queue: float
    compute: float


class Memory(msgspec.Struct, frozen=True):
    """A process's resident memory, MiB: at the end, and the most it ever was."""

    rss: float
    peak: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to: the JSON object of `penstock demo --json`.

    `requests` are those sent. Null: nothing was measured.
    """

    requests: int
    results: int
    dead_letters: int
    lost: int
    repeated: int
    out_of_order: int
    restarts: int
    seconds: float
    texts_per_s: float
    tokens_per_s: float
    padding_share: float | None
    mean_batch_texts: float | None
    """Texts for each micro-batch of encode: one of several windows is one text, though it is in several of them."""
    latency_ms: Percentiles | None
    time_ms: dict[str, StageTime | float]
    memory_mib: dict[str, Memory]
    stopped: str | None
    """Why it ended before its time."""

    @property
    def good(self) -> bool:
        """Whether each request got exactly one result, in order, to the last one."""
        kept = self.results == self.requests and not self.repeated and not self.out_of_order
        return kept and self.stopped is None

    @property
    def verdict(self) -> str:
        """The same in a line."""
        if self.good:
            return f"{self.requests:,} requests, each answered exactly once, in order"
        faults = {
            "dead letters": self.dead_letters,
            "without an answer" if self.stopped else "lost": self.lost,
            "answered again": self.repeated,
            "out of order": self.out_of_order,
        }
        told = [f"{count:,} {name}" for name, count in faults.items() if count]
        return ", ".join([f"{self.requests:,} requests", f"{self.results:,} results", *told])


@dataclass(frozen=True, slots=True)
class Counters:
    """A moment's counters of all workers: by metric, and by stage or, where there is none, model."""

    values: Mapping[tuple[str, str], float]

    @classmethod
    def of(cls, pages: Iterable[str]) -> Counters:
        """From pages in Prometheus's text format."""
        values: defaultdict[tuple[str, str], float] = defaultdict(float)
        for page in pages:
            for family in text_string_to_metric_families(page):
                for sample in family.samples:
                    stage = sample.labels.get("stage", sample.labels.get("model"))
                    if stage in STAGES and "le" not in sample.labels:
                        # The parser gives every counter's name the end that Triton's don't have.
                        values[sample.name.removesuffix("_total"), stage] += sample.value
        return cls(values)

    def since(self, before: Counters) -> Counters:
        """What was counted since `before`. A counter that is lower than it was began anew, with its worker."""
        differences = {
            key: value - before.values.get(key, 0.0) if value >= before.values.get(key, 0.0) else value
            for key, value in self.values.items()
        }
        return Counters(differences)

    def get(self, name: str, stage: str) -> float:
        """0 where there is none."""
        return self.values.get((name, stage), 0.0)

    def ratio(self, numerator: str, denominator: str, stage: str) -> float | None:
        """None where nothing was counted."""
        divisor = self.get(denominator, stage)
        return self.get(numerator, stage) / divisor if divisor else None


def summarize(
    ledger: Ledger, counters: Counters, *, restarts: int, memory_mib: Mapping[str, Memory], stopped: str | None
) -> Summary:
    """`counters` are the differences over the run."""
    seconds = ledger.seconds
    latencies_ms = ledger.latencies_ms()
    used = counters.ratio("penstock_tokens", "penstock_padded_tokens", "encode")
    # In encode the metrics count windows; postprocess has the texts that these were of.
    texts = counters.get("nv_inference_count", "postprocess")
    batches = counters.get("nv_inference_exec_count", "encode")
    return Summary(
        requests=ledger.sent,
        results=ledger.results,
        dead_letters=ledger.dead_letters,
        lost=ledger.in_flight,
        repeated=ledger.repeated,
        out_of_order=ledger.out_of_order,
        restarts=restarts,
        seconds=round(seconds, 3),
        texts_per_s=round(ledger.results / seconds, 1) if seconds else 0.0,
        tokens_per_s=round(ledger.tokens / seconds, 1) if seconds else 0.0,
        padding_share=None if used is None else round(1 - used, 4),
        mean_batch_texts=round(texts / batches, 1) if texts and batches else None,
        latency_ms=_percentiles(latencies_ms) if len(latencies_ms) else None,
        time_ms=_times_ms(counters, float(latencies_ms.mean())) if len(latencies_ms) else {},
        memory_mib=dict(memory_mib),
        stopped=stopped,
    )


def _percentiles(values: np.typing.NDArray[np.float32]) -> Percentiles:
    return Percentiles(*(round(float(each), 2) for each in np.percentile(values, (50, 95, 99))))


def _times_ms(counters: Counters, latency_ms: float) -> dict[str, StageTime | float]:
    def mean_ms(name: str, stage: str) -> float:
        # Of encode it is the mean of a window, of which a long text has several at the same time.
        return (counters.ratio(f"nv_inference_{name}_duration_us", "nv_inference_count", stage) or 0.0) / 1e3

    # A stage whose worker does not answer any more, or had nothing to do because others share its topic, is left out.
    stages = {
        stage: StageTime(
            queue=mean_ms("queue", stage),
            compute=sum(mean_ms(f"compute_{part}", stage) for part in ("input", "infer", "output")),
        )
        for stage in STAGES
        if counters.get("nv_inference_count", stage)
    }
    times: dict[str, StageTime | float] = {
        stage: StageTime(round(time.queue, 2), round(time.compute, 2)) for stage, time in stages.items()
    }
    if len(stages) == len(STAGES):
        # Never shown below zero: both are means, but not of exactly the same texts after a worker's death.
        in_stages_ms = sum(time.queue + time.compute for time in stages.values())
        times["topics"] = round(max(0.0, latency_ms - in_stages_ms), 2)
    return times
