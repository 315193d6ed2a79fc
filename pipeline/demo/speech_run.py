"""`penstock demo --asr`: recorded speech through everything, at its real pace, and the transcripts as they grow."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.demo.recorded_speech import read_recording, speech
from pipeline.demo.speech_session import SPEECH_ENSEMBLE, SpeechSession, run_speech_session
from pipeline.ensemble_file import require_regular_file
from pipeline.settings import load_ensemble
from pipeline.speech.serve import require_speech

DEFAULT_STREAMS = 5
DEFAULT_SECONDS = 15.0


def run_speech_demo(
    *,
    ensemble: Path | None = None,
    bootstrap: str | None = None,
    streams: int | None = None,
    seconds: float | None = None,
    speed: float | None = None,
    as_json: bool = False,
) -> int:
    """Run it, with defaults for what is None; the exit code: 0 only if every final was annotated and every stream has
    its transcript.

    Raises UserError and SettingsError for what a person must change.
    """
    file = SPEECH_ENSEMBLE if ensemble is None else ensemble
    require_regular_file(file)
    settings = load_ensemble(file, bootstrap=bootstrap, environ=os.environ)
    require_speech(settings)

    def show(session: SpeechSession) -> None:
        session.start(file, settings, embedded=bootstrap is None)
        _rehearse(session, streams=streams or DEFAULT_STREAMS, seconds=seconds or DEFAULT_SECONDS, speed=speed or 1.0)

    return run_speech_session(show, as_json=as_json)


def _rehearse(session: SpeechSession, *, streams: int, seconds: float, speed: float) -> None:
    """Say all of it, and wait for the transcripts. Raises DemoStopped, WorkerFailure."""
    plan = speech(read_recording(), speakers=streams, seconds=seconds)
    session.screen.say(f"{streams:,} people read aloud for {plan[-1].due_ms / speed / 1e3:.0f} s, x{speed:g}\n")
    feed = session.open_feed()
    for each in feed.rehearse(plan, speed=speed):
        session.interruption.check()
        session.show([each])
    session.await_transcripts(streams, check=session.look)
