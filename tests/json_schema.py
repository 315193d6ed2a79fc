"""JSON Schema (draft 2020-12), as much of it as the Compose Specification and our own schemas use; another
keyword is an error.

`check` answers with what is wrong, a line each. A library for it would be five packages of the tests' lock.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Schema = dict[str, Any]

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
}
_SAYS_NOTHING = {"$schema", "$id", "$defs", "title", "description", "default", "deprecated", "format"}
_KNOWN = _SAYS_NOTHING | {
    *(
        "$ref",
        "type",
        "enum",
        "pattern",
        "minimum",
        "maximum",
        "items",
        "minItems",
        "maxItems",
        "minLength",
        "maxLength",
        "uniqueItems",
        "required",
    ),
    *("properties", "patternProperties", "additionalProperties", "unevaluatedProperties", "allOf", "anyOf", "oneOf"),
}


@dataclass
class _Found:
    """What is wrong, and which properties a schema has spoken of."""

    errors: list[str] = field(default_factory=list)
    evaluated: set[str] = field(default_factory=set)

    def take(self, other: _Found) -> None:
        self.errors += other.errors
        self.evaluated |= other.evaluated


def check(value: Any, schema: Schema) -> list[str]:
    """What is wrong with a value, each with its path; empty where nothing is."""
    return _check(value, schema, schema, "").errors


def _check(value: Any, schema: Schema | bool, root: Schema, path: str) -> _Found:
    if isinstance(schema, bool):
        return _Found([] if schema else [f"{path}: not allowed"])
    assert not (unknown := schema.keys() - _KNOWN), f"{path}: keywords that are not understood here: {unknown}"
    found = _Found()
    if (reference := schema.get("$ref")) is not None:
        found.take(_check(value, _resolve(reference, root), root, path))
    for each in schema.get("allOf", ()):
        found.take(_check(value, each, root, path))
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            found.take(_check_alternatives(value, schema[keyword], root, path, exactly_one=keyword == "oneOf"))
    found.errors += [f"{path}: {message}" for message in _check_alone(value, schema)]
    if isinstance(value, list):
        for index, item in enumerate(value):
            found.errors += _check(item, schema.get("items", True), root, f"{path}[{index}]").errors
    if isinstance(value, dict):
        found.take(_check_properties(value, schema, root, path, found.evaluated))
    return found


def _check_alternatives(value: Any, schemas: list[Schema], root: Schema, path: str, *, exactly_one: bool) -> _Found:
    tries = [_check(value, each, root, path) for each in schemas]
    right = [each for each in tries if not each.errors]
    if not right or (exactly_one and len(right) > 1):
        reasons = "; ".join(error for each in tries for error in each.errors)
        return _Found([f"{path}: fits {len(right)} of {len(tries)} alternatives: {reasons}"])
    return _Found([], {name for each in right for name in each.evaluated})


def _check_alone(value: Any, schema: Schema) -> Iterator[str]:
    """What needs no look into the value's parts."""
    if (types := schema.get("type")) is not None:
        names = [types] if isinstance(types, str) else types
        if not any(_is(value, name) for name in names):
            yield f"{value!r} is no {' or '.join(names)}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{value!r} is none of {schema['enum']}"
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{value!r} is not like {schema['pattern']}"
    if _is(value, "number"):
        if value < schema.get("minimum", value):
            yield f"{value} is under {schema['minimum']}"
        if value > schema.get("maximum", value):
            yield f"{value} is over {schema['maximum']}"
    if isinstance(value, list) and len(value) < schema.get("minItems", 0):
        yield f"{len(value)} items are fewer than {schema['minItems']}"
    if isinstance(value, list) and len(value) > schema.get("maxItems", len(value)):
        yield f"{len(value)} items are more than {schema['maxItems']}"
    if isinstance(value, str) and len(value) < schema.get("minLength", 0):
        yield f"{len(value)} characters are fewer than {schema['minLength']}"
    if isinstance(value, str) and len(value) > schema.get("maxLength", len(value)):
        yield f"{len(value)} characters are more than {schema['maxLength']}"
    if isinstance(value, list) and schema.get("uniqueItems") and any(item in value[:i] for i, item in enumerate(value)):
        yield "an item is there twice"
    if isinstance(value, dict):
        for name in schema.get("required", ()):
            if name not in value:
                yield f"{name} is missing"


def _check_properties(value: dict[str, Any], schema: Schema, root: Schema, path: str, evaluated: set[str]) -> _Found:
    found = _Found()
    patterns = schema.get("patternProperties", {})
    for name, part in value.items():
        applying = [schema["properties"][name]] if name in schema.get("properties", {}) else []
        applying += [each for pattern, each in patterns.items() if re.search(pattern, name)]
        if not applying and "additionalProperties" in schema:
            applying = [schema["additionalProperties"]]
        if not applying and name not in evaluated and "unevaluatedProperties" in schema:
            applying = [schema["unevaluatedProperties"]]
        for each in applying:
            found.errors += _check(part, each, root, f"{path}.{name}").errors
            found.evaluated.add(name)
    return found


def _is(value: Any, name: str) -> bool:
    return isinstance(value, _TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def _resolve(reference: str, root: Schema) -> Schema:
    schema: Any = root
    for name in reference.removeprefix("#/").split("/"):
        schema = schema[name]
    return schema
