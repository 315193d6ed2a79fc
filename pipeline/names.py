"""Names that the ensemble file gives: Kafka's rule for topics, and so for what topics and groups are named after."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from pipeline.mistakes import shown

# Kafka allows topics of 249 characters; ".dead-letters" takes 13.
MAX_TOPIC_CHARACTERS = 249
MAX_NAME_CHARACTERS = 200


def topic_name(name: str, most_characters: int = MAX_TOPIC_CHARACTERS) -> str:
    """The name as it is. Raises ValueError where Kafka would refuse it."""
    if not re.fullmatch(r"[a-zA-Z0-9._-]+", name) or name in (".", "..") or len(name) > most_characters:
        allowed = f"letters, digits, '.', '_' and '-', at most {most_characters} of them"
        raise ValueError(f"{shown(name)} is not allowed; allowed: {allowed}")
    return name


def _name(name: str) -> str:
    return topic_name(name, MAX_NAME_CHARACTERS)


TopicName = Annotated[str, AfterValidator(topic_name)]
# Of an ensemble or a model.
Name = Annotated[str, AfterValidator(_name)]
