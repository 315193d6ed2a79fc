"""Thousands of schedules: crashes between any two steps, members lost, calls that fail before or after they did their
work. A failure names its seed; `PENSTOCK_SEED=N make test ARGS='-k simulation'` plays that one again.

PENSTOCK_SIMULATIONS sets how many seeds each way of delivery gets: 20 ms a schedule.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Iterator

import pytest

from tests.simulation.world import World

SEEDS = int(os.environ.get("PENSTOCK_SIMULATIONS", "60"))
ONE = os.environ.get("PENSTOCK_SEED")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What goes wrong here does so by the thousands."""
    logging.disable(logging.CRITICAL)
    hook, threading.excepthook = threading.excepthook, lambda _: None  # a crash on the thread that leaves the group
    yield
    threading.excepthook = hook
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(0 if ONE else 600)
@pytest.mark.parametrize(
    ("delivery", "fused", "static"),
    [*itertools.product(["at_least_once", "exactly_once"], [False, True], [False, True])],
)
def test_every_request_is_answered_and_nothing_is_committed_before(delivery: str, fused: bool, static: bool) -> None:
    for seed in [int(ONE)] if ONE else range(SEEDS):
        try:
            World(seed, delivery=delivery, fused=fused, static=static).run(steps=600, requests=40)
        except BaseException as err:
            raise AssertionError(
                f"seed {seed}: {type(err).__name__}: {err}; PENSTOCK_SEED={seed} plays it again"
            ) from err
