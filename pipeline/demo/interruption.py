"""What the demo does to its own process: signals are noted instead of obeyed, its log goes to a file."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Self

from pipeline.demo.processes import DemoStopped
from pipeline.exit_codes import EXIT_INTERRUPTED


class Interruption:
    """Ctrl-C, SIGTERM and a closed terminal: noted, and acted on where it is safe. A second one is
    `insisted`, and calls `on_second`."""

    def __init__(self) -> None:
        self.requested = False
        self.insisted = False
        self.on_second: Callable[[], None] | None = None
        self._before: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}

    def check(self) -> None:
        """Raises DemoStopped."""
        if self.requested:
            raise DemoStopped(EXIT_INTERRUPTED, "interrupted")

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Under nohup, SIGHUP is to be ignored.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested:
            self.insisted = True
            if self.on_second is not None:
                self.on_second()
        self.requested = True


@contextmanager
def logging_to(file: Path) -> Iterator[None]:
    """The log of this process, too, belongs in a file: the screen is drawn on."""
    root = logging.getLogger()
    before = root.handlers[:]
    handler = logging.FileHandler(file, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s %(message)s"))
    root.handlers[:] = [handler]
    try:
        yield
    finally:
        root.handlers[:] = before
        handler.close()
