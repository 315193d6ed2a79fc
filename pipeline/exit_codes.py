"""What a command's exit code says."""

from __future__ import annotations

EXIT_FAILED = 1
"""A fresh start may help: a worker gave up, something was lost."""

EXIT_USER_ERROR = 2
"""A person must change something; its lines are on stderr."""

EXIT_INTERRUPTED = 130
"""Ctrl-C: 128 and the number of SIGINT."""

EXIT_TERMINATED = 143
"""SIGTERM, where there is something to tell before the end: 128 and its number."""
