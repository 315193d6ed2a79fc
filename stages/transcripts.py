"""A stream's transcript: hypotheses in, requests out; results in, annotated utterances out; at its end, all of it.

Pure state: what is to be sent comes back from each call, and `changes` says which parts of the state are new. Whoever
keeps it sends first, writes the changes next, in their order, and forgets the record last. So a crash anywhere repeats
records and loses none, and a repeat changes nothing: a hypothesis counts only where it stands above the one that is
there, a result only where it is waited for, and a record of the feed at most once, by its offset. Nothing of it depends
on when or how often something was read: order is that of the feed's offsets.

Knows no broker and no clock.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from schemas.errors import BadRecord, Reason
from schemas.feeds.tracks import Feed
from schemas.speech import EndOfStream, SpeechEvent
from schemas.transcripts import AnnotatedUtterance, EndedBy

# Of an utterance: hypotheses whose results may still come. A result that overtakes them is newer.
_MAX_WAITING = 4

# An offset, and the event's number in the record.
Place = tuple[int, int]


class Hypothesis(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a request is made of. `context` is what was said before, which the ensemble reads with it."""

    revision: int
    is_final: bool
    text: str
    start_ms: int | None
    end_ms: int | None
    context: str = ""

    @property
    def rank(self) -> tuple[bool, int]:
        """A final stands above all partials, then the higher revision counts."""
        return self.is_final, self.revision

    def reads_as(self, other: Hypothesis) -> bool:
        """Whether the ensemble would read the same."""
        return (self.text, self.context) == (other.text, other.context)


class Annotation(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A hypothesis with its outputs, as JSON, or with what is wrong instead."""

    hypothesis: Hypothesis
    outputs: bytes = b""
    error: str = ""


class Utterance(msgspec.Struct, array_like=True, gc=False):
    """`newest` is what was heard last, `waiting` what was asked and not answered, oldest first. `begun` is where in the
    feed the utterance was heard of first, `heard` where its newest hypothesis was."""

    utterance_id: str
    begun: Place
    heard: Place
    newest: Hypothesis
    waiting: list[Hypothesis] = []
    annotation: Annotation | None = None

    @property
    def settled(self) -> bool:
        """Whether its newest text is annotated."""
        return self.annotation is not None and self.annotation.hypothesis.rank == self.newest.rank


class Head(msgspec.Struct, array_like=True, gc=False):
    """What is kept of a stream besides its utterances. `offset` is that of its last record in the feed's topic.

    Of a stream that is `done` nothing is left but `known`: its utterances' ranks, to tell late events from repeats.
    """

    partition: int
    feed: Feed
    offset: int = -1
    ended_by: EndedBy | None = None
    done: bool = False
    known: dict[str, tuple[bool, int]] = {}


class Ask(msgspec.Struct, frozen=True, gc=False):
    """A request to send. `is_final`: it must be answered."""

    utterance_id: str
    hypothesis: Hypothesis
    is_final: bool


class Tell(msgspec.Struct, frozen=True, gc=False):
    """An annotated utterance to publish."""

    utterance: AnnotatedUtterance


class TellAll(msgspec.Struct, frozen=True, gc=False):
    """The whole transcript to publish."""

    ended_by: EndedBy
    utterances: list[AnnotatedUtterance]


Effect = Ask | Tell | TellAll


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What came back for a hypothesis: outputs as JSON, or why there are none; neither, where it was not computed."""

    utterance_id: str
    revision: int
    is_final: bool
    outputs: bytes = b""
    error: str = ""


class Stream:
    """The state of one stream, as it was kept in `head` and `utterances`."""

    def __init__(
        self, head: Head, utterances: list[Utterance] | None = None, *, context_characters: int, max_utterances: int
    ) -> None:
        self.head = head
        # In the order in which they were heard of first.
        self.utterances = {each.utterance_id: each for each in sorted(utterances or [], key=lambda each: each.begun)}
        if head.done:
            self.utterances = {}
        self._context_characters = context_characters
        self._max_utterances = max_utterances
        self._changed: set[str] = set()
        # Of long streams almost all utterances are settled, and nobody must look at them any more.
        self._unsettled = {name for name, each in self.utterances.items() if not each.settled}

    @property
    def stream_id(self) -> str:
        return self.head.feed.stream_id

    def changes(self) -> dict[str, Utterance | None]:
        """Utterances that are new, changed or (None) gone since the last call. The head may have changed always.

        In the order in which they were heard: should only the first of them be kept, what is not is heard again, and
        after all that is, so that it has the same context.
        """
        changed = [(utterance_id, self.utterances.get(utterance_id)) for utterance_id in sorted(self._changed)]
        self._changed = set()
        return dict(sorted(changed, key=lambda each: (-1, 0) if each[1] is None else each[1].heard))

    def hear(self, event: SpeechEvent | EndOfStream, place: Place) -> list[Effect]:
        """An event of the feed, in its order. Raises BadRecord where the stream has no place for it any more."""
        if isinstance(event, EndOfStream):
            return self.end("event")
        rank = event.is_final, event.revision
        utterance = self.utterances.get(event.utterance_id)
        known = utterance.newest.rank if utterance else self.head.known.get(event.utterance_id)
        if known is not None and rank <= known:
            return []  # stale, or a repeat
        if self.head.ended_by is not None:
            message = f"its stream has ended (by {self.head.ended_by}); what is said later is another stream"
            raise BadRecord(Reason.STREAM_ENDED, message)
        if utterance is None and len(self.utterances) >= self._max_utterances:
            message = f"the stream has {len(self.utterances)} utterances, no more are allowed (speech.max_utterances)"
            raise BadRecord(Reason.STREAM_TOO_LONG, message)
        begun = utterance.begun if utterance else place
        heard = Hypothesis(
            event.revision, event.is_final, event.text, event.start_ms, event.end_ms, self._context(begun)
        )
        if utterance is None:
            utterance = Utterance(event.utterance_id, begun, place, heard)
            self._add(utterance)
        utterance.heard = place
        utterance.newest = heard
        return self._ask(utterance)

    def answered(self, answer: Answer) -> list[Effect]:
        """A result, or a request's dead letter."""
        utterance = self.utterances.get(answer.utterance_id)
        asked = self.asked(answer)
        if utterance is None or asked is None:
            return []  # nobody waits for it: a repeat, or of a text that a newer one has replaced
        needed = asked.is_final or self.head.ended_by is not None
        if answer.outputs or (answer.error and needed):
            effects = self._annotate(utterance, Annotation(asked, answer.outputs, answer.error))
            return effects + self._done()
        if needed:
            return []  # of the partial request, while the final one is on its way; or too late: asked again in time
        utterance.waiting = [each for each in utterance.waiting if each.rank != asked.rank]
        self._note(utterance)
        return []

    def asked(self, answer: Answer) -> Hypothesis | None:
        """The hypothesis that an answer is for, while one is waited for. At the end a partial one too is asked as if
        it were final."""
        utterance = self.utterances.get(answer.utterance_id)
        if utterance is None:
            return None
        waiting = [*utterance.waiting]
        if utterance.annotation is not None and utterance.annotation.error and answer.outputs:
            waiting.append(utterance.annotation.hypothesis)  # its dead letter was sent again
        for each in waiting:
            if each.revision == answer.revision and each.is_final <= answer.is_final:
                return each
        return None

    def end(self, ended_by: EndedBy) -> list[Effect]:
        """The stream has ended: what is not annotated yet must be."""
        if self.head.ended_by is not None:
            return []
        self.head.ended_by = ended_by
        effects: list[Effect] = []
        for utterance in self._open():
            if not (utterance.newest.is_final and utterance.waiting):
                effects += self._ask(utterance)
        return effects + self._done()

    def outstanding(self) -> list[Ask]:
        """Requests that must be answered and have not been."""
        return [
            Ask(each.utterance_id, each.newest, is_final=True)
            for each in self._open()
            if each.newest.is_final or self.head.ended_by is not None
        ]

    def _open(self) -> list[Utterance]:
        """Those whose newest text is not annotated, as they were said."""
        return sorted((self.utterances[name] for name in self._unsettled), key=lambda each: each.begun)

    def _add(self, utterance: Utterance) -> None:
        last = next(reversed(self.utterances.values()), None)
        self.utterances[utterance.utterance_id] = utterance
        # After a crash, one that was not kept is heard of again behind later ones that were.
        if last is not None and utterance.begun < last.begun:
            self.utterances = dict(sorted(self.utterances.items(), key=lambda each: each[1].begun))

    def _note(self, utterance: Utterance) -> None:
        """It has changed."""
        self._changed.add(utterance.utterance_id)
        if utterance.settled:
            self._unsettled.discard(utterance.utterance_id)
        else:
            self._unsettled.add(utterance.utterance_id)

    def _context(self, begun: Place) -> str:
        """The end of what was said before an utterance, as far as it is final; it begins with a whole word."""
        most = self._context_characters
        said = ""
        # The newest first: of a long stream only its end is looked at.
        for utterance in reversed(self.utterances.values()) if most else ():
            if utterance.begun < begun and utterance.newest.is_final and utterance.newest.text:
                said = f"{utterance.newest.text.strip()} {said}".strip()
                if len(said) > most:
                    break
        if len(said) <= most:
            return said
        end = said[-most:]
        return end.strip() if said[-most - 1] == " " else end.partition(" ")[2].strip()

    def _ask(self, utterance: Utterance) -> list[Effect]:
        """Have the newest text annotated, unless it is the same as one that is, or that is on its way."""
        newest, annotation = utterance.newest, utterance.annotation
        self._note(utterance)
        if annotation is not None and not annotation.error and newest.reads_as(annotation.hypothesis):
            return self._annotate(utterance, Annotation(newest, annotation.outputs))
        needed = newest.is_final or self.head.ended_by is not None
        if not needed and utterance.waiting and newest.reads_as(utterance.waiting[-1]):
            return []
        waiting = [] if needed else [each for each in utterance.waiting if each.rank != newest.rank]
        utterance.waiting = [*waiting, newest][-_MAX_WAITING:]
        return [Ask(utterance.utterance_id, newest, is_final=needed)]

    def _annotate(self, utterance: Utterance, annotation: Annotation) -> list[Effect]:
        rank = annotation.hypothesis.rank
        utterance.waiting = [each for each in utterance.waiting if each.rank > rank]
        utterance.annotation = annotation
        self._note(utterance)
        effects: list[Effect] = [Tell(_annotated(utterance.utterance_id, annotation))]
        newest = utterance.newest
        if not annotation.error and newest.rank > rank and newest.reads_as(annotation.hypothesis):
            effects += self._annotate(utterance, Annotation(newest, annotation.outputs))
        return effects

    def _done(self) -> list[Effect]:
        """The whole transcript, once, as soon as the last of an ended stream's utterances is annotated."""
        if self.head.ended_by is None or self.head.done or self._unsettled:
            return []
        told = TellAll(self.head.ended_by, [*self._transcript()])
        self.head.done = True
        self.head.known = {name: each.newest.rank for name, each in self.utterances.items()}
        self._changed |= self.utterances.keys()
        self.utterances = {}
        return [told]

    def _transcript(self) -> Iterator[AnnotatedUtterance]:
        """In the order in which they were said, or, where not all say when that was, were first heard of."""
        utterances = [*self.utterances.values()]
        if all(each.newest.start_ms is not None for each in utterances):
            utterances.sort(key=lambda each: each.newest.start_ms or 0)
        for utterance in utterances:
            assert utterance.annotation is not None, "all are settled"
            yield _annotated(utterance.utterance_id, utterance.annotation)


def _annotated(utterance_id: str, annotation: Annotation) -> AnnotatedUtterance:
    heard = annotation.hypothesis
    return AnnotatedUtterance(
        utterance_id=utterance_id,
        revision=heard.revision,
        is_final=heard.is_final,
        text=heard.text,
        start_ms=heard.start_ms,
        end_ms=heard.end_ms,
        outputs=msgspec.Raw(annotation.outputs) if annotation.outputs else msgspec.UNSET,
        error=annotation.error or msgspec.UNSET,
    )
