"""Names of record headers.

Dead letters carry the names that Kafka gives its own (KIP-1191: `__dlq.errors.topic`, `.partition`, `.offset`,
`.group`, `.message`), plus `.stage` and `.reason`, which Kafka has no word for. Values are UTF-8 text.
"""

from __future__ import annotations

from schemas.errors import BadRecord
from schemas.records import Headers, Source

CLOUDEVENTS_ID = "ce_id"

DLQ_PREFIX = "__dlq.errors."
DLQ_TOPIC = DLQ_PREFIX + "topic"
DLQ_PARTITION = DLQ_PREFIX + "partition"
DLQ_OFFSET = DLQ_PREFIX + "offset"
DLQ_GROUP = DLQ_PREFIX + "group"
DLQ_STAGE = DLQ_PREFIX + "stage"
DLQ_REASON = DLQ_PREFIX + "reason"
DLQ_MESSAGE = DLQ_PREFIX + "message"


def dead_letter_headers(error: BadRecord, *, source: Source, stage: str, group: str) -> Headers:
    """What a dead letter's headers say in addition to the original ones."""
    texts = (
        (DLQ_TOPIC, source.topic),
        (DLQ_PARTITION, str(source.partition)),
        (DLQ_OFFSET, str(source.offset)),
        (DLQ_GROUP, group),
        (DLQ_STAGE, stage),
        (DLQ_REASON, str(error.reason)),
        (DLQ_MESSAGE, error.message),
    )
    return [(name, text.encode(errors="replace")) for name, text in texts]
