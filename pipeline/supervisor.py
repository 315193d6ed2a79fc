"""Child processes that are started again when they die, and drained when it is time to stop.

A child leads its own session, so that Ctrl-C in a terminal reaches the supervisor alone, which then asks each child
with SIGTERM to drain. A child whose supervisor is gone sees it by `pipeline.parent.parent_gone`.

What it does not know: whether a child that runs also works. That is for the child's health endpoint, and for the
child itself: one that can't go on exits.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.deadline import Deadline
from pipeline.exit_codes import EXIT_FAILED, EXIT_USER_ERROR
from pipeline.parent import child_environment

log = logging.getLogger("penstock.supervisor")

RESTARTS = "PENSTOCK_RESTARTS"
DRAIN_BUDGET_S = 30.0  # the grace that Kubernetes and `docker stop -t 30` give

_STANDARD_ERROR = 2
# A dead child is noticed this late; the shortest restart delay is four times that.
_POLL_S = 0.05
# Killed children are gone at once, unless one hangs in the kernel: then leave it.
_KILL_BUDGET_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """How long to wait before a child is started again, and when to give up on it.

    A child that has lived `healthy_s` is started again at once; from there the delay doubles from the first to the
    longest.
    """

    first_delay_s: float = 0.2
    longest_delay_s: float = 10.0
    healthy_s: float = 30.0
    # Between 10 deaths are nine delays, 42.6 s: longer than a broker's restart, shorter than anyone's patience.
    max_deaths: int = 10

    def delay_s(self, deaths: int) -> float | None:
        """After that many deaths in a row, 0 for one that was healthy; None: give up."""
        if deaths >= self.max_deaths:
            return None
        if not deaths:
            return 0.0
        return min(self.first_delay_s * 2.0 ** (deaths - 1), self.longest_delay_s)


class RestartCount:
    """Deaths of one child without a healthy life between them."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self.deaths = 0

    def next_delay_s(self, lived_s: float) -> float | None:
        """The child died after `lived_s`: wait this long before the next start; None: give up."""
        self.deaths = 0 if lived_s >= self._policy.healthy_s else self.deaths + 1
        return self._policy.delay_s(self.deaths)


class _Child:
    """One command, running or waiting to be started again."""

    def __init__(self, name: str, command: Sequence[str], policy: RestartPolicy) -> None:
        self.name = name
        self.command = list(command)
        self.count = RestartCount(policy)
        self.process: subprocess.Popen[bytes] | None = None
        self.started_s = 0.0
        self.start_at_s: float | None = None
        self.starts = 0


class Supervisor:
    """Keeps commands (name -> argv) running. Not thread-safe, except `kill`: one thread starts, polls and stops."""

    def __init__(
        self,
        commands: Mapping[str, Sequence[str]],
        *,
        policy: RestartPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._children = [_Child(name, command, policy or RestartPolicy()) for name, command in commands.items()]
        self._clock = clock
        self._exit_code: int | None = None

    def start(self) -> None:
        """Start every command. Raises OSError where one can't be executed; those started are stopped then."""
        try:
            for child in self._children:
                self._start(child)
        except OSError:
            self.stop()
            raise

    def poll(self) -> int | None:
        """Look after the children once: start again who died and has waited long enough.

        None while all is well. Otherwise the exit code to stop with: a child was given up (1), or a child says that
        a person must change something (2; it has said what).
        """
        for child in self._children:
            if self._exit_code is None:
                self._look_after(child)
        return self._exit_code

    def run(self, stopped: Callable[[], bool], *, drain_budget_s: float = DRAIN_BUDGET_S) -> int:
        """Start, look after the children until `stopped` or one is given up, then stop; the exit code.

        0 if all drained in time when asked to stop, else 1 or what `poll` said. `stopped` is asked, not waited for: a
        signal handler that sets an Event on which its own thread waits would wait for its lock for ever.
        """
        exit_code = None
        drained = False
        self.start()
        try:
            while (exit_code := self.poll()) is None and not stopped():
                time.sleep(_POLL_S)
        finally:
            drained = self.stop(drain_budget_s)
        return exit_code if exit_code is not None else 0 if drained else EXIT_FAILED

    def stop(self, budget_s: float = DRAIN_BUDGET_S) -> bool:
        """SIGTERM to every child, wait for all up to the budget, then SIGKILL.

        Whether all that ran exited with 0, or by SIGTERM itself: a child that does not handle it yet is starting.
        """
        running = [child for child in self._children if _running(child)]
        for child in self._children:
            child.start_at_s = None
        for child in running:
            _signal(child, signal.SIGTERM)
        self._wait(Deadline(budget_s, clock=self._clock))
        for child in filter(_running, running):
            log.error("%s did not drain within %g s: killed", child.name, budget_s)
            _signal_group(child, signal.SIGKILL)
        self._wait(Deadline(_KILL_BUDGET_S, clock=self._clock))
        return all(child.process and child.process.returncode in (0, -signal.SIGTERM) for child in running)

    def kill(self) -> None:
        """SIGKILL to every child now: for a second Ctrl-C, also from a signal handler while `stop` waits."""
        for child in self._children:
            _signal_group(child, signal.SIGKILL)

    @property
    def pids(self) -> dict[str, int]:
        """Of the children that run."""
        return {child.name: child.process.pid for child in self._children if child.process and _running(child)}

    @property
    def restarts(self) -> dict[str, int]:
        """How often each child was started again."""
        return {child.name: max(0, child.starts - 1) for child in self._children}

    def _start(self, child: _Child) -> None:
        child.start_at_s = None
        child.started_s = self._clock()
        child.process = subprocess.Popen(
            child.command,
            stdin=subprocess.DEVNULL,
            # A worker has no results to print, only its libraries and the user's classes print: beside the logs, and
            # not into what the command that supervises prints, as `penstock demo --json` does.
            stdout=_STANDARD_ERROR,
            start_new_session=True,
            env=child_environment() | {RESTARTS: str(child.starts)},
        )
        child.starts += 1
        log.info("%s started (pid %d)", child.name, child.process.pid)

    def _look_after(self, child: _Child) -> None:
        now_s = self._clock()
        if child.start_at_s is not None:
            if now_s >= child.start_at_s:
                self._start_again(child)
        elif child.process is not None and child.process.poll() is not None:
            how = _how_it_ended(child.process.returncode)
            if child.process.returncode == EXIT_USER_ERROR:
                log.error("%s %s: it needs a change, not another start", child.name, how)
                self._exit_code = EXIT_USER_ERROR
            else:
                self._died(child, how, lived_s=now_s - child.started_s)

    def _start_again(self, child: _Child) -> None:
        try:
            self._start(child)
        except OSError as err:  # out of memory or of processes: it may pass
            self._died(child, f"can't be started ({err})", lived_s=0.0)

    def _died(self, child: _Child, how: str, *, lived_s: float) -> None:
        delay_s = child.count.next_delay_s(lived_s)
        if delay_s is None:
            log.error("%s %s: given up after %d deaths in a row", child.name, how, child.count.deaths)
            self._exit_code = EXIT_FAILED
        else:
            log.warning("%s %s: starting it again in %g s", child.name, how, delay_s)
            child.start_at_s = self._clock() + delay_s

    def _wait(self, deadline: Deadline) -> None:
        while any(_running(child) for child in self._children) and not deadline.expired:
            time.sleep(min(_POLL_S, deadline.remaining_s()))


def _running(child: _Child) -> bool:
    return child.process is not None and child.process.poll() is None


def _signal(child: _Child, number: signal.Signals) -> None:
    if child.process is not None:
        child.process.send_signal(number)  # does nothing once the exit was seen


def _signal_group(child: _Child, number: signal.Signals) -> None:
    """To the child and all that it started, as long as its exit was not seen: then its number may be another's."""
    if child.process is not None and child.process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.process.pid, number)


def _how_it_ended(return_code: int) -> str:
    """subprocess's return code in words."""
    if return_code >= 0:
        return f"exited with {return_code}"
    try:
        return f"was ended by {signal.Signals(-return_code).name}"
    except ValueError:
        return f"was ended by signal {-return_code}"
