"""Records of the transcripts on their way out: requests to the ensemble, annotated utterances, whole transcripts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from pipeline.settings import EnsembleSettings
from schemas.headers import CLOUDEVENTS_ID, read_cause
from schemas.records import Headers, OutputRecord
from schemas.transcripts import encode_transcript, encode_utterance
from schemas.urgency import EXPIRY_TIME, FINAL, REVISION, UTTERANCE
from stages.transcript_outputs import with_context
from stages.transcripts import Ask, Effect, Stream, Tell, TellAll

_json = msgspec.json.Encoder().encode


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """A record to be sent to a partition."""

    partition: int
    record: OutputRecord


class SpeechRecords:
    """Makes records of what follows from an event."""

    def __init__(self, settings: EnsembleSettings) -> None:
        self._requests = settings.topic_names.requests
        self._transcripts = settings.speech_topic_names.transcripts
        self._as_json = settings.requests.format == "json"
        self._budget_ms = settings.speech_or_default.partial_budget_ms

    def of(self, stream: Stream, effect: Effect, now_ms: float) -> list[Outgoing]:
        """All go to the stream's own partition. `now_ms` is since 1970."""
        match effect:
            case Ask():
                return [self._request(stream, effect, now_ms)]
            case Tell():
                values = [encode_utterance(stream.stream_id, effect.utterance)]
            case TellAll():
                values = encode_transcript(stream.stream_id, effect.ended_by, effect.utterances)
        key = stream.stream_id.encode()
        return [Outgoing(stream.head.partition, OutputRecord(self._transcripts, key, value, [])) for value in values]

    def _request(self, stream: Stream, ask: Ask, now_ms: float) -> Outgoing:
        heard = ask.hypothesis
        request_id = f"{stream.stream_id}/{ask.utterance_id}/{heard.revision}"
        headers: Headers = [
            (CLOUDEVENTS_ID, request_id.encode()),
            (UTTERANCE, ask.utterance_id.encode()),
            (REVISION, str(heard.revision).encode()),
            (FINAL, b"true" if ask.is_final else b"false"),
        ]
        if self._budget_ms is not None and not ask.is_final:
            expires = datetime.fromtimestamp(now_ms / 1e3, UTC) + timedelta(milliseconds=self._budget_ms)
            headers.append((EXPIRY_TIME, expires.isoformat(timespec="milliseconds").encode()))
        text = with_context(heard.text, heard.context)
        body: Any = {"text": text, "id": request_id}
        value = _json(body) if self._as_json else text.encode()
        return Outgoing(stream.head.partition, OutputRecord(self._requests, stream.stream_id.encode(), value, headers))


def without_superseded(outgoing: Sequence[Outgoing]) -> list[Outgoing]:
    """Of records that are sent together only those that are still of use: a partial hypothesis is not asked where one
    of the same utterance follows. After a restart, what was said meanwhile is so read at once."""
    followed: set[tuple[bytes | None, bytes | None]] = set()
    kept: list[Outgoing] = []
    for each in reversed(outgoing):
        headers = dict(each.record.headers)
        if FINAL in headers and REVISION in headers and read_cause(each.record.headers) is None:
            utterance = each.record.key, headers.get(UTTERANCE)
            if headers[FINAL] != b"true" and utterance in followed:
                continue
            followed.add(utterance)
        kept.append(each)
    return kept[::-1]
