"""What can be wrong with a record. Whoever meets one of these sends the record to the dead letters."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a record became a dead letter: the value of the header `__dlq.errors.reason`."""

    NULL_VALUE = "null_value"
    NOT_UTF8 = "not_utf8"
    NOT_JSON = "not_json"
    BAD_REQUEST = "bad_request"
    TEXT_TOO_LARGE = "text_too_large"
    TEXT_TOO_LONG = "text_too_long"
    BAD_PACK = "bad_pack"
    ENGINE_FAILED = "engine_failed"
    STAGE_FAILED = "stage_failed"
    RESULT_TOO_LARGE = "result_too_large"


class BadRecord(Exception):
    """Raised when one record can't be answered: its sender must act, its neighbours are not concerned.

    `reason` is for machines, `message` is one line for the person who reads the dead letters.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
