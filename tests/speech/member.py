"""A member of the transcripts' group, in a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from pipeline.metrics import WorkerMetrics
from pipeline.settings import EnsembleSettings
from pipeline.speech.serve import transcripts_worker
from pipeline.speech.worker import TranscriptsWorker
from tests.eventually import WAIT_S, eventually


@contextmanager
def running(settings: EnsembleSettings) -> Iterator[TranscriptsWorker]:
    """A member on a thread of its own, until the end of the block; then its failure, if any, is raised."""
    stopping = threading.Event()
    worker = transcripts_worker(settings, WorkerMetrics(settings.name), name=None, embedded=True)
    with ThreadPoolExecutor(1) as thread:
        ended = thread.submit(worker.run, stopping.is_set)
        try:
            eventually(lambda: ended.done() or worker.not_ready() is None)
            yield worker
        finally:
            stopping.set()
            ended.result(WAIT_S)
