"""The GPUs of one engine and what lies on them, let go of in order, also where opening fails halfway."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from traceback import clear_frames
from typing import TYPE_CHECKING

from engines.lanes import Lane

if TYPE_CHECKING:
    from engines.cuda import Device


@dataclass(slots=True)
class Gpus:
    """Of each device its `lanes`, in the devices' order; `on_close` lets go of what the lanes of one share."""

    devices: list[Device] = field(default_factory=list)
    lanes: list[list[Lane]] = field(default_factory=list)
    on_close: list[Callable[[], None]] = field(default_factory=list)

    def lanes_in_turn(self) -> list[Lane]:
        """So that no GPU gets a second batch before each has one."""
        return [lane for some in zip(*self.lanes, strict=True) for lane in some]

    def close(self) -> None:
        """After the lanes: without this the process aborts at its end."""
        for let_go in self.on_close:
            let_go()
        for device in self.devices:
            device.close()


@contextmanager
def opened_gpus(indices: Sequence[int]) -> Iterator[Gpus]:
    """The GPUs, which are left open, unless something is raised within. Raises EngineUnavailable."""
    from engines import cuda  # where there is no GPU it can't be imported

    gpus = Gpus()
    try:
        for index in indices:
            gpus.devices.append(cuda.Device(index))
        yield gpus
    except BaseException as err:
        _let_go(err)
        for lane in (lane for some in gpus.lanes for lane in some):
            lane.close()
        gpus.close()
        raise


def _let_go(err: BaseException) -> None:
    """What was being made when it failed is held by the frames of who made it, and must be gone before its GPU."""
    cause: BaseException | None = err
    while cause is not None:
        clear_frames(cause.__traceback__)
        cause = cause.__cause__
