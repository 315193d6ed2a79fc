"""Where Penstock keeps what it can make or fetch again."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """Of this user."""
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(chosen):  # the XDG specification: a relative one is to be ignored
        return Path(chosen, "penstock")
    home = Path.home()
    return home / "Library/Caches/penstock" if sys.platform == "darwin" else home / ".cache/penstock"
