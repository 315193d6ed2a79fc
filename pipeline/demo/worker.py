"""`python -m pipeline.demo.worker FOLDER OPTIONS run STAGE ...`: a worker as the demo starts it.

It is `penstock OPTIONS run STAGE ...` with its output in FOLDER/STAGE.log; `transcripts` goes likewise.

It does not outlive the demo: should that be killed, its broker goes with it, and a worker would long try to deliver
what nobody takes any more.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

from pipeline.exit_codes import EXIT_FAILED
from pipeline.parent import parent_gone

_LOOK_S = 0.5
# A worker of another's broker drains what it has read in 3 s.
_GRACE_S = 8.0


def log_file(folder: Path, *, stage: str) -> Path:
    """Where a worker's output goes."""
    return folder / f"{stage}.log"


def main() -> None:
    """Run the command in this process."""
    _, folder, *arguments = sys.argv
    stage = arguments[arguments.index("run") + 1] if "run" in arguments else "transcripts"
    log = log_file(Path(folder), stage=stage)
    threading.Thread(target=_end_after_parent, name="parent", daemon=True).start()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    # By their numbers: who started the demo may have closed either.
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    # Loading it takes a second, in which the parent may die.
    from pipeline import cli

    sys.argv = ["penstock", *arguments]
    cli.main()


def _end_after_parent() -> None:
    while not parent_gone():
        time.sleep(_LOOK_S)
    time.sleep(_GRACE_S)
    os._exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
