"""Classes of the user's own, as the ensemble file names them: `package.module:Class`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import PlainValidator, ValidationInfo

from pipeline.mistakes import shown

_FORM = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class ClassPath(str):
    """`module:Class`; `folder` is the ensemble file's, where modules are looked for behind Python's own path."""

    folder: Path

    @property
    def module(self) -> str:
        return self.partition(":")[0]

    @property
    def attribute(self) -> str:
        return self.partition(":")[2]


def class_path(value: object, info: ValidationInfo) -> ClassPath:
    """Raises ValueError where it has not the form."""
    if not isinstance(value, str) or not _FORM.fullmatch(value):
        raise ValueError(f"{shown(value)} is not allowed; allowed: a class of yours, as module:Class")
    path = ClassPath(value)
    path.folder = (info.context or {}).get("folder") or Path.cwd()
    return path


def names_or_class(names: Sequence[str], *, optional: bool = False) -> PlainValidator:
    """One of the names that there are, or a class's."""
    null = ", null" if optional else ""

    def check(value: object, info: ValidationInfo) -> object:
        if value in names or (optional and value is None):
            return value
        if isinstance(value, str) and ":" in value:
            return class_path(value, info)
        raise ValueError(f"{shown(value)} is not allowed; allowed: {', '.join(names)}, module:Class{null}")

    return PlainValidator(check)


def _optional_class(value: object, info: ValidationInfo) -> ClassPath | None:
    return None if value is None else class_path(value, info)


OptionalClass = Annotated[ClassPath | None, PlainValidator(_optional_class)]
