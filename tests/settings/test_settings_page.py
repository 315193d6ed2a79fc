"""The page about the ensemble file says what the settings are."""

from __future__ import annotations

from pathlib import Path

from pipeline.settings_page import page

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_the_settings_own() -> None:
    assert (DOCS / "ensemble-file.md").read_text() == page(), "run: make docs"
