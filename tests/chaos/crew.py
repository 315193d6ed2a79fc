"""Two workers of each stage, as processes that a supervisor starts again at once, and how they are killed."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from pathlib import Path

from pipeline.settings import STAGES
from pipeline.supervisor import RestartPolicy, Supervisor
from pipeline.up import stage_commands

# No patience is ever exhausted: that a worker dies is what this is about.
_AT_ONCE = RestartPolicy(first_delay_s=0.02, longest_delay_s=0.02, max_deaths=1_000_000)
# What a worker says goes to a file; the shell becomes the worker, so that its number is the worker's.
# SIGABRT makes Python write there what each thread is at.
_INTO_FILE = ("/bin/sh", "-c", 'PYTHONFAULTHANDLER=1 exec "$@" >>"$0" 2>&1')


class Crew:
    """`poll` it now and then. `logs` is a folder for a file a worker."""

    def __init__(self, file: Path, bootstrap: str, *, logs: Path, of_each: int = 2) -> None:
        self.kills: Counter[str] = Counter()
        logs.mkdir(exist_ok=True)
        commands = stage_commands(file, bootstrap, fused=False, http_ports=dict.fromkeys(STAGES, 0))
        self._supervisor = Supervisor(
            {
                f"{stage}-{place}": [*_INTO_FILE, str(logs / f"{stage}-{place}.log"), *commands[stage]]
                for stage in STAGES
                for place in range(of_each)
            },
            policy=_AT_ONCE,
        )

    def start(self) -> None:
        """All of them."""
        self._supervisor.start()

    def poll(self) -> None:
        """Start again who has died. Raises RuntimeError where a worker says that a person must act."""
        if self._supervisor.poll() is not None:
            raise RuntimeError("a worker ended with exit code 2: its log says what a person must change")

    def kill_one(self, draw: random.Random) -> bool:
        """SIGKILL to any that runs; False where none does at the moment."""
        running = sorted(self._supervisor.pids.items())
        if not running:
            return False
        name, pid = draw.choice(running)
        os.kill(pid, signal.SIGKILL)
        self.kills[name.partition("-")[0]] += 1
        return True

    def tell_stacks(self) -> None:
        """Each that runs writes its threads' stacks to its log, and dies of it."""
        for pid in self.pids.values():
            os.kill(pid, signal.SIGABRT)

    def stop(self) -> bool:
        """SIGTERM; whether all drained in time."""
        return self._supervisor.stop()

    @property
    def pids(self) -> dict[str, int]:
        """Of those that run."""
        return self._supervisor.pids

    @property
    def complete(self) -> bool:
        """Whether all run, those too that were killed a moment ago."""
        # Fewer starts than kills: one was killed a moment ago.
        return self.own_deaths >= 0 and len(self.pids) == len(self._supervisor.restarts)

    @property
    def own_deaths(self) -> int:
        """How often one ended that nobody had killed: it gave up."""
        return sum(self._supervisor.restarts.values()) - self.kills.total()
