"""Reads the ensemble file: YAML 1.2 in, a validated model out, and every mistake as one line.

A line is `file:12: models[0].pooling: 'men' is not allowed; allowed: mean, cls`. All mistakes of a file are told
at once, in the file's order. Knows YAML and pydantic, and nothing of what an ensemble is. Anchors, aliases and tags
are refused: a file of a page needs none, and without them no file can grow while it is read.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from pipeline.errors import UserError

# A file of settings is some hundred lines; more is a wrong path (a model, a log) that shouldn't be read to its end.
MAX_FILE_BYTES = 1 << 20
_MAX_SHOWN_CHARACTERS = 60
# What is larger is no setting, and Python refuses to print numbers of more than 4,300 digits.
_MAX_NUMBER = 1 << 63

_YAML_TAG = "tag:yaml.org,2002:"

# Where a value lies in the file: ("models", 0, "pooling"); () is the whole file.
Place = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)


class SettingsError(UserError):
    """Raised when the user's settings can't be used: one line a mistake."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__(*(_one_line(line) for line in lines))


class Contradictions(ValueError):
    """Raised by a model's validator when values are fine alone and not together."""

    def __init__(self) -> None:
        super().__init__()
        self.mistakes: list[tuple[Place, str]] = []

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
    if isinstance(value, int) and abs(value) > _MAX_NUMBER:
        return "a number of more than 64 bits"
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARACTERS else text[: _MAX_SHOWN_CHARACTERS - 4] + "..." + text[-1]


def read_settings(path: Path, model: type[Model]) -> Model:
    """The file at `path` as a `model`; validators find the file's folder as `info.context["folder"]`.

    Raises SettingsError: no file, not UTF-8, not YAML, or one line for every mistake in it.
    """
    root = _compose(_read_text(path), path)
    if not isinstance(root, MappingNode):
        what = "holds no settings" if root is None else "is no mapping of options"
        raise SettingsError([f"{path}: {what}; allowed: lines like 'name: reviews'"])
    reading = _Reading()
    data = reading.plain(root, ())
    settings, mistakes = _validated(data, model, {"folder": path.absolute().parent})
    # A value that couldn't be read isn't judged a second time.
    mistakes = [mistake for mistake in mistakes if not reading.refused_at(mistake[0])] + reading.mistakes
    if settings is None or mistakes:
        raise SettingsError(list(_lines(mistakes, str(path), reading.line_numbers)))
    return settings


def validate_settings(data: Mapping[str, Any], model: type[Model], *, origin: str) -> Model:
    """A mapping that comes from no file as a `model`; `origin` begins each line of a SettingsError."""
    settings, mistakes = _validated(data, model, {})
    if settings is None:
        raise SettingsError(list(_lines(mistakes, origin, {})))
    return settings


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as err:  # ValueError: a null character in the path
        reason = err.strerror if isinstance(err, OSError) and err.strerror else str(err)
        raise SettingsError([f"{path}: can't be read: {reason}"]) from err
    if len(content) > MAX_FILE_BYTES:
        raise SettingsError([f"{path}: has more than {MAX_FILE_BYTES} bytes: this is no ensemble file"])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = content.count(b"\n", 0, err.start) + 1
        raise SettingsError([f"{path}:{line}: is not UTF-8: {err.reason}; save the file as UTF-8"]) from err


def _compose(text: str, path: Path) -> Node | None:
    try:
        root: Node | None = YAML(typ="safe", pure=True).compose(text)
    except ReaderError as err:
        line = text.count("\n", 0, err.position) + 1
        raise SettingsError([f"{path}:{line}: is not YAML: the character {chr(err.character)!r}"]) from err
    except MarkedYAMLError as err:
        mark = err.problem_mark or err.context_mark
        where = f"{path}:{mark.line + 1}" if mark else f"{path}"
        # The problem of an alias names it, and the alias could be a password that begins with *.
        problem = "an alias (*)" if "alias" in str(err.problem) else err.problem or err.context
        raise SettingsError([f"{where}: is not YAML: {problem}"]) from err
    except (YAMLError, ValueError) as err:
        raise SettingsError([f"{path}: is not YAML: {err}"]) from err
    except RecursionError as err:
        raise SettingsError([f"{path}: is nested too deeply"]) from err
    return root


class _Reading:
    """One pass over the file's nodes: plain values out, line numbers and mistakes kept by place."""

    def __init__(self) -> None:
        self.line_numbers: dict[Place, int] = {}
        self.mistakes: list[tuple[Place, str]] = []
        self._seen: set[int] = set()
        self._refused: set[Place] = set()
        self._scalar: Callable[[Node], object] = YAML(typ="safe", pure=True).constructor.construct_object

    def refused_at(self, place: Place) -> bool:
        """Whether the value at `place`, or one that it would lie in, couldn't be read."""
        return any(place[:depth] in self._refused for depth in range(len(place) + 1))

    def plain(self, node: Node, place: Place) -> Any:
        """The node's value made of dict, list, str, int, float, bool and None."""
        self.line_numbers.setdefault(place, node.start_mark.line + 1)
        if id(node) in self._seen:
            return self._refuse(place, "an alias (*name) is not allowed; allowed: the value itself")
        self._seen.add(id(node))
        if isinstance(node, MappingNode) and node.tag == _YAML_TAG + "map":
            return self._mapping(node, place)
        if isinstance(node, SequenceNode) and node.tag == _YAML_TAG + "seq":
            return [self.plain(child, (*place, index)) for index, child in enumerate(node.value)]
        if isinstance(node, ScalarNode):
            return self._plain_scalar(node, place)
        return self._refuse(place, "a tag (!name) is not allowed; allowed: the value itself")

    def _mapping(self, node: MappingNode, place: Place) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, child in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, ScalarNode):
                self.line_numbers[(*place, "?")] = line
                self._refuse((*place, "?"), f"{key.id} as a key is not allowed; allowed: a name")
            elif key.value in values:
                first = self.line_numbers[(*place, key.value)]
                self.mistakes.append(
                    ((*place, key.value), f"is given on line {first} and on line {line}; allowed: once")
                )
            else:
                self.line_numbers[(*place, key.value)] = line
                values[key.value] = self.plain(child, (*place, key.value))
        return values

    def _plain_scalar(self, node: ScalarNode, place: Place) -> object:
        kind = str(node.tag).removeprefix(_YAML_TAG)
        if kind in ("null", "bool", "int", "float"):
            try:
                return self._scalar(node)
            except (YAMLError, ValueError):
                return self._refuse(place, f"{shown(node.value)} can't be read as {kind}")
        # YAML 1.2 knows no dates: what looks like one is text.
        if kind in ("str", "timestamp", "value", "merge"):
            return node.value
        return self._refuse(place, "a tag (!name) is not allowed; allowed: the value itself")

    def _refuse(self, place: Place, message: str) -> object:
        self.mistakes.append((place, message))
        self._refused.add(place)
        return None


def _validated(
    data: Mapping[str, Any], model: type[Model], context: Mapping[str, Any]
) -> tuple[Model | None, list[tuple[Place, str]]]:
    try:
        return model.model_validate(data, context=context), []
    except ValidationError as err:
        return None, [mistake for error in err.errors() for mistake in _mistakes(error, model)]


def _mistakes(error: ErrorDetails, model: type[BaseModel]) -> Iterator[tuple[Place, str]]:
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


def _lines(mistakes: list[tuple[Place, str]], origin: str, line_numbers: Mapping[Place, int]) -> Iterator[str]:
    def line_of(place: Place) -> int:
        """The line of the value, or of the mapping that it is missing from; 0 for the whole file."""
        return next((line_numbers[place[:n]] for n in range(len(place), 0, -1) if place[:n] in line_numbers), 0)

    for line, place, message in sorted(((line_of(place), place, text) for place, text in mistakes), key=lambda m: m[0]):
        where = f"{origin}:{line}" if line else origin
        yield f"{where}: {_path(place)}: {message}" if place else f"{where}: {message}"


def _path(place: Place) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return path.removeprefix(".")


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
