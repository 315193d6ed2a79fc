"""The transcripts of all streams that this process has: records in, records to send and state to keep out.

Sans-I/O: the worker sends what comes back, keeps what `writes` says, and lets go of the record, all in one transaction
or one after the other. The state is kept under JSON keys, `["stream"]` and `["stream", "utterance"]`, so that a long
stream costs no more than a short one.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import msgspec

from pipeline.dead_letter_log import DeadLetterLog
from pipeline.settings import EnsembleSettings
from pipeline.speech.letters import letter_of
from pipeline.speech.outgoing import Outgoing, SpeechRecords
from schemas.errors import BadRecord, Reason
from schemas.feeds.tracks import Feed
from schemas.headers import read_cause
from schemas.records import InputRecord, OutputRecord
from schemas.speech_feeds import read_events, stream_of
from schemas.urgency import FINAL, REVISION, UTTERANCE, Unanswered
from stages.transcript_outputs import transcript_outputs
from stages.transcripts import Answer, Ask, Effect, Head, Stream, Tell, TellAll, Utterance

log = logging.getLogger("penstock.transcripts")

# An annotation is kept with the state and told in one record; embeddings of each token of a long text are larger.
MAX_OUTPUTS_BYTES = 4 << 20
# What is counted of what follows from events.
_OUTCOMES: dict[type[Effect], str] = {Ask: "asked", Tell: "annotated", TellAll: "ended"}
# Between two looks at what is overdue, the longest wait.
_LONGEST_RESEND_S = 600.0

_json = msgspec.json.Encoder().encode
_state = msgspec.msgpack.Encoder().encode
_read_key = msgspec.json.Decoder(list[str]).decode
_read_head = msgspec.msgpack.Decoder(Head).decode
_read_utterance = msgspec.msgpack.Decoder(Utterance).decode


_Asked = tuple[str, int, bool]


class _Result(msgspec.Struct, gc=False):
    """What of a result is read."""

    outputs: msgspec.Raw = msgspec.Raw(b"")
    unanswered: Unanswered | None = None


_read_result = msgspec.json.Decoder(_Result).decode


class Desk:
    """All state of one process. `counts` counts what became of the events, `refused` dead letters."""

    def __init__(self, settings: EnsembleSettings) -> None:
        self.counts: Counter[str] = Counter()
        self.refused: Counter[Reason] = Counter()
        self.letters_told = DeadLetterLog(log)
        self._settings = settings
        self._speech = settings.speech_or_default
        self._records = SpeechRecords(settings)
        self._changelog = settings.speech_topic_names.changelog
        self._streams: dict[str, Stream] = {}
        # Those whose state has changed, and whether more of it than utterances.
        self._touched: dict[str, bool] = {}
        self._new: set[str] = set()
        # Left over by a crash between two writes.
        self._leftovers: list[Outgoing] = []
        self._heard_s: dict[str, float] = {}
        # Of each stream: what must be answered, by utterance, revision and finality; when it is asked again, and after
        # what wait.
        self._overdue: dict[str, dict[_Asked, tuple[float, float]]] = {}

    def load(self, kept: Iterable[tuple[bytes, bytes]], now_s: float) -> None:
        """Begin with the state that was kept. Silence begins anew, too."""
        heads: dict[str, Head] = {}
        utterances: dict[str, list[Utterance]] = {}
        for key, value in kept:
            match _read_key(key):
                case [stream_id]:
                    heads[stream_id] = _read_head(value)
                case [stream_id, _]:
                    utterances.setdefault(stream_id, []).append(_read_utterance(value))
        self._streams, self._touched, self._new, self._leftovers = {}, {}, set(), []
        self._heard_s, self._overdue = {}, {}
        for stream_id, head in heads.items():
            known = utterances.pop(stream_id, [])
            self._streams[stream_id] = self._stream(head, known)
            self._heard_s[stream_id] = now_s
            if head.done:
                self._leftovers += [self._write(head.partition, [stream_id, each.utterance_id], None) for each in known]

    @property
    def streams(self) -> Mapping[str, Stream]:
        """By their ids."""
        return self._streams

    def speech(self, record: InputRecord, *, now_s: float, now_ms: float) -> list[Outgoing]:
        """A record of the feed. A bad one becomes a dead letter."""
        try:
            stream_id = stream_of(record)
        except BadRecord as err:
            return [self.refuse(record, err)]
        stream = self._streams.get(stream_id)
        if stream is not None and record.source.offset <= stream.head.offset:
            self.counts["repeated"] += 1  # its effects have been sent, its state is kept
            return []
        # Of a bad record nothing counts, not what it did to the feed's state either.
        feed = Feed(stream_id) if stream is None else msgspec.convert(msgspec.to_builtins(stream.head.feed), Feed)
        outgoing: list[Outgoing] = []
        try:
            most_bytes = self._settings.most_speech_bytes
            events = read_events(record, self._speech.feed, feed, max_text_bytes=most_bytes)
            if stream is None:
                stream = self._streams[stream_id] = self._stream(Head(record.source.partition, feed))
                self._new.add(stream_id)
            stream.head.feed = feed
            for place, event in enumerate(events):
                effects = stream.hear(event, (record.source.offset, place))
                self.counts["changed" if effects else "unchanged"] += 1
                outgoing += self._sent(stream, effects, now_s=now_s, now_ms=now_ms)
        except BadRecord as err:
            outgoing.append(self.refuse(record, err))
        if stream is not None:
            stream.head.offset = record.source.offset
            self._heard_s[stream_id] = now_s
            self._touched[stream_id] = True
        return outgoing

    def result(self, record: InputRecord, *, now_s: float, now_ms: float) -> list[Outgoing]:
        """A record of the results: of a hypothesis, or of somebody else's request."""
        asked = self._asked(record)
        if asked is None or record.value is None:
            return []
        stream, utterance_id, revision, is_final = asked
        try:
            result = _read_result(record.value)
            outputs, error = bytes(result.outputs) if result.unanswered is None else b"", ""
            if outputs:
                context = self._context(stream, utterance_id, revision, is_final)
                outputs = transcript_outputs(outputs, context=context, decimals=self._speech.decimals)
            if len(outputs) > MAX_OUTPUTS_BYTES:
                error = f"outputs of {len(outputs)} bytes are too large, allowed are {MAX_OUTPUTS_BYTES}"
                outputs = b""
        except (msgspec.MsgspecError, UnicodeDecodeError, AttributeError, RecursionError) as err:
            log.warning("%s is no result: %s", record.source, err)
            return []
        return self._answered(stream, Answer(utterance_id, revision, is_final, outputs, error), now_s, now_ms)

    def dead_letter(self, record: InputRecord, *, now_s: float, now_ms: float) -> list[Outgoing]:
        """A record of the dead letters: the request of a hypothesis, or something else."""
        asked = self._asked(record)
        cause = read_cause(record.headers)
        if asked is None or cause is None or cause.topic != self._settings.topic_names.requests:
            return []
        stream, utterance_id, revision, is_final = asked
        error = f"{cause.reason or 'dead letter'}: {cause.message or ''}".removesuffix(": ")
        return self._answered(stream, Answer(utterance_id, revision, is_final, b"", error), now_s, now_ms)

    def refuse(self, record: InputRecord, error: BadRecord) -> Outgoing:
        """The dead letter of a record."""
        self.letters_told.tell(record.source, error)
        self.refused[error.reason] += 1
        return Outgoing(record.source.partition, letter_of(record, error, self._settings))

    def tick(self, *, now_s: float, now_ms: float, quiet: Callable[[int], bool]) -> list[Outgoing]:
        """What time brings: ended streams are forgotten, what must be answered is asked again, and streams end by
        silence, those in partitions that are `quiet`: all that these have was heard."""
        outgoing: list[Outgoing] = []
        asked_before = self.counts["asked_again"]
        for stream_id, stream in [*self._streams.items()]:
            silent_s = now_s - self._heard_s[stream_id]
            if stream.head.done:
                if silent_s >= self._speech.remember_ms / 1e3:
                    del self._streams[stream_id], self._heard_s[stream_id]
                    self._overdue.pop(stream_id, None)
                    self._touched.pop(stream_id, None)
                    self._leftovers.append(self._write(stream.head.partition, [stream_id], None))
                continue
            may_be_over = stream.head.ended_by is None and silent_s >= self._speech.silence_ms / 1e3
            if may_be_over and quiet(stream.head.partition):
                outgoing += self._sent(stream, stream.end("silence"), now_s=now_s, now_ms=now_ms)
                self._heard_s[stream_id] = now_s
                self._touched[stream_id] = True
            outgoing += self._asked_again(stream, now_s=now_s, now_ms=now_ms)
        if asked := self.counts["asked_again"] - asked_before:
            log.warning("asked again, as nothing answered: %d utterances", asked)
        return outgoing

    def writes(self) -> list[Outgoing]:
        """Records of the changelog, to be kept now in this order; call it once what came back before was sent."""
        written = self._leftovers
        self._leftovers = []
        for stream_id, head_changed in self._touched.items():
            stream = self._streams[stream_id]
            partition = stream.head.partition
            head = self._write(partition, [stream_id], stream.head)
            changed = [
                self._write(partition, [stream_id, utterance_id], each)
                for utterance_id, each in stream.changes().items()
            ]
            if stream.head.done:
                written += [head, *changed]  # should only the first be kept, the rest is a leftover
                continue
            # The head says up to where the feed was heard: it must not be kept before what was heard. But utterances
            # without any head would be nobody's.
            if stream_id in self._new:
                nothing_yet = Head(partition, Feed(stream_id))
                written.append(self._write(partition, [stream_id], nothing_yet))
            written += [*changed, head] if head_changed else changed
        self._touched = {}
        self._new = set()
        return written

    def _write(self, partition: int, key: list[str], state: Head | Utterance | None) -> Outgoing:
        """None: to be forgotten."""
        value = None if state is None else _state(state)
        return Outgoing(partition, OutputRecord(self._changelog, _json(key), value, []))

    def _stream(self, head: Head, utterances: list[Utterance] | None = None) -> Stream:
        speech = self._speech
        return Stream(
            head, utterances, context_characters=speech.context_characters, max_utterances=speech.max_utterances
        )

    def _asked(self, record: InputRecord) -> tuple[Stream, str, int, bool] | None:
        """The stream, utterance, revision and finality that a result's headers name; None where it is none of ours."""
        headers = dict(record.headers)
        utterance, revision, final = (headers.get(name) for name in (UTTERANCE, REVISION, FINAL))
        if record.key is None or utterance is None or revision is None or not revision.isdigit() or len(revision) > 19:
            return None
        try:
            stream = self._streams.get(record.key.decode())
            return None if stream is None else (stream, utterance.decode(), int(revision), final == b"true")
        except UnicodeDecodeError:
            return None

    def _context(self, stream: Stream, utterance_id: str, revision: int, is_final: bool) -> str:
        asked = stream.asked(Answer(utterance_id, revision, is_final, b"{}"))
        return asked.context if asked is not None else ""

    def _answered(self, stream: Stream, answer: Answer, now_s: float, now_ms: float) -> list[Outgoing]:
        effects = stream.answered(answer)
        self._touched.setdefault(stream.stream_id, False)
        return self._sent(stream, effects, now_s=now_s, now_ms=now_ms)

    def _asked_again(self, stream: Stream, *, now_s: float, now_ms: float) -> list[Outgoing]:
        """Nothing should ever be: results are not lost. Unless somebody deleted them."""
        first_s = self._speech.resend_after_ms / 1e3
        before = self._overdue.pop(stream.stream_id, {})
        waits: dict[_Asked, tuple[float, float]] = {}
        overdue: list[Ask] = []
        for ask in stream.outstanding():
            asked = ask.utterance_id, ask.hypothesis.revision, ask.hypothesis.is_final
            due_s, wait_s = before.get(asked, (now_s + first_s, first_s))
            if now_s >= due_s:
                overdue.append(ask)
                wait_s = min(2 * wait_s, _LONGEST_RESEND_S)
                due_s = now_s + wait_s
            waits[asked] = due_s, wait_s
        if waits:
            self._overdue[stream.stream_id] = waits
        self.counts["asked_again"] += len(overdue)
        return [record for each in overdue for record in self._records.of(stream, each, now_ms)]

    def _sent(self, stream: Stream, effects: list[Effect], *, now_s: float, now_ms: float) -> list[Outgoing]:
        for effect in effects:
            self.counts[_OUTCOMES[type(effect)]] += 1
            if isinstance(effect, TellAll):
                self._heard_s[stream.stream_id] = now_s
        return [record for effect in effects for record in self._records.of(stream, effect, now_ms)]
