"""compose.yaml and the Dockerfile, read as Docker reads them, as far as tests need it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
STAGE_SERVICES = ("tokenize", "encode", "postprocess")

_VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}|\$")


def read_compose(variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """compose.yaml with its variables put in, of which each must have a default."""

    def put_in(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: put_in(part) for name, part in value.items()}
        if isinstance(value, list):
            return [put_in(part) for part in value]
        return _VARIABLE.sub(given, value) if isinstance(value, str) else value

    def given(match: re.Match[str]) -> str:
        assert match[1], f"a variable without a default: {match.string}"
        return (variables or {}).get(match[1]) or match[2]

    return put_in(YAML(typ="safe", pure=True).load(ROOT / "compose.yaml"))


def seconds(duration: str) -> float:
    """Of Compose's durations only this one is used here."""
    assert duration.endswith("s"), duration
    return float(duration[:-1])


@dataclass(frozen=True)
class Instruction:
    """One line of a Dockerfile, those that continue joined."""

    name: str
    rest: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.rest)


def read_dockerfile() -> dict[str, list[Instruction]]:
    """Its stages by their names, the last one as "image", each after what it is built on; what stands before the first
    is left out."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    instructions = [Instruction(*line.split(maxsplit=1)) for line in lines if line.strip()]
    starts = [index for index, each in enumerate(instructions) if each.name == "FROM"]
    stages: dict[str, list[Instruction]] = {}
    for start, end in zip(starts, [*starts[1:], None], strict=True):
        base, *named = instructions[start].words
        stages[named[-1] if named else "image"] = [*stages.get(base, []), *instructions[start:end]]
    return stages


def of(stage: list[Instruction], name: str) -> list[Instruction]:
    return [each for each in stage if each.name == name]


def image_environment() -> dict[str, str]:
    """What the image sets, except for the way to its own commands."""
    pairs = (word.split("=", 1) for each in of(read_dockerfile()["image"], "ENV") for word in each.words)
    return {name: value for name, value in pairs if name != "PATH"}


def image_command(arguments: str) -> list[str]:
    """What runs in a container with that `command`."""
    (entrypoint,) = of(read_dockerfile()["image"], "ENTRYPOINT")
    return [*json.loads(entrypoint.rest), *shlex.split(arguments)]


def is_sent_to_docker(path: str) -> bool:
    """Whether .dockerignore lets a file or folder through: of the lines that fit it or a folder above, the last."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!")
            if any(_fits(above, pattern) for above in [path, *map(str, Path(path).parents)]):
                sent = line.startswith("!")
    return sent


def _fits(path: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatch(Path(path).name, pattern[3:])
    return path != "." and path.count("/") == pattern.count("/") and fnmatch(path, pattern)
