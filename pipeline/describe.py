"""`penstock describe`: an ensemble's topics and messages as an AsyncAPI 3 document, for people and code generators.

https://www.asyncapi.com/docs/reference/specification/v3.0.0. It is written from the ensemble's side: requests are
received, results are the reply, dead letters are sent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from ruamel.yaml import YAML

from pipeline.model_tasks import known_parameters, model_tasks
from pipeline.outputs import results_alone
from pipeline.own_tasks import own_schemas
from pipeline.request_bounds import parameter_bounds
from pipeline.settings import EnsembleSettings
from schemas.errors import Reason
from schemas.headers import CLOUDEVENTS_ID, header_names
from schemas.json_schema import request_schema, result_schema, speech_schema, text_schema, transcript_schema
from schemas.urgency import EXPIRY_TIME, FINAL, LANE, REVISION, UTTERANCE

Document = dict[str, Any]

# What AsyncAPI does not allow in the key of a server.
_NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9_-]+")


def describe(settings: EnsembleSettings, *, as_json: bool) -> None:
    """Print the document. Raises UserError where the models' files can't be read."""
    with results_alone() as results:
        document = asyncapi(settings)
        if as_json:
            results.write(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
            return
        yaml = YAML()
        yaml.default_flow_style = False
        yaml.width = 120
        yaml.dump(document, results)


def asyncapi(settings: EnsembleSettings) -> Document:
    """The document as JSON has it. Raises UserError where the models' files can't be read."""
    names = settings.topic_names
    of_models = model_tasks(settings)
    tasks = dict(zip((model.name for model in settings.models), of_models, strict=True))
    own = own_schemas(settings)
    text = settings.requests.format == "text"
    security = str(settings.kafka.client_settings().get("security.protocol", "PLAINTEXT"))
    protocol = "kafka-secure" if security.upper().endswith("SSL") else "kafka"
    kafka = {"kafka": {"partitions": settings.topics.partitions, "bindingVersion": "0.5.0"}}

    def channel(address: str, message: str, about: str) -> Document:
        return {
            "address": address,
            "description": about,
            "messages": {message: _reference("messages", message)},
            "bindings": kafka,
        }

    document: Document = {
        "asyncapi": "3.0.0",
        "info": {
            "title": settings.name,
            "version": "1",
            "description": "; ".join(
                f"{model.name}: {model.task if model.name in own else tasks[model.name]}" for model in settings.models
            ),
        },
        "defaultContentType": "application/json",
        "servers": {
            _NOT_IN_KEYS.sub("-", address): {"host": address, "protocol": protocol}
            for address in map(str.strip, settings.kafka.bootstrap_servers.split(","))
        },
        "channels": {
            "requests": channel(names.requests, "request", "What is to be answered; key and headers come back."),
            **{
                f"requests-{_NOT_IN_KEYS.sub('-', lane)}": channel(
                    each.topic_names.requests, "request", f"The same, in the lane {lane}."
                )
                for lane, each in settings.other_lanes().items()
            },
            "results": channel(names.results, "result", "One for each request, in the order of its partition."),
            "deadLetters": channel(names.dead_letters, "deadLetter", "What can't be answered, as it was."),
        },
        "operations": {
            "answer": {
                "action": "receive",
                "channel": {"$ref": "#/channels/requests"},
                "reply": {"channel": {"$ref": "#/channels/results"}},
            },
            "refuse": {"action": "send", "channel": {"$ref": "#/channels/deadLetters"}},
        },
        "components": {
            "messages": {
                "request": {"headers": _request_headers(settings)}
                | (
                    {"contentType": "text/plain", "payload": text_schema(settings.requests.max_text_bytes)}
                    if text
                    else {
                        "payload": request_schema(
                            of_models,
                            known_parameters(settings, of_models),
                            max_text_bytes=settings.requests.max_text_bytes,
                            bounds=parameter_bounds(settings, of_models),
                        )
                    }
                ),
                "result": {"payload": result_schema(tasks, own)},
                "deadLetter": {
                    "contentType": "application/octet-stream",
                    "headers": {
                        "type": "object",
                        "properties": {
                            name: {"type": "string"} | ({"enum": [*map(str, Reason)]} if field == "reason" else {})
                            for field, name in header_names(settings.dead_letters.header_style).items()
                        },
                    },
                    "payload": {"description": "What was refused: a request's value, or a pack that can't be read."},
                },
            }
        },
    }
    if settings.speech is not None:
        _add_speech(document, settings, transcript_schema(tasks, own), channel)
    # Each part for itself: YAML would name the second of two that are one, and refer to the first.
    copied: Document = json.loads(json.dumps(document))
    return copied


def _add_speech(
    document: Document, settings: EnsembleSettings, transcripts: Document, channel: Callable[[str, str, str], Document]
) -> None:
    """What `penstock transcripts` reads and writes."""
    names, feed = settings.speech_topic_names, settings.speech_or_default.feed
    document["channels"] |= {
        "speech": channel(names.speech, "speech", "What a recognizer hears, in order by stream."),
        "transcripts": channel(names.transcripts, "transcript", "The same, annotated, in the stream's partition."),
    }
    document["operations"]["annotate"] = {
        "action": "receive",
        "channel": {"$ref": "#/channels/speech"},
        "reply": {"channel": {"$ref": "#/channels/transcripts"}},
    }
    key = {"kafka": {"key": {"type": "string", "description": "The stream's id."}, "bindingVersion": "0.5.0"}}
    document["components"]["messages"] |= {
        "speech": {"payload": speech_schema(feed, max_text_bytes=settings.most_speech_bytes), "bindings": key},
        "transcript": {"payload": transcripts, "bindings": key},
    }


def _request_headers(settings: EnsembleSettings) -> Document:
    """Those that are read; any others come back too."""
    return {
        "type": "object",
        "properties": {
            CLOUDEVENTS_ID: {"type": "string"},
            EXPIRY_TIME: {"type": "string", "format": "date-time"},
            UTTERANCE: {"type": "string"},
            REVISION: {"type": "string", "pattern": "^[0-9]{1,19}$"},
            FINAL: {"enum": ["true", "false"]},
            LANE: {"enum": [*settings.batching.lanes]},
        },
    }


def _reference(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}
