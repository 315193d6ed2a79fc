"""Kills of stages and of `penstock transcripts` while people speak: what is told by tests.chaos.transcript_kills.

make bench BENCH=bench_transcripts_kills ARGS='--kills 50 --json'
"""

from __future__ import annotations

import sys

from tests.chaos.transcript_kills import main

if __name__ == "__main__":
    sys.exit(main())
