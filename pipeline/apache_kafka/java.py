"""Which Java runs Apache Kafka: JAVA_HOME's, else the one on PATH."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError

OLDEST_JAVA = 17  # of Kafka 4's brokers

_VERSION = re.compile(r'version "(?:1\.)?(\d+)')  # 1.8.0_412 is Java 8
_ANSWER_BUDGET_S = 30.0  # 40 ms where nothing is wrong
_WHAT_TO_DO = f"Apache Kafka needs Java {OLDEST_JAVA} or newer on PATH or in JAVA_HOME"


@dataclass(frozen=True, slots=True, kw_only=True)
class Java:
    """A Java that is new enough. `identity` differs where an archive of classes can't be shared."""

    path: Path
    major: int
    identity: str


def find_java() -> Java:
    """Raises UserError where there is none, or only an old one."""
    path = _path()
    try:
        answer = subprocess.run(
            [path, "-version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_ANSWER_BUDGET_S
        )
    except OSError as err:
        raise UserError(f"{path} does not run ({err.strerror}): {_WHAT_TO_DO}") from err
    except subprocess.TimeoutExpired as err:
        raise UserError(f"{path} does not say its version within {err.timeout:g} s: {_WHAT_TO_DO}") from err
    said = answer.stderr.decode(errors="replace")
    version = _VERSION.search(said)
    if answer.returncode != 0 or version is None:
        # macOS has a /usr/bin/java that only says where to get one.
        first_line = said.strip().partition("\n")[0]
        raise UserError(f"{path} does not run ({first_line}): {_WHAT_TO_DO}")
    major = int(version[1])
    if major < OLDEST_JAVA:
        raise UserError(f"{path} is Java {major}: {_WHAT_TO_DO}")
    identity = hashlib.sha256(f"{path.resolve()}\n{said}".encode()).hexdigest()[:12]
    return Java(path=path, major=major, identity=identity)


def java_environment() -> dict[str, str]:
    """For programs in Java: names of files are UTF-8, and the system's errors are in English, in which we read them."""
    return os.environ | {"LC_ALL": "C.UTF-8"}


def _path() -> Path:
    home = os.environ.get("JAVA_HOME")
    if home:
        path = Path(home, "bin", "java")
        if not os.access(path, os.X_OK):
            raise UserError(f"JAVA_HOME is {home}, which has no bin/java: correct it, or unset it")
        return path
    found = shutil.which("java")
    if found is None:
        raise UserError(f"there is no Java: {_WHAT_TO_DO}")
    return Path(found)
