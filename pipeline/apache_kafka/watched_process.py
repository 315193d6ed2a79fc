"""A process that does not outlive this one, even where this one is killed with SIGKILL.

A shell starts a watcher in the background and becomes the command. The watcher reads a pipe whose other end only this
process has (and what it forks without exec): at its end-of-file it ends the command. Linux's PR_SET_PDEATHSIG would do
without the watcher, but it follows the thread that started the command, not the process, and macOS has nothing like it.

The watcher is in the command's process group, so the command's number is nobody else's as long as the watcher lives.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

# 10 s to end in, then it is killed. `read` never gets a line; background processes get /dev/null for stdin, hence 3.
_SHELL = """
exec 3<&0
(
  read -r line <&3
  kill -TERM $$ || exit
  for second in 1 2 3 4 5 6 7 8 9 10; do sleep 1; kill -0 $$ || exit; done
  kill -KILL $$
) >/dev/null 2>&1 &
exec "$@" 3<&- </dev/null
"""


class WatchedProcess:
    """A command that runs in a session of its own, so that Ctrl-C does not reach it; what it says goes to a file."""

    def __init__(self, command: Sequence[str], *, folder: Path, output: Path, environment: Mapping[str, str]) -> None:
        with output.open("ab") as said:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _SHELL, "penstock", *command],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=environment,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The command's: the shell has become it."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """As subprocess gives it, None while it runs."""
        return self._process.poll()

    def how_it_ended(self) -> str:
        """In words."""
        code = self._process.wait()
        return f"exited with {code}" if code >= 0 else f"was ended by signal {-code}"

    def terminate(self, budget_s: float) -> bool:
        """SIGTERM, then SIGKILL where the budget did not suffice; whether it did."""
        self._process.terminate()
        try:
            self._process.wait(budget_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        self._release_watcher()
        return True

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()
        self._release_watcher()

    def _release_watcher(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
