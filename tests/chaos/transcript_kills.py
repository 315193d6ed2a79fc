"""Kills stages and `penstock transcripts` at random while people speak, and compares what was written of them.

    make bench BENCH=bench_transcripts_kills ARGS='--kills 50 --json'

Apache Kafka, a process of each stage and one of transcripts. Streams of a real recognizer's hypotheses, each of several
utterances and an end, begin at moments drawn from the seed; SIGKILL ends processes at others, and each is started again
at once. Before that the same streams are heard by an ensemble that nobody kills. Judged are: a whole transcript of each
stream, told once, equal to that of the unkilled run byte for byte; every final annotated; no utterance with a text that
this revision never had; one text, one annotation. Exit code 1 where one of these is not so.

Nobody misses a partial hypothesis that a later one has replaced. With --all-final each event is an utterance of its own
and final: then the transcripts show for each record of the feed that it was heard.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from pipeline.apache_kafka.broker import ApacheBroker, find_runtime
from pipeline.apache_kafka.runtime import Runtime
from pipeline.demo.recorded_speech import RECORDING
from pipeline.settings import PROCESSES, EnsembleSettings, load_ensemble
from pipeline.supervisor import RestartPolicy, Supervisor
from pipeline.up import make_topics, stage_commands
from tests.chaos.tiny_ensemble import PARTITIONS, write_ensemble

_AT_ONCE = RestartPolicy(first_delay_s=0.02, longest_delay_s=0.02, max_deaths=1_000_000)
_INTO_FILE = ("/bin/sh", "-c", 'exec "$@" >>"$0" 2>&1')
# Without any transcript for so long, nothing more will come: what is unanswered is asked again after 10 s.
_PATIENCE_S = 60.0
_RESEND_MS = 10_000
_SECONDS_PER_KILL = 3.0
_LOOK_S = 0.02

Events = list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`seconds` of speech, in which all kills fall; of these processes, or of all."""

    streams: int
    kills: int
    seed: int
    seconds: float
    all_final: bool = False
    victims: tuple[str, ...] = PROCESSES


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of it. `recovery_s` is from the start of a `transcripts` process until its state is recovered."""

    plan: Plan
    events: int = 0
    finals: int = 0
    transcripts: int = 0
    equal: int = 0
    utterance_records: int = 0
    kills: dict[str, int] = field(default_factory=dict)
    own_deaths: int = 0
    seconds: float = 0.0
    recoveries: int = 0
    recovery_s_median: float = 0.0
    recovery_s_longest: float = 0.0
    broken: list[str] = field(default_factory=list)


def speech(streams: int, seed: int, *, all_final: bool = False) -> list[tuple[float, str, bytes]]:
    """Events by their moments, from 0 to 1: in each stream the recognizer's clips one after the other, and the end."""
    clips: dict[str, Events] = {}
    for line in RECORDING.read_text().splitlines():
        event = json.loads(line)
        clips.setdefault(event["stream_id"], []).append(event)
    draw = random.Random(seed)
    said: list[tuple[float, str, bytes]] = []
    for number in range(streams):
        stream_id = f"call-{number}"
        events = [*_one_stream(stream_id, draw.sample([*clips.values()], k=3), all_final=all_final)]
        begin = draw.uniform(0, 0.6)
        step = 0.4 / (len(events) + 1)
        said += [(begin + place * step, stream_id, json.dumps(event).encode()) for place, event in enumerate(events)]
    return sorted(said, key=lambda each: each[0])


def _one_stream(stream_id: str, clips: Sequence[Events], *, all_final: bool) -> Iterator[dict[str, Any]]:
    begin_ms = 0
    for place, clip in enumerate(clips):
        for event in clip:
            times = {name: begin_ms + event[name] for name in ("start_ms", "end_ms", "emitted_ms")}
            named = {"stream_id": stream_id, "utterance_id": str(place)}
            if all_final:
                named |= {"utterance_id": f"{place}-{event['revision']}", "is_final": True}
            yield event | times | named
        begin_ms += clip[-1]["end_ms"]
    yield {"stream_id": stream_id, "end_of_stream": True}


class Transcripts:
    """What was written to the topic, as it comes."""

    def __init__(self, settings: EnsembleSettings, said: Sequence[tuple[float, str, bytes]]) -> None:
        self.whole: dict[str, bytes] = {}
        self.utterances = 0
        self.newest_s = time.monotonic()
        self.wrong: list[str] = []
        self.annotations: dict[str, str] = {}
        self._texts = {
            (event["stream_id"], event["utterance_id"], event["revision"]): event
            for event in (json.loads(value) for _, _, value in said)
            if "text" in event
        }
        self._consumer = Consumer({"bootstrap.servers": settings.kafka.bootstrap_servers, "group.id": "transcripts"})
        topic = settings.speech_topic_names.transcripts
        self._consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in range(PARTITIONS)])

    def look(self) -> None:
        for message in self._consumer.consume(500, _LOOK_S):
            if message.error() is None:
                self._see(message.value() or b"")

    def close(self) -> None:
        self._consumer.close()

    def _see(self, value: bytes) -> None:
        record = json.loads(value)
        self.newest_s = time.monotonic()
        stream_id = record["stream_id"]
        if record["type"] == "transcript":
            if self.whole.setdefault(stream_id, value) is not value:
                self.wrong.append(f"{stream_id}: told twice: {value[:200]!r}")
            for utterance in record["utterances"]:
                if not utterance["is_final"]:
                    self.wrong.append(f"{stream_id}/{utterance['utterance_id']}: not final at the end")
                self._judge(stream_id, utterance)
        else:
            self.utterances += 1
            self._judge(stream_id, record)

    def _judge(self, stream_id: str, utterance: dict[str, Any]) -> None:
        place = (stream_id, utterance["utterance_id"], utterance["revision"])
        said = self._texts.get(place)
        if said is None or (said["text"], said["is_final"]) != (utterance["text"], utterance["is_final"]):
            self.wrong.append(f"{place}: this text was never said: {utterance['text'][:80]!r}")
        outputs = json.dumps(utterance.get("outputs"))
        if utterance.get("outputs") is None:
            self.wrong.append(f"{place}: not annotated: {utterance.get('error')}")
        elif self.annotations.setdefault(utterance["text"], outputs) != outputs:
            self.wrong.append(f"{place}: another annotation of the same text")


def kill(plan: Plan, folder: Path, *, runtime: Runtime, tell: bool = False) -> Outcome:
    """Do as planned; `folder` is for the broker, the models and the logs."""
    outcome = Outcome(plan=plan)
    said = speech(plan.streams, plan.seed, all_final=plan.all_final)
    outcome.events = len(said)
    outcome.finals = sum(json.loads(value).get("is_final", False) for _, _, value in said)
    with ApacheBroker(folder / "broker", runtime=runtime) as broker:
        quiet = _run(folder / "quiet", broker.bootstrap, said, moments_s=[], seconds=10.0, outcome=Outcome(plan=plan))
        draw = random.Random(plan.seed)
        moments_s = sorted(draw.uniform(0, plan.seconds) for _ in range(plan.kills))
        killed = _run(
            folder / "killed", broker.bootstrap, said, moments_s=moments_s, seconds=plan.seconds, outcome=outcome,
            draw=draw, tell=tell,
        )  # fmt: skip
    outcome.transcripts = len(killed.whole)
    outcome.utterance_records = killed.utterances
    outcome.equal = sum(killed.whole.get(stream_id) == value for stream_id, value in quiet.whole.items())
    different = [name for name, value in quiet.whole.items() if killed.whole.get(name) not in (value, None)]
    outcome.broken += [f"unkilled: {each}" for each in quiet.wrong[:5]] + killed.wrong[:10]
    for name, run in (("unkilled", quiet), ("killed", killed)):
        if len(run.whole) != plan.streams:
            outcome.broken.append(f"{name}: {len(run.whole)} of {plan.streams} streams have a whole transcript")
    for stream_id in different[:5]:
        outcome.broken.append(f"differs: {quiet.whole[stream_id]!r} and {killed.whole[stream_id]!r}")
    other = [text for text, outputs in quiet.annotations.items() if killed.annotations.get(text, outputs) != outputs]
    outcome.broken += [f"annotated otherwise in the two runs: {text[:80]!r}" for text in other[:5]]
    return outcome


def _run(
    folder: Path,
    bootstrap: str,
    said: Sequence[tuple[float, str, bytes]],
    *,
    moments_s: list[float],
    seconds: float,
    outcome: Outcome,
    draw: random.Random | None = None,
    tell: bool = False,
) -> Transcripts:
    """Say all within so many seconds, kill at these moments, until all streams have their transcript."""
    logs = folder / "logs"
    logs.mkdir(parents=True)
    file = write_ensemble(
        folder,
        name=f"speech-{folder.name}-{os.getpid()}",
        bootstrap=bootstrap,
        models=[{"name": "verdict", "source": "model", "task": "text-classification", "top_k": None}],
        # Digits that no batch changes: scores of one text differ by up to 1e-7.
        speech={"silence_ms": 600_000, "decimals": 3, "resend_after_ms": _RESEND_MS},
    )
    settings = load_ensemble(file)
    make_topics(settings)
    ports = dict.fromkeys(PROCESSES, 0)
    commands = stage_commands(file, bootstrap, fused=False, transcripts=True, http_ports=ports)
    supervisor = Supervisor(
        {name: [*_INTO_FILE, str(logs / f"{name}.log"), *command] for name, command in commands.items()},
        policy=_AT_ONCE,
    )
    transcripts = Transcripts(settings, said)
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0})
    kills: Counter[str] = Counter()
    supervisor.start()
    started_s = told_s = time.monotonic()
    place = 0
    try:
        while len(transcripts.whole) < len({stream_id for _, stream_id, _ in said}) or moments_s:
            now_s = time.monotonic() - started_s
            while place < len(said) and said[place][0] * seconds <= now_s:
                _, stream_id, value = said[place]
                producer.produce(settings.speech_topic_names.speech, value, stream_id)
                place += 1
            producer.poll(0)
            running = sorted((name, pid) for name, pid in supervisor.pids.items() if name in outcome.plan.victims)
            if moments_s and now_s >= moments_s[0] and running and draw is not None:
                moments_s.pop(0)
                name, pid = draw.choice(running)
                os.kill(pid, signal.SIGKILL)
                kills[name] += 1
            if supervisor.poll() is not None:
                outcome.broken.append("a process ended with exit code 2: its log says what a person must change")
                break
            transcripts.look()
            if place == len(said) and not moments_s and time.monotonic() - transcripts.newest_s > _PATIENCE_S:
                outcome.broken.append(f"no transcript for {_PATIENCE_S:g} s")
                break
            if tell and time.monotonic() - told_s > 15:
                told_s = time.monotonic()
                whole = len(transcripts.whole)
                sys.stderr.write(f"{now_s:.0f} s: {place} said, {whole} whole, {kills.total()} kills\n")
    finally:
        producer.flush(10)
        outcome.seconds = round(time.monotonic() - started_s, 1)
        # Who was killed last may not be started again yet.
        outcome.own_deaths = max(0, sum(supervisor.restarts.values()) - kills.total())
        if not supervisor.stop():
            outcome.broken.append("a process did not drain when it was told to stop")
        transcripts.look()
        transcripts.close()
    outcome.kills = dict(sorted(kills.items()))
    found = recoveries_s(logs / "transcripts.log")
    outcome.recoveries = len(found)
    if found:
        outcome.recovery_s_median, outcome.recovery_s_longest = round(median(found), 2), round(max(found), 2)
    return transcripts


def recoveries_s(log: Path) -> list[float]:
    """Of each process from its first line, which it writes when Python and its imports are there, to its state."""
    told = [line for line in log.read_text().splitlines() if "transcripts of" in line or "streams:" in line]
    return [
        (_time(after) - _time(before)).total_seconds()
        for before, after in pairwise(told)
        if "transcripts of" in before and "streams:" in after
    ]


def _time(line: str) -> datetime:
    return datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=60)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, help=f"of speech; default {_SECONDS_PER_KILL:g} a kill")
    parser.add_argument("--all-final", action="store_true", help="each event is an utterance of its own, and final")
    parser.add_argument("--only", nargs="+", choices=PROCESSES, default=PROCESSES, help="whom to kill")
    parser.add_argument("--folder", type=Path, help="for the broker, the models and the logs; default a temporary one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    seconds = options.seconds or max(options.kills * _SECONDS_PER_KILL, 10.0)
    plan = Plan(
        streams=options.streams, kills=options.kills, seed=options.seed, seconds=seconds,
        all_final=options.all_final, victims=(*options.only,),
    )  # fmt: skip
    folder = options.folder or Path(tempfile.mkdtemp(prefix="penstock-transcripts-"))
    folder.mkdir(parents=True, exist_ok=True)
    outcome = kill(plan, folder, runtime=find_runtime(), tell=True)
    if options.json:
        from benchmarks.machine import machine

        told = {"benchmark": "transcripts_kills", "machine": machine(), **asdict(outcome)}
        sys.stdout.write(json.dumps(told, indent=1) + "\n")
    else:
        sys.stdout.writelines(f"{name:20} {value}\n" for name, value in asdict(outcome).items())
    if outcome.broken:
        sys.stderr.write(f"BROKEN; logs are in {folder}\n")
        return 1
    if options.folder is None:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
