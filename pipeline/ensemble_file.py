"""Reads the ensemble file: YAML 1.2 in, a validated model out, and every mistake as one line.

All mistakes of a file are told at once, in the file's order. Knows YAML and pydantic, and nothing of what an ensemble
is. Anchors, aliases and tags are refused: a file of a page needs none, and without them no file can grow while it is
read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, ValidationInfo
from ruamel.yaml import YAML
from ruamel.yaml.composer import ComposerError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from pipeline.mistakes import Mistake, Place, SettingsError, mistake_lines, mistakes_of, shown

# A file of settings is some hundred lines; more is a wrong path (a model, a log) that shouldn't be read to its end.
MAX_FILE_BYTES = 1 << 20

_YAML_TAG = "tag:yaml.org,2002:"
_NO_ALIAS = "an alias (*name) is not allowed; allowed: the value, in quotes where it begins with *"
_NO_ANCHOR = "an anchor (&name) is not allowed; allowed: the value, in quotes where it begins with &"


class Section(BaseModel):
    """A mapping of the file: no option it doesn't know, no value of another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


def resolved(path: Path, info: ValidationInfo) -> Path:
    """A path of the file, from the folder that the file is in; ~ is one's home."""
    folder: Path | None = (info.context or {}).get("folder")
    return (folder or Path.cwd()) / os.path.expanduser(path)


FilePath = Annotated[Path, Field(strict=False), AfterValidator(resolved)]


class WholeFile(Section):
    """The outermost mapping. Keeps where its values were read, for mistakes that show only when they are used."""

    _origin: str = PrivateAttr(default="")
    _line_numbers: Mapping[Place, int] = PrivateAttr(default_factory=dict)

    def mistake(self, *place: str | int, message: str) -> SettingsError:
        """What is wrong with the value at `place`, to be raised."""
        return SettingsError(list(mistake_lines([(place, message)], self._origin, self._line_numbers)))


Model = TypeVar("Model", bound=WholeFile)


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
        raise SettingsError(list(mistake_lines(mistakes, str(path), reading.line_numbers)))
    settings._origin, settings._line_numbers = str(path), reading.line_numbers
    return settings


def require_regular_file(path: Path) -> None:
    """Raises SettingsError where other processes would not find in `path` what this one does: a FIFO, `<(...)`,
    `/dev/stdin`. What isn't there at all is told by who reads it."""
    # What a descriptor is called, such as /dev/fd/3, is another file for another process, regular or not.
    own = str(path.absolute()).startswith(("/dev/stdin", "/dev/fd/", "/proc/"))
    if path.exists() and not path.is_dir() and (own or not path.is_file()):
        raise SettingsError([f"{path}: is not a regular file, and each worker reads it anew: save it as one"])


def validate_settings(data: Mapping[str, Any], model: type[Model], *, origin: str) -> Model:
    """A mapping that comes from no file as a `model`; `origin` begins each line of a SettingsError."""
    settings, mistakes = _validated(data, model, {})
    if settings is None:
        raise SettingsError(list(mistake_lines(mistakes, origin, {})))
    settings._origin = origin
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
        yaml = YAML(typ="safe", pure=True)
        yaml.composer.warn_double_anchors = False  # each is refused
        root: Node | None = yaml.compose(text)
    except ReaderError as err:
        line = text.count("\n", 0, err.position) + 1
        raise SettingsError(
            [f"{path}:{line}: the character {chr(err.character)!r} is not allowed; allowed: what can be printed"]
        ) from err
    except MarkedYAMLError as err:
        mark = err.problem_mark or err.context_mark
        where = f"{path}:{mark.line + 1}" if mark else f"{path}"
        raise SettingsError([f"{where}: {_problem(err)}"]) from err
    except (YAMLError, ValueError) as err:
        raise SettingsError([f"{path}: is not YAML: {err}"]) from err
    except RecursionError as err:
        raise SettingsError([f"{path}: is nested too deeply"]) from err
    return root


def _problem(err: MarkedYAMLError) -> str:
    """What is wrong, as a line of its own where ruamel's words are but half of one."""
    problem = str(err.problem or err.context)
    # The alias isn't named: it could be a password that begins with *.
    if "alias" in problem or "alias" in str(err.context):
        return _NO_ALIAS
    if isinstance(err, ComposerError) and "another document" in problem:
        return "a second document (after --- or ...) is not allowed; allowed: one document in a file"
    return f"is not YAML: {problem}"


class _Reading:
    """One pass over the file's nodes: plain values out, line numbers and mistakes kept by place."""

    def __init__(self) -> None:
        self.line_numbers: dict[Place, int] = {}
        self.mistakes: list[Mistake] = []
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
            return self._refuse(place, _NO_ALIAS)
        self._seen.add(id(node))
        if node.anchor:
            return self._refuse(place, _NO_ANCHOR)
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
) -> tuple[Model | None, list[Mistake]]:
    try:
        return model.model_validate(data, context=context), []
    except ValidationError as err:
        return None, mistakes_of(err, model)
