"""Which recognizer hears: the one that is named, or the first that is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from pipeline.errors import UserError
from pipeline.listen.recognizers.recognizer import Recognizer

# Name on the command line and in the registry, and the module that it installs; the first needs no model of its own.
MODULES = {"pocketsphinx": "pocketsphinx", "vosk": "vosk", "faster-whisper": "faster_whisper"}

Opened = Callable[[], Recognizer]


def choose_recognizer(name: str | None, model: str | None) -> tuple[str, Opened]:
    """Its name, and what loads it, which takes seconds. Either raises UserError where it is not installed well."""
    if name is None:
        name = next(filter(_is_installed, MODULES), None)
        if name is None:
            commands = ", ".join(f"pip install {each}" for each in MODULES)
            raise UserError(f"listen: no speech recognizer is installed: {commands} (the first brings its own model)")
    elif not _is_installed(name):
        raise UserError(f"listen: {name} is not installed: pip install {name}")

    def opened() -> Recognizer:
        try:
            return _open(name, model)
        except ImportError as err:
            raise UserError(f"listen: {name} can't be loaded ({err}): pip install {name}") from err

    return name, opened


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(MODULES[name]) is not None


def _open(name: str, model: str | None) -> Recognizer:
    match name:
        case "vosk":
            from pipeline.listen.recognizers.vosk_recognizer import open_vosk

            return open_vosk(model)
        case "faster-whisper":
            from pipeline.listen.recognizers.whisper_recognizer import open_whisper

            return open_whisper(model)
        case _:
            from pipeline.listen.recognizers.pocketsphinx_recognizer import open_pocketsphinx

            return open_pocketsphinx(model)
