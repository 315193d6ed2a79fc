"""The thread on which a recognizer hears a source: what it makes of it is fetched by another one."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass

from pipeline.listen.audio import Source
from pipeline.listen.recognizers.recognizer import Hypothesis, Recognizer

# An utterance's last pass takes half a second at times; who is later than this stays so.
_BEHIND_S = 1.0


@dataclass(frozen=True, slots=True)
class Behind:
    """The recognizer is slower than the speech; told once."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Ended:
    """All is heard, or `error` came in between."""

    error: Exception | None = None


class Hearing:
    """Hears `source` until its end, or until it is stopped: then what was said so far is final."""

    def __init__(self, source: Source, recognizer: Recognizer) -> None:
        self._source = source
        self._recognizer = recognizer
        self._stopping = threading.Event()
        self._found: queue.SimpleQueue[Hypothesis | Behind | Ended] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="recognizer", daemon=True)

    def start(self) -> None:
        """Begin to hear."""
        self._thread.start()

    def stop(self) -> None:
        """Hear no more: `Ended` will come."""
        self._stopping.set()

    def found(self) -> list[Hypothesis | Behind | Ended]:
        """What has come since the last call; the last of all is `Ended`."""
        new: list[Hypothesis | Behind | Ended] = []
        while True:
            try:
                new.append(self._found.get_nowait())
            except queue.Empty:
                return new

    def _run(self) -> None:
        told = False
        try:
            for samples, behind_s in self._source.blocks(self._stopping):
                if behind_s >= _BEHIND_S and not told:
                    told = True
                    self._found.put(Behind(behind_s))
                for hypothesis in self._recognizer.accept(samples):
                    self._found.put(hypothesis)
            for hypothesis in self._recognizer.finish():
                self._found.put(hypothesis)
        except Exception as err:  # noqa: BLE001 - told by the thread that fetches it
            self._found.put(Ended(err))
        else:
            self._found.put(Ended())
