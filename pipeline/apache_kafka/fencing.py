"""Takes a broker that was killed out of its cluster's metadata, before its successor starts.

A successor that starts at once finds itself named the leader of everything, and takes up the transactions whose commit
was under way. Nobody can reach it before the controller has let go of its predecessor (broker.session.timeout.ms), and
in the moment in which it does no partition has a leader. Kafka 4.3.1 takes that for partitions that are deleted, and
calls such a transaction committed without its markers ("likely deleted already and hence can be skipped",
TransactionMarkerChannelManager): it stays open for good, and its readers wait for good. That needs partitions of one
copy; where there are more, another broker leads.

So a controller runs alone first, with a patience of a tenth of a second. As nobody keeps the successor out any more, it
is back in two seconds and not in nine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from pipeline.apache_kafka.watched_process import WatchedProcess
from pipeline.deadline import Deadline
from pipeline.errors import WorkerFailure

# Over those of a broker: what the controller is to do alone.
SETTINGS: Mapping[str, str] = {
    "process.roles": "controller",
    "broker.session.timeout.ms": "100",
    "broker.heartbeat.interval.ms": "50",
}

_FENCED = "Fencing broker"
_ACTIVE = "Performing controller activation"
# From the controller's activation on, for a broker that was fenced already: nothing is said of that.
_PATIENCE_S = 1.0
# 0.8 s until it is active.
_BUDGET_S = 60.0
_POLL_S = 0.01
_STOP_BUDGET_S = 10.0


def fence(controller: WatchedProcess, said: Callable[[], str]) -> bool:
    """Wait for it and end the controller, whose words since its start are `said`; False where it ended by itself.

    Raises WorkerFailure where it takes too long.
    """
    deadline = Deadline(_BUDGET_S)
    active_s: float | None = None
    try:
        while _FENCED not in (words := said()):
            if controller.exit_code is not None:
                return False
            if deadline.expired:
                raise WorkerFailure(f"Apache Kafka's controller was not there within {_BUDGET_S:g} s")
            if active_s is None and _ACTIVE in words:
                active_s = time.monotonic()
            if active_s is not None and time.monotonic() - active_s > _PATIENCE_S:
                break
            time.sleep(_POLL_S)
        controller.terminate(_STOP_BUDGET_S)
        return True
    finally:
        controller.kill()
