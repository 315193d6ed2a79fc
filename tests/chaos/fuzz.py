"""Feeds running stages what nobody should send, and good requests in between.

    python -m tests.chaos.fuzz --mutants 100000 --seed 1 --json

Half of the mutants are requests, a quarter each packs on the two topics between the stages. In the end every record of
the three topics has one outcome: what a decoder refuses is in the dead letters, as it was, and nothing else of it is
anywhere; a request that can be read is answered or a dead letter; good ones are all answered. No worker has died, and
none has grown.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from zlib import crc32

import msgspec
from confluent_kafka import Message, Producer

from pipeline.apache_kafka.broker import ApacheBroker, find_runtime
from pipeline.apache_kafka.runtime import Runtime
from pipeline.clients import input_record
from pipeline.settings import EnsembleSettings, load_ensemble
from pipeline.up import make_topics
from schemas.errors import BadRecord, Reason
from schemas.headers import DLQ_PREFIX
from schemas.packs import decode_encoding_pack, decode_token_pack
from schemas.requests import decode_request
from tests.chaos import mutations
from tests.chaos.crew import Crew
from tests.chaos.tiny_ensemble import PARTITIONS, Answer, decode_answer, write_ensemble
from tests.chaos.traffic import committed_reader, read_to_the_end

MAX_TEXT_BYTES = 4_096
# Requests without any fault among the mutants, one in so many.
_GOOD_EVERY = 10
# What may be on its way at a time: what a worker keeps of it is bounded by its own limits, the broker keeps all.
_BLOCK = 1_000
_PATIENCE_S = 60.0
_LOOK_S = 0.2
# A worker that has seen a fifth of all is warm; what is more than this afterwards is growth.
_MOST_GROWTH_MIB = 48.0
_EXAMPLES = 10

Place = tuple[str, int, int]


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What was sent and what became of it. `memory_mib`: of each worker at a fifth, at the end, and at its peak."""

    seed: int
    sent: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    good: int = 0
    good_answered: int = 0
    results: int = 0
    dead_letters: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    own_deaths: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    memory_mib: dict[str, dict[str, float]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def break_with(self, what: str) -> None:
        """Of many of one kind some are enough."""
        if len(self.broken) < _EXAMPLES:
            self.broken.append(what)


class _Fates:
    """What results and dead letters say of each place that was read."""

    def __init__(self) -> None:
        self.forged = 0
        self.answered: Counter[Place] = Counter()
        self.dead: dict[Place, list[int]] = {}
        self.good: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()

    def see_result(self, message: Message) -> None:
        source = msgspec.json.decode(message.value() or b"", type=_Sourced).source
        answer: Answer = decode_answer(message.value() or b"")
        if answer.id.startswith("pack-"):  # a forged pack's text, whatever place it claims
            self.forged += 1
            return
        self.answered[source["topic"], source["partition"], source["offset"]] += 1  # type: ignore[index]
        if answer.id.startswith("good-"):
            self.good[answer.id] += 1

    def see_dead_letter(self, message: Message) -> None:
        headers = dict(message.headers() or [])
        topic, partition, offset, reason = (
            (headers[DLQ_PREFIX + name] or b"").decode() for name in ("topic", "partition", "offset", "reason")
        )
        self.reasons[reason] += 1
        self.dead.setdefault((topic, int(partition), int(offset)), []).append(crc32(message.value() or b""))


class _Sourced(msgspec.Struct):
    source: dict[str, str | int]


def fuzz(mutants: int, seed: int, folder: Path, *, runtime: Runtime, tell: bool = False) -> Outcome:
    """Send them all and judge; `folder` is for the broker, the model and the logs."""
    outcome = Outcome(seed=seed)
    started_s = time.monotonic()
    with ApacheBroker(folder / "broker", runtime=runtime) as broker:
        file = write_ensemble(
            folder,
            name=f"fuzz-{os.getpid()}",
            bootstrap=broker.bootstrap,
            requests={"max_text_bytes": MAX_TEXT_BYTES},
        )
        settings = load_ensemble(file)
        make_topics(settings)
        crew = Crew(file, broker.bootstrap, logs=folder / "logs", of_each=1)
        crew.start()
        try:
            _send(settings, crew, outcome, mutants=mutants, seed=seed, tell=tell)
        except (RuntimeError, TimeoutError) as err:
            outcome.break_with(f"{type(err).__name__}: {err}")
            crew.tell_stacks()
        outcome.own_deaths = crew.own_deaths
        if outcome.own_deaths:
            outcome.break_with(f"workers died by themselves: {outcome.own_deaths} times")
        if not crew.stop():
            outcome.break_with("a worker did not drain when it was told to stop")
        _judge(settings, outcome)
    outcome.seconds = round(time.monotonic() - started_s, 1)
    outcome.rate = round((mutants + outcome.good) / outcome.seconds, 1)
    return outcome


def _send(settings: EnsembleSettings, crew: Crew, outcome: Outcome, *, mutants: int, seed: int, tell: bool) -> None:
    """Block after block, each followed by a good request in every partition, whose answers are awaited: what is stuck
    behind a mutant is noticed there."""
    draw = random.Random(seed)
    names = settings.topic_names
    producer = Producer(
        {"bootstrap.servers": settings.kafka.bootstrap_servers, "enable.idempotence": True, "linger.ms": 5}
    )
    awaited = _Awaited(settings)
    sent: Counter[str] = Counter()

    def send(topic: str, value: bytes | None, partition: int) -> None:
        headers = [("noise", draw.randbytes(8))] if draw.random() < 0.1 else []
        key = draw.choice((None, b"", b"key", draw.randbytes(20)))
        producer.produce(topic, value, key, partition, headers=headers)
        sent[topic.rpartition(".")[2]] += 1

    def send_good(partition: int) -> str:
        name = f"good-{outcome.good}"
        value = json.dumps({"id": name, "text": f"A good text, number {outcome.good}."}).encode()
        send(names.requests, value, partition)
        outcome.good += 1
        return name

    try:
        for number in range(mutants):
            partition = draw.randrange(PARTITIONS)
            match number % 4:
                case 0 | 2:
                    send(names.requests, mutations.mutated_request(draw, mutations.request(draw, number)), partition)
                case 1:
                    pack = mutations.tokens(draw, number, names.requests, partition)
                    send(names.tokens, mutations.mutated_pack(draw, pack), partition)
                case _:
                    pack = mutations.encodings(draw, number, names.requests, partition)
                    send(names.encodings, mutations.mutated_pack(draw, pack), partition)
            if number % _GOOD_EVERY == 0:
                send_good(partition)
            producer.poll(0)
            if number % _BLOCK == _BLOCK - 1 or number == mutants - 1:
                last = {send_good(partition) for partition in range(PARTITIONS)}
                producer.flush(_PATIENCE_S)
                awaited.wait(last, look=crew.poll)
                if number >= mutants // 5:
                    _observe_memory(crew, outcome)
                if tell and number % (20 * _BLOCK) == 20 * _BLOCK - 1:
                    sys.stderr.write(f"{number + 1} mutants; {outcome.memory_mib}\n")
    finally:
        awaited.close()
        outcome.sent = dict(sent)


class _Awaited:
    """Reads results as they come."""

    def __init__(self, settings: EnsembleSettings) -> None:
        self._reader = committed_reader(settings, settings.topic_names.results)

    def wait(self, names: set[str], *, look: Callable[[], object]) -> None:
        """Until these are answered. Raises TimeoutError."""
        deadline_s = time.monotonic() + _PATIENCE_S
        while names:
            look()
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"no answer for {_PATIENCE_S:g} s to {sorted(names)}")
            for message in self._reader.consume(500, _LOOK_S):
                if message.error() is None:
                    names.discard(decode_answer(message.value() or b"").id)

    def close(self) -> None:
        self._reader.close()


def _observe_memory(crew: Crew, outcome: Outcome) -> None:
    for name, pid in crew.pids.items():
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        now, peak = (round(int(lines[key].split()[0]) / 1024, 1) for key in ("VmRSS", "VmHWM"))
        seen = outcome.memory_mib.setdefault(name, {"at_fifth": now})
        seen |= {"at_end": now, "peak": peak}


def _judge(settings: EnsembleSettings, outcome: Outcome) -> None:
    names = settings.topic_names
    fates = _Fates()
    read_to_the_end(settings, names.results, fates.see_result)
    read_to_the_end(settings, names.dead_letters, fates.see_dead_letter)
    outcome.results, outcome.dead_letters = fates.answered.total() + fates.forged, sum(map(len, fates.dead.values()))
    outcome.reasons = dict(fates.reasons.most_common())
    outcome.good_answered = len(fates.good)
    if outcome.good_answered != outcome.good or fates.good.total() != outcome.good:
        outcome.break_with(
            f"of {outcome.good} good requests {outcome.good_answered} were answered, {fates.good.total()} times"
        )
    refused: Counter[str] = Counter()

    def judge(message: Message, decode: Callable[[Message], None], *, answers_have_this_place: bool) -> None:
        place = (message.topic() or "", message.partition() or 0, message.offset() or 0)
        dead, answered = fates.dead.get(place, []), fates.answered[place]
        try:
            decode(message)
        except BadRecord as err:
            refused[place[0].rpartition(".")[2]] += 1
            if dead != [crc32(message.value() or b"")] or answered:
                outcome.break_with(f"{place}: {err}: dead letters {len(dead)}, answers {answered}")
            return
        if answers_have_this_place and len(dead) + answered != 1:
            outcome.break_with(f"{place}: can be read, but has {len(dead)} dead letters and {answered} answers")
        if not answers_have_this_place and dead:
            outcome.break_with(f"{place}: can be read, but is a dead letter")

    def request(message: Message) -> None:
        decode_request(input_record(message), format="json", max_text_bytes=MAX_TEXT_BYTES)

    def pack(message: Message) -> None:
        decode = decode_token_pack if message.topic() == names.tokens else decode_encoding_pack
        decoded = decode(message.value())
        if (decoded.topic, decoded.partition) != (names.requests, message.partition()):
            raise BadRecord(Reason.BAD_PACK, "another topic's or partition's")

    read_to_the_end(settings, names.requests, lambda each: judge(each, request, answers_have_this_place=True))
    read_to_the_end(settings, names.tokens, lambda each: judge(each, pack, answers_have_this_place=False))
    read_to_the_end(settings, names.encodings, lambda each: judge(each, pack, answers_have_this_place=False))
    outcome.refused = dict(refused)
    for name, seen in outcome.memory_mib.items():
        if seen["at_end"] - seen["at_fifth"] > _MOST_GROWTH_MIB:
            outcome.break_with(f"{name} grew from {seen['at_fifth']} to {seen['at_end']} MiB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="for the broker, the model and the logs; default a temporary one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="penstock-fuzz-"))
    folder.mkdir(parents=True, exist_ok=True)
    outcome = fuzz(options.mutants, options.seed, folder, runtime=find_runtime(), tell=True)
    if options.json:
        sys.stdout.write(json.dumps(asdict(outcome), indent=1) + "\n")
    else:
        sys.stdout.writelines(f"{name:20} {value}\n" for name, value in asdict(outcome).items())
    if outcome.broken:
        sys.stderr.write(f"BROKEN; logs are in {folder / 'logs'}\n")
        return 1
    if options.folder is None:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
