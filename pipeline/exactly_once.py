"""Exactly-once delivery: some transactional producers, each on a thread of its own with partitions of its own.

A partition belongs to one producer, so its order holds; while one of them waits for its commit the others go on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence

from pipeline.deadline import Deadline
from pipeline.lines import PartitionLine, Unit
from pipeline.transactions import TransactionLane

# How late an idle lane notices that it is to end.
_IDLE_S = 0.5
# How often the start looks whether all producers are there.
_LOOK_S = 0.01


class ExactlyOnce:
    """Implements `pipeline.delivery.Delivery`. `on_failure(err)` is called on a lane's thread, and ends that lane."""

    commits_offsets = True

    def __init__(self, lanes: Sequence[TransactionLane], *, on_failure: Callable[[BaseException], None]) -> None:
        assert lanes
        self._lanes = tuple(lanes)
        self._on_failure = on_failure
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(lane,), name=f"transactions-{number}", daemon=True)
            for number, lane in enumerate(self._lanes)
        ]

    def open(self, stopped: Callable[[], bool]) -> None:
        """Start the producers. What a predecessor of the same name left open ends here, so that what it had not
        committed is read again and not waited for."""
        for thread in self._threads:
            thread.start()
        while not stopped() and not all(lane.connected for lane in self._lanes):
            self._ending.wait(_LOOK_S)

    def finish(self, unit: Unit) -> None:
        self._lane(unit.line).finish(unit)

    def hurry(self, hurried: bool) -> None:
        for lane in self._lanes:
            lane.hurried = hurried
            lane.wake()

    def release(self, lines: Iterable[PartitionLine]) -> None:
        for line in lines:
            self._lane(line).release(line)

    def stop(self) -> None:
        """Lanes end where they are: what is open is aborted."""
        self._ending.set()
        for lane in self._lanes:
            lane.wake()

    def close(self, deadline: Deadline) -> None:
        self.stop()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(deadline.remaining_s())

    def _lane(self, line: PartitionLine) -> TransactionLane:
        return self._lanes[line.partition % len(self._lanes)]

    def _run(self, lane: TransactionLane) -> None:
        try:
            while not self._ending.is_set():
                lane.turn(_IDLE_S)
            lane.close()
        except BaseException as err:  # noqa: BLE001 - the thread's last line of defence: the worker must hear of it
            self._on_failure(err)
