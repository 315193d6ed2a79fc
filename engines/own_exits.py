"""SystemExit of a class of the user's own: a failure like any other, and not the end of the worker.

An own tokenizer, engine or task may call sys.exit(), or a library that does. Of a text that makes a dead letter; of a
constructor a mistake in the ensemble file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class OwnExit(Exception):
    """Raised in place of a SystemExit; its traceback ends where that was raised."""


@contextmanager
def no_exit() -> Iterator[None]:
    """Around (or, as a decorator, of) whatever makes or calls a class of the user's own. Raises OwnExit."""
    try:
        yield
    except SystemExit as err:
        said = "SystemExit" if err.code is None else f"SystemExit({err.code!r})"
        raise OwnExit(f"{said}, which would end the worker").with_traceback(err.__traceback__) from err
