"""Dead letters: the original record with headers that say which stage gave up on it, and why.

Behind the tokenize stage only a text's identity travels, not its bytes; the original is then read again from the
requests topic, which happens once a dead letter and never on the way of a good record.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from pipeline import clients
from pipeline.clients import ClientSettings
from pipeline.dead_letter_log import DeadLetterLog
from pipeline.deadline import Deadline
from pipeline.errors import WorkerFailure
from pipeline.metrics import StageMetrics
from schemas.errors import BadRecord, Reason
from schemas.headers import HeaderStyle, dead_letter_headers, with_more_said
from schemas.packs import ClosedText, PackedText
from schemas.records import InputRecord, OutputRecord, Source

log = logging.getLogger("penstock.dead_letters")

_NOT_THERE = frozenset({KafkaError._PARTITION_EOF, KafkaError._UNKNOWN_PARTITION, KafkaError.UNKNOWN_TOPIC_OR_PART})
# Reading one record by offset takes milliseconds; a broker that takes longer is away.
_FETCH_TIMEOUT_S = 10.0


class DeadLetters:
    """Makes the dead letters of one stage, and counts them. Thread-safe."""

    def __init__(
        self,
        settings: ClientSettings,
        *,
        topic: str,
        stage: str,
        group: str,
        metrics: StageMetrics,
        header_style: HeaderStyle = "kafka",
        groups: Mapping[str, str] | None = None,
    ) -> None:
        """`groups` are those of other requests topics, whose lanes share the stage."""
        self.topic = topic
        self._header_style = header_style
        self._metrics = metrics
        self._settings = settings
        self._stage = stage
        self._group = group
        self._groups = groups or {}
        self._told = DeadLetterLog(log)
        self._lock = threading.Lock()
        self._reader: Consumer | None = None

    def of_record(self, record: InputRecord, error: BadRecord) -> OutputRecord:
        """A record as it was read."""
        group = self._groups.get(record.source.topic, self._group)
        headers = dead_letter_headers(
            error, source=record.source, stage=self._stage, group=group, style=self._header_style
        )
        self._told.tell(record.source, error)
        self._metrics.dead_letter(error.reason)
        return OutputRecord(self.topic, record.key, record.value, [*record.headers, *headers], [record.source])

    def of_text(
        self, source: Source, text: PackedText | ClosedText | None, error: BadRecord, records: Sequence[InputRecord]
    ) -> OutputRecord:
        """The request at `source`: one of `records` where it is among them, else fetched. Where the topic no longer
        has it, the key and headers that `text` carried, and no value."""
        original = next((record for record in records if record.source == source), None)
        if original is None:
            original = self._fetch(source)
        if original is not None:
            return self.of_record(original, error)
        gone = BadRecord(error.reason, f"{error.message} (the original is no longer in {source.topic})")
        key, headers = (text.key, text.headers) if text is not None else (None, [])
        return self.of_record(InputRecord(source, key, None, headers), gone)

    def in_place_of(self, output: OutputRecord, why: str, records: Sequence[InputRecord]) -> list[OutputRecord]:
        """What stands for an output that is too large for its topic: a dead letter for each request that it answers,
        for a dead letter the same without its value; nothing, where that is too large too."""
        if output.topic == self.topic:
            return [] if output.value is None else [self._without_value(output, why)]
        error = BadRecord(
            Reason.RESULT_TOO_LARGE,
            f"{len(output.value or b'')} bytes are too many for {output.topic} ({why}): its max.message.bytes, or the "
            "producer's message.max.bytes, allows less",
        )
        return [self.of_text(source, None, error, records) for source in output.answers]

    def _without_value(self, dead_letter: OutputRecord, why: str) -> OutputRecord:
        """A dead letter that its topic has no room for: where the original is, and why, are worth more than nothing."""
        place = next(iter(dead_letter.answers))
        log.error("dead letter of %s: its value is left out: %s", place, why)
        size_bytes = len(dead_letter.value or b"")
        said = f" (its value of {size_bytes} bytes is left out: too large for {dead_letter.topic}: {why})"
        headers = with_more_said(dead_letter.headers, said)
        return OutputRecord(dead_letter.topic, dead_letter.key, None, headers, dead_letter.answers)

    def close(self) -> None:
        """Let go of the connection, if there is one, and tell what was not told yet."""
        self._told.close()
        with self._lock:
            if self._reader is not None:
                self._reader.close()
                self._reader = None

    def _fetch(self, source: Source) -> InputRecord | None:
        """None where the topic doesn't have it. Raises WorkerFailure where the broker doesn't say: the worker starts
        again and asks again, and nothing is dead-lettered without its value meanwhile."""
        with self._lock:
            if self._reader is None:
                self._reader = clients.reader(self._settings, client_id=f"{self._group}.originals", tell_ends=True)
            reader = self._reader
            deadline = Deadline(_FETCH_TIMEOUT_S)
            reason = f"no answer within {_FETCH_TIMEOUT_S:g} s"
            try:
                reader.assign([TopicPartition(source.topic, source.partition, source.offset)])
                while (message := reader.poll(deadline.remaining_s())) is not None:
                    error = message.error()
                    if error is None:
                        record = clients.input_record(message)
                        if record.source.offset >= source.offset:
                            return record if record.source == source else None
                    elif error.code() in _NOT_THERE:
                        return None
                    else:
                        reason = error.str()
            except KafkaException as err:
                reason = err.args[0].str()
            finally:
                reader.unassign()
            raise WorkerFailure(f"the original of {source} can't be read: {reason}")
