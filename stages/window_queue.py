"""Windows of packs as they wait for an engine: by lane, in order, and only as long as somebody wants the answer.

A text that is a revision of an utterance takes the place of an older one that waits, if that was not final: the place,
and not the end of the queue, since what is revised faster than the queue moves would never be computed. What has
expired when its turn comes is let go. Both are closed: they leave with their pack, without numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple

from schemas.packs import PackedText
from schemas.urgency import Revision, Unanswered
from stages.microbatcher import MicroBatch, MicroBatcher, Place
from stages.pack_in_progress import Owner, PackInProgress

OnClosed = Callable[[Unanswered], None]
# Topic, partition, lane, key, name: what comes another way is of another stream.
_Utterance = tuple[str, int, int, bytes | None, str]


class Window(NamedTuple, Generic[Owner]):
    """One window of a pack, as it waits."""

    pack: PackInProgress[Owner]
    place: int


class _Waiting(NamedTuple, Generic[Owner]):
    """A revision none of whose windows has been taken."""

    place: Place[Window[Owner]]
    pack: PackInProgress[Owner]
    text: int
    revision: Revision


class WindowQueue(Generic[Owner]):
    """`lanes` names those of the micro-batcher, in its order: the first is for who names none. `on_closed` hears of
    each text that is closed. Not thread-safe."""

    def __init__(
        self, batcher: MicroBatcher[Window[Owner]], *, on_closed: OnClosed, lanes: Sequence[str] = ("default",)
    ) -> None:
        self._batcher = batcher
        self._on_closed = on_closed
        self._lanes = {name: number for number, name in enumerate(lanes)}
        self._waiting: dict[_Utterance, _Waiting[Owner]] = {}

    def __len__(self) -> int:
        return len(self._batcher)

    def due(self, now_ms: float) -> bool:
        """Whether a free instance should take a batch now."""
        return self._batcher.due(now_ms)

    def next_deadline_ms(self) -> float | None:
        """When the queue is due if nothing more arrives; None while it is empty."""
        return self._batcher.next_deadline_ms()

    def add(self, pack: PackInProgress[Owner], now_ms: float) -> list[PackInProgress[Owner]]:
        """Queue a pack's windows; the packs that nothing is missing of any more, as all that was missing was
        superseded."""
        if not pack.urgent:
            for place, window in enumerate(pack.windows):
                self._batcher.add(Window(pack, place), len(window), now_ms)
            return [] if pack.windows else [pack]
        touched: list[PackInProgress[Owner]] = [pack]
        first = 0
        for number, text in enumerate(pack.pack.texts):
            windows = [(Window(pack, place), len(pack.windows[place])) for place in range(first, first + text.chunks)]
            first += text.chunks
            touched.extend(self._add_text(pack, number, text, windows, now_ms))
        return [each for each in dict.fromkeys(touched) if each.complete]

    def take(self, now_ms: float, wall_ms: float) -> tuple[MicroBatch[Window[Owner]], list[PackInProgress[Owner]]]:
        """The next batch, and the packs that nothing is missing of any more. `wall_ms`, in milliseconds since 1970, is
        what deadlines are compared with. Where all that was taken had expired the batch is empty."""
        batch = self._batcher.take(now_ms)
        if not any(window.pack.urgent for window in batch.items):
            return batch, []
        items: list[Window[Owner]] = []
        waited_ms: list[float] = []
        complete: list[PackInProgress[Owner]] = []
        for window, waited in zip(batch.items, batch.waited_ms, strict=True):
            if not window.pack.urgent or self._is_wanted(window, wall_ms):
                items.append(window)
                waited_ms.append(waited)
            elif window.pack.skip():
                complete.append(window.pack)
        tokens = sum(len(pack.windows[place]) for pack, place in items)
        return MicroBatch(items, waited_ms, tokens), complete

    def _add_text(
        self,
        pack: PackInProgress[Owner],
        number: int,
        text: PackedText,
        windows: Sequence[tuple[Window[Owner], int]],
        now_ms: float,
    ) -> list[PackInProgress[Owner]]:
        """The packs that lost a text by it."""
        urgency = text.urgency
        lane = self._lane(text)
        if urgency is None or urgency.revision is None:
            self._batcher.add_together(windows, now_ms, lane=lane)
            return []
        revision = urgency.revision
        utterance = self._utterance(pack, text, revision)
        older = self._waiting.get(utterance)
        if older is not None and older.revision.number > revision.number and not revision.final:
            self._supersede(pack, number, len(windows))
            return [pack]
        if older is not None and older.revision.number < revision.number and not older.revision.final:
            replaced = self._batcher.replace(older.place, windows, now_ms)
            self._waiting[utterance] = _Waiting(older.place, pack, number, revision)
            self._supersede(older.pack, older.text, len(replaced))
            return [older.pack]
        place = self._batcher.add_together(windows, now_ms, lane=lane)
        self._waiting[utterance] = _Waiting(place, pack, number, revision)
        return []

    def _lane(self, text: PackedText) -> int:
        named = text.urgency.lane if text.urgency is not None else None
        return self._lanes.get(named, 0) if named is not None else 0

    def _utterance(self, pack: PackInProgress[Owner], text: PackedText, revision: Revision) -> _Utterance:
        return pack.pack.topic, pack.pack.partition, self._lane(text), text.key, revision.utterance

    def _supersede(self, pack: PackInProgress[Owner], text: int, windows: int) -> None:
        pack.close(text, "superseded")
        pack.skip(windows)
        self._on_closed("superseded")

    def _is_wanted(self, window: Window[Owner], wall_ms: float) -> bool:
        """Of one that was taken."""
        pack = window.pack
        number = pack.text_of(window.place)
        text = pack.pack.texts[number]
        if text.urgency is None:
            return True
        if text.urgency.revision is not None:
            utterance = self._utterance(pack, text, text.urgency.revision)
            waiting = self._waiting.get(utterance)
            if waiting is not None and waiting.pack is pack and waiting.text == number:
                del self._waiting[utterance]
        if pack.closed(number):
            return False
        if text.urgency.expired(wall_ms):
            pack.close(number, "expired")
            self._on_closed("expired")
            return False
        return True
