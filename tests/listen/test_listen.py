"""`penstock listen`: a recognizer that is none, and everything behind it."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from pipeline.errors import UserError
from pipeline.listen.recognizers.recognizer import Hypothesis
from pipeline.listen.recording import Pace, Recording
from pipeline.listen.run import listen, run_listen
from pipeline.mock_cluster import EmbeddedBroker
from pipeline.settings import EnsembleSettings, load_ensemble
from tests.listen.sounds import tone, write_wav
from tests.speech.member import running
from tests.speech.speech_world import answer


class Script:
    """A recognizer that hears a word in each 0.1 s, and a sentence in five of them."""

    def __init__(self, pause: range = range(0)) -> None:
        """Between these blocks nobody speaks."""
        self._blocks = 0
        self._pause = pause

    def accept(self, samples: np.ndarray) -> list[Hypothesis]:
        self._blocks += 1
        if self._blocks in self._pause:
            return []
        words = self._blocks % 5
        return [Hypothesis(" ".join(["word"] * (words or 5)), not words, 0, self._blocks * 100)]

    def finish(self) -> list[Hypothesis]:
        return [Hypothesis("and so", True)] if self._blocks % 5 else []


class Interrupted(Script):
    """Ctrl-C comes at the third word."""

    def accept(self, samples: np.ndarray) -> list[Hypothesis]:
        if self._blocks == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return super().accept(samples)


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    return write_wav(tmp_path / "my call.wav", tone(1.2).tobytes())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"file": None}, "listen: give either a WAV file or --microphone"),
        ({"file": "a.wav", "microphone": True}, "listen: give either a WAV file or --microphone"),
        ({"file": "-", "speed": 2.0}, "listen: --speed goes with a WAV file"),
        ({"file": "a.wav", "bootstrap": "b:1"}, "listen: --bootstrap goes with --ensemble"),
        ({"file": "no-such.wav"}, "no-such.wav: No such file: name a WAV file"),
    ],
)
def test_a_wrong_command_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=f"^{says}"):
        run_listen(options.pop("file"), **options)


def test_a_feed_of_another_recognizer_is_refused(tmp_path: Path, wav: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text("name: talk\nmodels: [{name: m, source: unused}]\nspeech:\n  feed: vosk\n")
    with Recording(wav, Pace(1)) as recording, pytest.raises(UserError) as raised:
        listen(recording, "script", Script, ensemble=file, bootstrap="127.0.0.1:1")
    [line] = raised.value.lines
    assert line.startswith(f"{file}:4: speech.feed: listen sends Penstock's own speech events: ")


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[tuple[Path, EmbeddedBroker]]:
    file = tmp_path / "talk.yaml"
    file.write_text(
        "name: talk\ntopics: {partitions: 2}\nmodels: [{name: m, source: unused}]\ncommit_interval_ms: 50\n"
        "kafka: {consumer: {session.timeout.ms: 600, heartbeat.interval.ms: 100}}\n"
    )
    with EmbeddedBroker() as broker:
        yield file, broker


def make_topics(broker: EmbeddedBroker, settings: EnsembleSettings) -> None:
    names, speech = settings.topic_names, settings.speech_topic_names
    for name in (names.requests, names.results, names.dead_letters):
        broker.create_topic(name, 2)
    for name in (speech.speech, speech.transcripts, speech.changelog):
        broker.create_topic(name, 2)


class Stages(threading.Thread):
    """Answers requests as stages do."""

    def __init__(self, settings: EnsembleSettings) -> None:
        super().__init__(daemon=True)
        self.stopping = threading.Event()
        servers = {"bootstrap.servers": settings.kafka.bootstrap_servers}
        self._producer = Producer(servers | {"linger.ms": 0})
        self._consumer = Consumer(servers | {"group.id": "stages", "fetch.wait.max.ms": 10})
        names = settings.topic_names
        self._results = names.results
        self._consumer.assign([TopicPartition(names.requests, number, OFFSET_BEGINNING) for number in range(2)])

    def run(self) -> None:
        while not self.stopping.is_set():
            for request in self._consumer.consume(100, 0.02):
                value = json.dumps(answer(json.loads(request.value() or b"")["text"]))
                partition = request.partition() or 0
                self._producer.produce(self._results, value, request.key(), partition, headers=request.headers())
            self._producer.poll(0)
        self._consumer.close()


@pytest.mark.broker
def test_a_recording_is_heard_and_annotated_by_a_system_that_runs(
    talk: tuple[Path, EmbeddedBroker], wav: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    file, broker = talk
    with Recording(wav, Pace(1)) as recording, pytest.raises(UserError, match=r"^no topic talk\.speech at 127"):
        listen(recording, "script", Script, ensemble=file, bootstrap=broker.bootstrap)
    settings = load_ensemble(file, bootstrap=broker.bootstrap)
    make_topics(broker, settings)
    stages = Stages(settings)
    stages.start()

    def heard(recognizer: Callable[[], Script]) -> tuple[int, dict[str, Any]]:
        with Recording(wav, Pace(10)) as recording:
            code = listen(
                recording, "script", recognizer, ensemble=file, bootstrap=broker.bootstrap, speed=10, as_json=True
            )
        summary = json.loads(capfdbinary.readouterr().out)
        names = ("streams", "partials", "finals", "finals_lost", "stale", "errors", "transcripts_right")
        return code, {name: summary[name] for name in names}

    right = {"streams": 1, "finals_lost": 0, "stale": 0, "errors": [], "transcripts_right": 1}
    with running(settings):
        assert heard(Script) == (0, right | {"partials": 10, "finals": 3})
        code, found = heard(Interrupted)
    stages.stopping.set()
    stages.join()
    # How soon it is noticed is open. What was said until then is final, and the stream has its transcript.
    assert (code, found) == (130, right | {name: found[name] for name in ("partials", "finals")})
    assert found["finals"] >= 1


@pytest.mark.slow
@pytest.mark.processes
def test_everything_runs_here_and_a_pause_does_not_end_it(
    tmp_path: Path, small_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "talk.yaml"
    file.write_text(
        "name: talk\nobjective: latency\ntopics: {partitions: 2}\nengine: {kind: numpy}\nhttp: {port: 0}\n"
        f"models: [{{name: mood, source: {small_model}, task: text-classification}}]\nspeech: {{silence_ms: 1000}}\n"
    )
    wav = write_wav(tmp_path / "my call.wav", tone(4.2).tobytes())
    with Recording(wav, Pace(1)) as recording:
        assert listen(recording, "script", lambda: Script(range(6, 41)), ensemble=file) == 0
    out, err = capfd.readouterr()
    assert err == ""
    lines = out.splitlines()
    said = [line for line in lines if line.startswith("my-call-")]
    assert said[-1].split()[:4] == [said[0].split("/")[0] + "/1", "final", "*and", "so*"]
    assert "[mood " in said[0]
    assert lines[-1] == "Every final is annotated, nothing stale was told, and each transcript has all that was said."
