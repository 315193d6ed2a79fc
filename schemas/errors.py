"""What can be wrong with a record. Whoever meets one of these sends the record to the dead letters."""

from __future__ import annotations

from enum import StrEnum

# A message may quote the record it is about, an unknown field of 5 MiB for instance. It becomes a header of the dead
# letter, which must stay deliverable, and a line of the log.
_MOST_CHARACTERS = 500


class Reason(StrEnum):
    """Why a record became a dead letter: the value of the header `__dlq.errors.reason`."""

    NULL_VALUE = "null_value"
    NOT_UTF8 = "not_utf8"
    NOT_JSON = "not_json"
    BAD_HEADERS = "bad_headers"
    BAD_REQUEST = "bad_request"
    TEXT_TOO_LARGE = "text_too_large"
    TEXT_TOO_LONG = "text_too_long"
    BAD_PACK = "bad_pack"
    ENGINE_FAILED = "engine_failed"
    STAGE_FAILED = "stage_failed"
    RESULT_TOO_LARGE = "result_too_large"
    RETURNED_TOO_OFTEN = "returned_too_often"
    # Of speech events.
    BAD_KEY = "bad_key"
    BAD_EVENT = "bad_event"
    STREAM_ENDED = "stream_ended"
    STREAM_TOO_LONG = "stream_too_long"


class BadRecord(Exception):
    """Raised when one record can't be answered: its sender must act, its neighbours are not concerned.

    `reason` is for machines, `message` is one printable line for the person who reads the dead letters; a longer one
    is cut.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        self.reason = reason
        self.message = _line(message)
        super().__init__(f"{reason}: {self.message}")


def _line(message: str) -> str:
    kept = message if len(message) <= _MOST_CHARACTERS else message[: _MOST_CHARACTERS - 3] + "..."
    return "".join(character if character.isprintable() else " " for character in kept)
