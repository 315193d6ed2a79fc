"""The names of librdkafka's settings, as librdkafka itself prints them, to say what a misspelt one may mean.

Knows the table of `rd_kafka_conf_properties_show`, the source of CONFIGURATION.md: it alone has the names without a
default (`sasl.username`) and the aliases (`linger.ms`); `rd_kafka_conf_dump` leaves both out.
"""

from __future__ import annotations

import ctypes
import difflib
import re
from functools import cache

from confluent_kafka import cimpl

# Of difflib's measure, 1 for the same word. `fetch.wait.max.mss` has 0.97, another name of the same family some 0.7.
_CLOSE = 0.8
# Name, whose it is (consumer, producer or both), and at the end the type.
_ROW = re.compile(r"^([a-z0-9._]+) +\| [ CP*]+ \|.*\*Type: (.*)\*$", re.MULTILINE)
# Of what takes a function or a pointer, which no file can give.
_NO_FILE_CAN = "see dedicated API"


def close_name(name: str) -> str | None:
    """The setting that a misspelt name is nearest to, None where none is near."""
    close = difflib.get_close_matches(name, known_names(), n=1, cutoff=_CLOSE)
    return close[0] if close else None


@cache
def known_names() -> tuple[str, ...]:
    """Every setting that a file can give; none where this librdkafka or this system can't tell."""
    return tuple(name for name, kind in _ROW.findall(_table()) if kind != _NO_FILE_CAN)


def _table() -> str:
    # Both libraries are reached through what links to them, as in `mock_cluster`.
    librdkafka, system = ctypes.CDLL(cimpl.__file__), ctypes.CDLL(None)
    try:
        show, open_stream, close_stream, free = (
            librdkafka.rd_kafka_conf_properties_show,
            system.open_memstream,
            system.fclose,
            system.free,
        )
    except AttributeError:
        return ""
    open_stream.restype = ctypes.c_void_p
    show.restype = free.restype = None
    show.argtypes = close_stream.argtypes = free.argtypes = [ctypes.c_void_p]
    text, size_bytes = ctypes.c_void_p(), ctypes.c_size_t()
    stream = open_stream(ctypes.byref(text), ctypes.byref(size_bytes))
    if not stream:
        return ""
    show(stream)
    close_stream(stream)
    table = ctypes.string_at(text.value or 0, size_bytes.value).decode(errors="replace")
    free(text)
    return table
