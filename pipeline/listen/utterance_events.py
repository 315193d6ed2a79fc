"""A recognizer's hypotheses as speech events: numbered utterances, counted revisions, nothing that says no more."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.demo.recorded_speech import Said
from pipeline.listen.recognizers.recognizer import Hypothesis
from schemas.speech import EndOfStream, SpeechEvent


class UtteranceEvents:
    """The events of one speaker: a stream, or, where it would have more than `max_utterances`, one after another."""

    def __init__(self, name: str, *, max_utterances: int) -> None:
        self._name = name
        self._max_utterances = max_utterances
        self.streams: list[str] = []
        self._utterance = 0
        self._revision = 0
        self._text = ""
        # What keeps a stream from ending by silence, told again.
        self.last: Said | None = None

    def heard(self, hypothesis: Hypothesis, now_ms: int) -> Iterator[Said]:
        """What is to be sent, `now_ms` after the beginning."""
        text = hypothesis.text.strip()
        if text == self._text and not hypothesis.is_final:
            return
        begun = self._revision > 0
        if not text and not begun:
            return  # a noise
        if not begun and self._utterance % self._max_utterances == 0:
            yield from self.end(now_ms)
            self.streams.append(f"{self._name}-{len(self.streams)}" if self.streams else self._name)
        stream_id = self.streams[-1]
        event = SpeechEvent(
            stream_id=stream_id,
            utterance_id=f"{stream_id}/{self._utterance}",
            revision=self._revision,
            is_final=hypothesis.is_final,
            text=text,
            start_ms=hypothesis.start_ms,
            end_ms=hypothesis.end_ms,
            emitted_ms=now_ms,
        )
        self._revision, self._text = self._revision + 1, text
        if hypothesis.is_final:
            self._utterance, self._revision, self._text = self._utterance + 1, 0, ""
        self.last = Said(now_ms, stream_id, event)
        yield self.last

    def end(self, now_ms: int) -> Iterator[Said]:
        """Nothing more is said."""
        if self.last is not None:
            stream_id = self.last.stream_id
            self.last = None
            yield Said(now_ms, stream_id, EndOfStream(end_of_stream=True, stream_id=stream_id, emitted_ms=now_ms))
