"""Mistakes in settings: where they lie, and the line that tells one.

A line is `file:12: models[0].pooling: 'men' is not allowed; allowed: mean, cls, max`. Knows pydantic's errors and no
option of any section: what is allowed is read off the model's fields.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from pipeline.errors import UserError

# What is larger is no setting, and Python refuses to print numbers of more than 4,300 digits.
MAX_NUMBER = 1 << 63
_MAX_SHOWN_CHARACTERS = 60

# Where a value lies in the file: ("models", 0, "pooling"); () is the whole file.
Place = tuple[str | int, ...]
Mistake = tuple[Place, str]


class SettingsError(UserError):
    """Raised when the user's settings can't be used: one line a mistake."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__(*(_one_line(line) for line in lines))


class Contradictions(ValueError):
    """Raised by a model's validator when values are fine alone and not together."""

    def __init__(self) -> None:
        super().__init__()
        self.mistakes: list[Mistake] = []

    def add(self, *place: str | int, message: str) -> None:
        """A mistake at `place`, relative to the model."""
        self.mistakes.append((place, message))

    def raise_if_any(self) -> None:
        """Raise this, unless nothing was added."""
        if self.mistakes:
            raise self


def shown(value: object) -> str:
    """A value as a person would write it in the file, short and on one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        return "a number of more than 64 bits"
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARACTERS else text[: _MAX_SHOWN_CHARACTERS - 4] + "..." + text[-1]


def mistakes_of(error: ValidationError, model: type[BaseModel]) -> list[Mistake]:
    """What pydantic found wrong, in the words of the file."""
    return [mistake for details in error.errors() for mistake in _mistakes(details, model)]


def mistake_lines(mistakes: Sequence[Mistake], origin: str, line_numbers: Mapping[Place, int]) -> Iterator[str]:
    """A line for each, in the file's order; `origin` is the file, or what else the values came from, if anything."""

    def line_of(place: Place) -> int:
        """The line of the value, or of the mapping that it is missing from; 0 for the whole file."""
        return next((line_numbers[place[:n]] for n in range(len(place), 0, -1) if place[:n] in line_numbers), 0)

    for line, place, message in sorted(((line_of(place), place, text) for place, text in mistakes), key=lambda m: m[0]):
        where = f"{origin}:{line}" if line else origin
        yield ": ".join(part for part in (where, _path(place), message) if part)


def _mistakes(error: ErrorDetails, model: type[BaseModel]) -> Iterator[Mistake]:
    place: Place = error["loc"]
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, Contradictions):
        for relative, message in cause.mistakes:
            yield (*place, *relative), message
    else:
        yield place, _message(error, model)


def _message(error: ErrorDetails, model: type[BaseModel]) -> str:
    """What is wrong and what is allowed, in the words of the file."""
    fields = _fields_around(error["loc"], model)
    field = fields.get(str(error["loc"][-1])) if error["loc"] else None
    match error["type"]:
        case "value_error":
            return str(error["ctx"]["error"])
        case "missing":
            return "is missing; it has no default"
        case "extra_forbidden":
            close = difflib.get_close_matches(str(error["loc"][-1]), fields, n=1)
            return "no such option; " + (f"did you mean {close[0]}?" if close else f"allowed: {', '.join(fields)}")
        case "literal_error":
            allowed = ", ".join(re.findall(r"'([^']*)'", error["ctx"]["expected"]))
        case "int_type" | "greater_than_equal" | "less_than_equal":
            allowed = _whole_number(field)
        case "bool_type":
            allowed = "true, false"
        case "string_type" | "string_unicode" | "path_type":
            allowed = "a string"
        case "string_too_short":
            allowed = "a string that is not empty"
        case "tuple_type":
            allowed = "a list"
        case "model_type" | "dict_type":
            allowed = "a mapping"
        case _:
            allowed = error["msg"]
    null = ", null" if field and type(None) in get_args(field.annotation) else ""
    return f"{shown(error['input'])} is not allowed; allowed: {allowed}{null}"


def _whole_number(field: FieldInfo | None) -> str:
    bounds = {name: value for part in field.metadata for name, value in _bound(part)} if field else {}
    return f"a whole number from {bounds['ge']} to {bounds['le']}" if len(bounds) == 2 else "a whole number"


def _bound(part: object) -> Iterator[tuple[str, int]]:
    for name in ("ge", "le"):
        if hasattr(part, name):
            yield name, getattr(part, name)


def _fields_around(place: Place, model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The options of the mapping that `place` lies in, by their names in the file."""
    section: type[BaseModel] | None = model
    for part in place[:-1]:
        if section and isinstance(part, str):
            section = _section_of(_fields(section)[part].annotation) if part in _fields(section) else None
    return _fields(section) if section else {}


def _fields(section: type[BaseModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in section.model_fields.items()}


def _section_of(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_of(part))), None)


def _path(place: Place) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return path.removeprefix(".")


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
