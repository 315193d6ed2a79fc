"""`penstock produce`: lines become records of the requests topic."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from types import FrameType

from pipeline.errors import UserError, WorkerFailure
from pipeline.exit_codes import EXIT_TERMINATED
from pipeline.lines_of_text import line_blocks, opened_lines, request_of
from pipeline.reach import existing_partitions
from pipeline.sending import Sending
from pipeline.settings import EnsembleSettings

# Lines that are read before Kafka's answers are looked at.
_BLOCK_LINES = 1000


def produce_lines(settings: EnsembleSettings, source: str, *, key: str | None, lane: str | None = None) -> None:
    """Send every line of a file, or of standard input where `source` is `-`, in the first lane or another.

    A line that no broker takes for its size is told and left out; the rest is sent. How many were sent is told however
    it ends, by Ctrl-C or SIGTERM too. Raises UserError before anything is sent, or after all that came before what is
    no line; WorkerFailure where not all was sent.
    """
    lanes = settings.by_lane()
    if lane is not None and lane not in lanes:
        raise UserError(f"--lane: {lane!r} is not allowed; allowed: {', '.join(lanes)} (batching.lanes)")
    topic = lanes.get(lane or "", settings).topic_names.requests
    with opened_lines(source) as descriptor:
        existing_partitions(settings.kafka, topic)
        sending = Sending(settings.kafka, client_id="penstock-produce", told_as="line")
        key_bytes = key.encode(errors="surrogateescape") if key is not None else None
        number = 0
        before = signal.signal(signal.SIGTERM, _terminated)
        try:
            for block in line_blocks(descriptor, max_lines=_BLOCK_LINES):
                for line in block:
                    number += 1
                    sending.send(topic, request_of(line, settings.requests.format), key_bytes, name=number)
                sending.look()
            sending.finish()
        except UserError:  # the input goes on with what is no line
            sending.finish()
            raise
        finally:
            # Also after Ctrl-C: what is sent is sent, seen or not.
            with suppress(WorkerFailure):
                sending.look()
            sys.stderr.write(f"penstock: {topic}: {sending.delivered} sent\n")
            signal.signal(signal.SIGTERM, before)


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(EXIT_TERMINATED)
