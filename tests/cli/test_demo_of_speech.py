"""`penstock demo --asr` as its users call it."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Penstock


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--asr", "--count", "3"], "--count goes with texts, and not with --asr"),
        (["--asr", "--fused"], "--fused goes with texts, and not with --asr"),
        (["--streams", "3"], "--streams goes with --asr"),
    ],
)
def test_options_that_do_not_go_together(penstock: Penstock, options: list[str], message: str) -> None:
    found = penstock("demo", *options)
    assert found.code == 2
    assert message in found.err


@pytest.mark.slow
@pytest.mark.broker
def test_the_speech_demo_at_work(penstock: Penstock) -> None:
    found = penstock("demo", "--asr", "--streams", "3", "--seconds", "1", "--speed", "3", "--json")
    assert found.code == 0, found.err
    summary = json.loads(found.out)
    assert (summary["streams"], summary["finals_lost"], summary["stale"], summary["transcripts_right"]) == (3, 0, 0, 3)
