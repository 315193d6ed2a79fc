"""`penstock listen`: a recording or the microphone, heard by a recognizer, and the annotated transcript as it grows.

Everything runs here, over an embedded broker, unless a running system's Kafka is named: then this is one speaker of
that system, and starts nothing.
"""

from __future__ import annotations

import math
import re
import time
import uuid
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from pipeline.demo.processes import DemoStopped
from pipeline.demo.recorded_speech import Said
from pipeline.demo.speech_feed import SpeechFeed
from pipeline.demo.speech_session import SPEECH_ENSEMBLE, SpeechSession, run_speech_session
from pipeline.ensemble_file import require_regular_file
from pipeline.errors import UserError
from pipeline.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED
from pipeline.listen.audio import Source
from pipeline.listen.hearing import Behind, Ended, Hearing
from pipeline.listen.microphone import Microphone
from pipeline.listen.recognizers.choice import Opened, choose_recognizer
from pipeline.listen.recognizers.recognizer import Hypothesis
from pipeline.listen.recording import Pace, Recording
from pipeline.listen.utterance_events import UtteranceEvents
from pipeline.model_tasks import require_speech
from pipeline.settings import EnsembleSettings, load_ensemble

# How soon a hypothesis is sent once it is there.
_LOOK_S = 0.005
# A first hypothesis that nobody has annotated by then makes one doubt that somebody will.
_DOUBT_S = 10.0
_NAME_CHARACTERS = 24


def run_listen(
    file: str | None,
    *,
    microphone: bool = False,
    recognizer: str | None = None,
    model: str | None = None,
    ensemble: Path | None = None,
    bootstrap: str | None = None,
    speed: float | None = None,
    as_json: bool = False,
) -> int:
    """Hear `file` ("-" is the microphone) to its end; the exit code: 0 only if all finals were annotated and the
    transcript is right. Raises UserError and SettingsError for what a person must change."""
    live = microphone or file == "-"
    if (file is not None and microphone and file != "-") or (file is None and not microphone):
        raise UserError("listen: give either a WAV file or --microphone (or -, which is the same)")
    if live and speed is not None:
        raise UserError("listen: --speed goes with a WAV file: nobody speaks faster into a microphone")
    if bootstrap is not None and ensemble is None:
        raise UserError(
            "listen: --bootstrap goes with --ensemble, the file of the system that runs there; leave both out to run "
            "all of it here"
        )
    with ExitStack() as stack:
        source = Microphone() if live else stack.enter_context(Recording(Path(file or ""), Pace(speed or 1.0)))
        name, opened = choose_recognizer(recognizer, model)
        return listen(source, name, opened, ensemble=ensemble, bootstrap=bootstrap, speed=speed or 1.0, as_json=as_json)


def listen(
    source: Source,
    name: str,
    opened: Opened,
    *,
    ensemble: Path | None = None,
    bootstrap: str | None = None,
    speed: float = 1.0,
    as_json: bool = False,
) -> int:
    """Hear the source with the recognizer `name`, which `opened` loads."""
    path = SPEECH_ENSEMBLE if ensemble is None else ensemble
    require_regular_file(path)
    # Not by the environment: where it is set for the other commands, a recording is still to be heard here.
    settings = load_ensemble(path, bootstrap=bootstrap)
    if bootstrap is None:
        require_speech(settings)
    if settings.speech_or_default.feed != "penstock":
        message = "listen sends Penstock's own speech events: leave it out, or take another ensemble"
        raise settings.mistake("speech", "feed", message=message)

    def show(session: SpeechSession) -> None:
        if bootstrap is not None:
            session.join(settings)
        session.screen.wait_for(f"Loading {name}")
        recognizer = opened()
        session.interruption.check()
        if bootstrap is None:
            session.start(path, settings, embedded=True)
        session.ended_by_hand = isinstance(source, Microphone)
        how = "Ctrl-C ends it" if session.ended_by_hand else f"x{speed:g}"
        session.screen.say(f"{name} hears {source.name}, {how}\n")
        feed = session.open_feed()
        listening = _Listening(session, settings, source, speed=speed)
        listening.run(Hearing(source, recognizer), feed, others_annotate=bootstrap is not None)

    return run_speech_session(show, as_json=as_json)


class _Listening:
    """From the first word to the transcript."""

    def __init__(self, session: SpeechSession, settings: EnsembleSettings, source: Source, *, speed: float) -> None:
        speech = settings.speech_or_default
        self._session = session
        self._source = source
        self._speed = speed
        # Three times before silence would end the stream.
        self._repeat_after_s = speech.silence_ms / 3e3
        self._events = UtteranceEvents(_stream_id(source.name), max_utterances=speech.max_utterances)
        self._started_s = self._sent_s = time.monotonic()
        self._doubt_s: float | None = None

    def run(self, hearing: Hearing, feed: SpeechFeed, *, others_annotate: bool) -> None:
        """Raises DemoStopped, UserError, WorkerFailure."""
        session = self._session
        self._started_s = time.monotonic()
        hearing.start()
        goes_on = True
        try:
            while goes_on:
                for found in hearing.found():
                    goes_on = self._take(found, feed)
                    if others_annotate and self._doubt_s is None and self._events.streams:
                        self._doubt_s = self._sent_s + _DOUBT_S
                self._show(feed)
                self._keep_alive(feed)
                if session.interruption.requested:
                    hearing.stop()
        finally:
            hearing.stop()
        self._send(feed, self._events.end(self._now_ms()))
        if isinstance(self._source, Microphone) and self._source.lost_s:
            session.screen.warn(f"{self._source.lost_s:.1f} s of audio were lost: the recognizer is too slow")
        if not self._events.streams:
            session.screen.warn(f"no words were recognized in {self._source.name}")
        session.await_transcripts(len(self._events.streams), check=self._watch)

    def _take(self, found: Hypothesis | Behind | Ended, feed: SpeechFeed) -> bool:
        """Whether there will be more."""
        match found:
            case Behind(seconds):
                self._session.screen.warn(f"the recognizer is behind by {seconds:.1f} s: it is slower than the speech")
            case Ended(None):
                return False
            case Ended(UserError() as err):
                raise err
            case Ended(err):
                raise DemoStopped(EXIT_FAILED, f"the recognizer failed: {type(err).__name__}: {err}")
            case Hypothesis():
                self._send(feed, self._events.heard(found, self._now_ms()))
        return True

    def _send(self, feed: SpeechFeed, events: Iterable[Said]) -> None:
        for said in events:
            feed.say(said)
            self._sent_s = time.monotonic()

    def _show(self, feed: SpeechFeed) -> None:
        found = feed.hear(_LOOK_S)
        self._session.show(found)
        if found:
            self._doubt_s = math.inf
        elif self._doubt_s is not None and time.monotonic() > self._doubt_s:
            self._doubt_s = math.inf
            self._session.screen.warn(
                f"nothing is annotated after {_DOUBT_S:g} s: does `penstock up` of this ensemble run, with `speech:` "
                "in its file?"
            )
        self._watch()

    def _keep_alive(self, feed: SpeechFeed) -> None:
        """Nobody speaks, but somebody listens: the stream has not ended."""
        if self._events.last is not None and time.monotonic() - self._sent_s > self._repeat_after_s:
            feed.repeat(self._events.last)
            self._sent_s = time.monotonic()

    def _watch(self) -> None:
        # First: its second request has killed what is watched.
        if self._session.interruption.insisted:
            raise DemoStopped(EXIT_INTERRUPTED, "interrupted")
        self._session.watch()

    def _now_ms(self) -> int:
        """In the audio's time."""
        return round((time.monotonic() - self._started_s) * self._speed * 1e3)


def _stream_id(name: str) -> str:
    """A new one each time."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)[:_NAME_CHARACTERS]}-{uuid.uuid4().hex[:6]}"
