"""JSON Schemas of requests, results and speech, by what an ensemble's models do: made of the types themselves."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from inspect import cleandoc
from typing import Any, get_args

import msgspec

from schemas.parameters import MAX_ANSWERS, Parameters
from schemas.requests import BODIES, ONE_TEXT_TASKS, request_kind
from schemas.results import TASK_OUTPUTS, Result
from schemas.speech import EndOfStream, SpeechEvent
from schemas.speech_feeds import FeedName
from schemas.transcripts import AnnotatedUtterance, EndedBy
from schemas.urgency import Unanswered

# draft 2020-12
Schema = dict[str, Any]


def request_schema(
    tasks: Collection[str],
    known_parameters: Mapping[str, Collection[str]],
    *,
    max_text_bytes: int,
    bounds: Mapping[str, Schema],
) -> Schema:
    """Of a request's JSON object; `known_parameters` is by what the ensemble file calls a task, `bounds` what more is
    said of some parameters. Raises ValueError where the tasks read different ones."""
    body = BODIES[request_kind(tasks)]
    schema, parameters = _expanded(body), _expanded(Parameters)
    known = {name for names in known_parameters.values() for name in names}
    parameters["properties"] = {
        # What is left out is as the ensemble file says: there is no default here.
        name: {key: value for key, value in each.items() if key != "default"}
        for name, each in parameters["properties"].items()
        if name in known
    }
    for name in bounds.keys() & parameters["properties"].keys():
        parameters["properties"][name] |= bounds[name]
    if "hypothesis_template" in parameters["properties"]:
        parameters["properties"]["hypothesis_template"] |= {"pattern": r"\{\}"}
    if "fill-mask" in tasks and "top_k" in parameters["properties"]:
        parameters["properties"]["top_k"] = _not_null(parameters["properties"]["top_k"])
    if "question-answering" in tasks:
        parameters["properties"]["top_k"] = {"type": "integer", "minimum": 1, "maximum": MAX_ANSWERS}
    properties = schema["properties"]
    if not ONE_TEXT_TASKS.isdisjoint(tasks):
        del properties["text_pair"]
    if known:
        properties["parameters"] = parameters | {"description": "For this request alone, by name."}
    else:
        del properties["parameters"]
    for each in properties.values():
        if each.get("default", 0) is None:  # optional, and no request need say null
            del each["default"]
    for name in properties.keys() - {"id", "parameters"}:
        properties[name] = _bounded(properties[name], max_text_bytes)
    schema["description"] += f" All text of a request has at most {max_text_bytes} bytes of UTF-8."
    return schema


def text_schema(max_text_bytes: int) -> Schema:
    """Of a text alone."""
    return _bounded({"type": "string", "description": f"At most {max_text_bytes} bytes of UTF-8."}, max_text_bytes)


def result_schema(tasks: Mapping[str, str], own: Mapping[str, Schema]) -> Schema:
    """Of a result's JSON object; `tasks` is by model name, and so is what tasks of the user's `own` answer."""
    # What the outputs may be in all is a union that msgspec has no schema of; here it is known of each.
    fields = [
        (field.name, dict if field.name == "outputs" else field.type)
        for field in msgspec.structs.fields(Result)
        if field.name != "unanswered"
    ]
    schema = _expanded(msgspec.defstruct("Result", fields, namespace={"__doc__": Result.__doc__}))
    answered = _outputs(tasks, own)
    schema["properties"]["outputs"] = {"anyOf": [answered, {"type": "object", "additionalProperties": False}]}
    schema["properties"]["unanswered"] = {"enum": [*get_args(Unanswered)]}
    return schema


def speech_schema(feed: FeedName, *, max_text_bytes: int) -> Schema:
    """Of what a record of the speech topic has."""
    if feed == "penstock":
        event = _expanded(SpeechEvent)
        event["properties"]["text"] = text_schema(max_text_bytes)
        return {"anyOf": [event, _expanded(EndOfStream)]}
    return {"anyOf": [{"description": f"A message of {feed}, as it came."}, _expanded(EndOfStream)]}


def transcript_schema(tasks: Mapping[str, str], own: Mapping[str, Schema]) -> Schema:
    """Of what a record of the transcripts topic has: an utterance, or a whole transcript. Arguments as for a result."""
    utterance = _expanded(AnnotatedUtterance)
    utterance["properties"]["outputs"] = _outputs(tasks, own)
    stream: Schema = {"stream_id": {"type": "string"}}
    count: Schema = {"type": "integer", "minimum": 1}
    head: Schema = {"ended_by": {"enum": [*get_args(EndedBy)]}, "part": count, "parts": count}
    whole = {"type": {"enum": ["transcript"]}} | stream | head
    return {
        "anyOf": [
            utterance
            | {
                "properties": {"type": {"enum": ["utterance"]}} | stream | utterance["properties"],
                "required": ["type", "stream_id", *utterance["required"]],
            },
            {
                "type": "object",
                "description": "All utterances of a stream that has ended; of a long one in parts.",
                "properties": whole | {"utterances": {"type": "array", "items": utterance}},
                "required": [*whole, "utterances"],
            },
        ]
    }


def _outputs(tasks: Mapping[str, str], own: Mapping[str, Schema]) -> Schema:
    return {
        "type": "object",
        "properties": {
            name: own[name] if name in own else _alternatives(TASK_OUTPUTS[task]) for name, task in tasks.items()
        },
        "required": [*tasks],
        "additionalProperties": False,
    }


def _bounded(schema: Schema, max_text_bytes: int) -> Schema:
    """With no more characters in each string than bytes are allowed: JSON Schema does not count bytes."""
    if schema.get("type") == "string":
        return schema | {"maxLength": max_text_bytes}
    if "items" in schema:
        return schema | {"items": _bounded(schema["items"], max_text_bytes)}
    if "anyOf" in schema:
        return schema | {"anyOf": [_bounded(each, max_text_bytes) for each in schema["anyOf"]]}
    return schema


def _not_null(schema: Schema) -> Schema:
    [other] = [each for each in schema["anyOf"] if each.get("type") != "null"]
    return dict(other)


def _alternatives(kinds: tuple[Any, ...]) -> Schema:
    schemas = [_expanded(kind) for kind in kinds]
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _expanded(kind: Any) -> Schema:
    """A type's schema, the types it refers to put in their places: none of them refers to itself."""
    (schema,), components = msgspec.json.schema_components([kind], ref_template="{name}")

    def put(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return put(components[value["$ref"]])
            return {key: cleandoc(each) if isinstance(each, str) else put(each) for key, each in value.items()}
        return [put(each) for each in value] if isinstance(value, list) else value

    expanded: Schema = put(schema)
    return expanded
