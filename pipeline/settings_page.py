"""Writes docs/ensemble-file.md: every option with its default and its sentence, from the settings themselves.

make docs
"""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pipeline.settings import EnsembleSettings

_HEAD = """# The ensemble file

YAML 1.2. An ensemble file says everything about one ensemble; every stage's worker reads the same one. Unknown options
are mistakes, and every mistake is one line that says where it is and what is allowed. `penstock check FILE` shows all.
[pipeline/demo/ensemble.yaml](../pipeline/demo/ensemble.yaml) is an example with comments.

This page is written by `make docs` from the settings' own descriptions.
"""


def page() -> str:
    """The page as Markdown."""
    return "\n".join([_HEAD, *_section("", EnsembleSettings)])


def _section(path: str, model: type[BaseModel]) -> Iterator[str]:
    if path:
        yield f"## {path}\n"
        if model.__doc__:
            yield _joined(model.__doc__) + "\n"
    yield "| option | default | |"
    yield "|---|---|---|"
    deeper: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        option = field.alias or name
        section = _model_in(field.annotation)
        if section is not None:
            many = get_origin(field.annotation) is tuple
            deeper.append((f"{path}.{option}" if path else option, section))
            what = "a list; see below" if many else "see below"
            yield f"| `{option}` | {_required(field)}{what} | {_joined(field.description or '')} |"
        else:
            allowed = _allowed(field.annotation)
            default = "required" if field.is_required() else _default(field)
            yield f"| `{option}` | {default} | {_joined(field.description or '')}{allowed} |"
    yield ""
    for section_path, section in deeper:
        yield from _section(section_path, section)


def _required(field: FieldInfo) -> str:
    return "required; " if field.is_required() else ""


def _default(field: FieldInfo) -> str:
    default: Any = field.default
    return "" if default is PydanticUndefined else f"`{json.dumps(default)}`"


def _allowed(annotation: Any) -> str:
    values = [value for each in _alternatives(annotation) if get_origin(each) is Literal for value in get_args(each)]
    return f" One of: {', '.join(f'`{value}`' for value in values)}." if len(values) > 1 else ""


def _model_in(annotation: Any) -> type[BaseModel] | None:
    for each in _alternatives(annotation):
        if isinstance(each, type) and issubclass(each, BaseModel):
            return each
        if get_origin(each) is tuple:
            return _model_in(get_args(each)[0])
    return None


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _joined(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(page())
