"""`penstock demo --asr`: recorded speech through everything, at its real pace, and the transcripts as they grow."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from pipeline.demo.recorded_speech import Said, read_recording, speech
from pipeline.demo.speech_session import SPEECH_ENSEMBLE, SpeechSession, run_speech_session
from pipeline.ensemble_file import require_regular_file
from pipeline.model_tasks import require_speech
from pipeline.settings import load_ensemble

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
        # A Kafka that goes on remembers streams that have ended.
        name = "speaker" if bootstrap is None else f"speaker-{secrets.token_hex(2)}"
        plan = speech(
            read_recording(),
            speakers=streams or DEFAULT_STREAMS,
            seconds=DEFAULT_SECONDS if seconds is None else seconds,
            name=name,
        )
        _rehearse(session, plan, speed=speed or 1.0)

    return run_speech_session(show, as_json=as_json)


def _rehearse(session: SpeechSession, plan: Sequence[Said], *, speed: float) -> None:
    """Say all of it, and wait for the transcripts. Raises DemoStopped, WorkerFailure."""
    streams = len({said.stream_id for said in plan})
    session.screen.say(announced(streams, plan[-1].due_ms / speed / 1e3, speed))
    feed = session.open_feed()
    for each in feed.rehearse(plan, speed=speed):
        session.interruption.check()
        session.show([each])
    session.await_transcripts(streams, check=session.look)


def announced(streams: int, seconds: float, speed: float) -> str:
    """What is to be heard."""
    who = "1 person reads" if streams == 1 else f"{streams:,} people read"
    return f"{who} aloud for {seconds:.0f} s, x{speed:g}\n"
