"""The encode stage's queue: what is revised or too late is not computed, what is final always is, lanes share."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.packs import PackedText, token_pack
from schemas.urgency import Revision, Unanswered, Urgency
from stages.encode import Encoded
from stages.microbatcher import MicroBatcher
from stages.pack_in_progress import PackInProgress
from stages.window_queue import Window, WindowQueue


@dataclass
class Queue:
    """A queue, and what has come of its texts, by id."""

    size: int = 1
    weights: dict[str, int] = field(default_factory=lambda: {"default": 1})
    packs: int = 0
    computed: list[str] = field(default_factory=list)
    closed: Counter[Unanswered] = field(default_factory=Counter)
    left: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        batcher: MicroBatcher[Window[int]] = MicroBatcher(
            max_batch_size=self.size,
            max_batch_tokens=64,
            max_queue_delay_ms=0,
            knee_tokens=0,
            weights=[*self.weights.values()],
        )
        self.queue = WindowQueue(batcher, on_closed=self.on_closed, lanes=[*self.weights])

    def on_closed(self, why: Unanswered) -> None:
        self.closed[why] += 1

    def add(
        self,
        *texts: tuple[str, Urgency | None],
        key: bytes = b"s",
        windows: int = 1,
        tokens: int = 1,
        topic: str = "t",
    ) -> None:
        packed = [
            PackedText(id, key, [], offset, windows, windows * tokens, False, urgency=urgency)
            for offset, (id, urgency) in enumerate(texts)
        ]
        chunks = [np.ones(tokens, np.int32) for _ in packed for _ in range(windows)]
        pack = PackInProgress(token_pack(topic=topic, partition=0, texts=packed, chunks=chunks), self.packs)
        self.packs += 1
        self.finish(self.queue.add(pack, 0.0))

    def compute(self, batches: int = 1, *, at_ms: float = 0.0) -> list[str]:
        """The texts of the next batches."""
        texts: list[str] = []
        for _ in range(batches):
            batch, complete = self.queue.take(0.0, at_ms)
            self.finish(complete)
            encoded = Encoded({"v": np.ones((len(batch.items), 1), np.float32)}, {}, 0, 0)
            texts += [pack.pack.texts[pack.text_of(place)].id for pack, place in batch.items]
            self.finish([pack for index, (pack, place) in enumerate(batch.items) if pack.put(place, encoded, index)])
        self.computed += texts
        return texts

    def drain(self, *, at_ms: float = 0.0) -> None:
        while len(self.queue):
            self.compute(at_ms=at_ms)

    def finish(self, packs: list[PackInProgress[int]]) -> None:
        for pack in packs:
            assert pack.complete
            encodings, lost = pack.encodings()
            assert not lost
            if encodings is not None:
                assert [text.offset for text in encodings.closed] == sorted(text.offset for text in encodings.closed)
                left = {text.id: "answered" for text in encodings.texts} | {
                    text.id: text.why for text in encodings.closed
                }
                assert not left.keys() & self.left.keys(), "a text leaves once"
                self.left |= left


def revision(number: int, *, final: bool = False, utterance: str = "u") -> Urgency:
    return Urgency(revision=Revision(utterance, number, final))


def test_a_newer_revision_takes_the_place_of_an_older_one_and_not_the_end_of_the_queue() -> None:
    queue = Queue()
    queue.add(("old", revision(1)))
    queue.add(("other", None))
    queue.add(("new", revision(2)))
    queue.drain()
    assert queue.computed == ["new", "other"]
    assert queue.left == {"old": "superseded", "new": "answered", "other": "answered"}
    assert queue.closed == {"superseded": 1}


def test_what_is_revised_faster_than_the_queue_moves_is_computed_in_its_turn() -> None:
    queue = Queue()
    for number in range(100):
        queue.add((f"a{number}", revision(number, utterance="a")))
        queue.add((f"b{number}", revision(number, utterance="b")))
        if number % 10 == 9:
            queue.compute()
    assert queue.computed == [f"{'ab'[turn % 2]}{turn * 10 + 9}" for turn in range(10)]


def test_a_final_is_never_superseded_and_supersedes_what_came_before_it() -> None:
    queue = Queue()
    queue.add(("partial", revision(1)), ("final", revision(2, final=True)), ("later", revision(3)))
    queue.add(("late", revision(1)), ("again", revision(2, final=True)))
    queue.drain()
    assert queue.left == {
        "partial": "superseded",
        "final": "answered",
        "later": "answered",
        "late": "superseded",
        "again": "answered",
    }


def test_an_older_revision_that_comes_late_is_superseded_by_what_waits() -> None:
    queue = Queue()
    queue.add(("new", revision(5)))
    queue.add(("old", revision(4)))
    queue.drain()
    assert queue.left == {"new": "answered", "old": "superseded"}


def test_of_other_topics_and_lanes_nothing_is_superseded() -> None:
    queue = Queue(weights={"interactive": 1, "bulk": 1})
    queue.add(("a", revision(1)))
    queue.add(("b", revision(7)), topic="t.bulk")
    queue.add(("c", Urgency(revision=Revision("u", 8, False), lane="bulk")))
    queue.drain()
    assert sorted(queue.computed) == ["a", "b", "c"]


def test_of_other_keys_and_utterances_nothing_is_superseded() -> None:
    queue = Queue()
    queue.add(("a", revision(1)), key=b"one")
    queue.add(("b", revision(2)), key=b"two")
    queue.add(("c", revision(2, utterance="v")), key=b"one")
    queue.drain()
    assert queue.computed == ["a", "b", "c"]


def test_what_is_being_computed_stays_and_the_newer_one_waits() -> None:
    queue = Queue()
    queue.add(("old", revision(1)), windows=2)
    assert queue.compute() == ["old"]  # the first of its two windows
    queue.add(("new", revision(2)), windows=2)
    queue.drain()
    assert queue.left == {"old": "answered", "new": "answered"}


def test_a_revision_of_more_windows_or_fewer_is_whole() -> None:
    queue = Queue(size=3)
    queue.add(("long", revision(1)), windows=3)
    queue.add(("short", revision(2)))
    queue.add(("longer", revision(3)), windows=5)
    assert len(queue.queue) == 5
    queue.drain()
    assert queue.computed == ["longer"] * 5
    assert queue.left == {"long": "superseded", "short": "superseded", "longer": "answered"}


def test_what_has_expired_when_its_turn_comes_is_not_computed() -> None:
    queue = Queue(size=4)
    queue.add(("early", Urgency(expires_ms=100)), ("never", None), ("late", Urgency(expires_ms=300)), windows=2)
    queue.compute(2, at_ms=200)
    assert queue.computed == ["never", "never", "late", "late"]
    assert queue.left == {"early": "expired", "never": "answered", "late": "answered"}
    assert queue.closed == {"expired": 1}


def test_a_batch_of_which_all_has_expired_is_empty() -> None:
    queue = Queue(size=4)
    queue.add(("a", Urgency(expires_ms=100)), ("b", revision(1)), windows=2)
    assert queue.compute(at_ms=100) == ["b", "b"]
    queue.add(("c", Urgency(expires_ms=100)), windows=2)
    assert queue.compute(at_ms=100) == []
    assert queue.left == {"a": "expired", "b": "answered", "c": "expired"}


def test_a_pack_of_nothing_but_closed_texts_leaves_at_once() -> None:
    queue = Queue()
    pack = token_pack(topic="t", partition=0, texts=[], chunks=[])
    progress = PackInProgress(pack, 0)
    assert queue.queue.add(progress, 0.0) == [progress]


@pytest.mark.parametrize(("weights", "share"), [((8, 1), 8 / 9), ((1, 1), 1 / 2), ((1, 3), 1 / 4)])
def test_lanes_share_by_weight_while_all_wait(weights: tuple[int, int], share: float) -> None:
    queue = Queue(size=5, weights=dict(zip(("interactive", "bulk"), weights, strict=True)))
    queue.add(*[(f"b{number}", Urgency(lane="bulk")) for number in range(400)], tokens=3)
    queue.add(*[(f"i{number}", None) for number in range(400)], tokens=7)
    taken = queue.compute(40)
    tokens = Counter(id[0] for id in taken)
    interactive, bulk = 7 * tokens["i"], 3 * tokens["b"]
    assert abs(interactive / (interactive + bulk) - share) < 0.03
    queue.drain()
    for lane in "ib":
        assert [id for id in queue.computed if id[0] == lane] == [f"{lane}{number}" for number in range(400)]


def test_what_comes_into_a_lane_that_was_empty_is_next_and_has_saved_nothing_up() -> None:
    queue = Queue(weights={"interactive": 8, "bulk": 1})
    queue.add(*[(f"b{number}", Urgency(lane="bulk")) for number in range(50)])
    queue.compute(20)
    queue.add(("i", None))
    assert "i" in queue.compute(2)
    queue.add(*[(f"j{number}", None) for number in range(40)])
    assert sum(id.startswith("b") for id in queue.compute(18)) in (1, 2)


kinds = st.one_of(
    st.none(),
    st.builds(
        Urgency,
        expires_ms=st.none() | st.integers(0, 4),
        revision=st.none() | st.builds(Revision, st.sampled_from("uv"), st.integers(0, 5), st.booleans()),
        lane=st.sampled_from([None, "bulk", "nobody's"]),
    ),
)


@given(
    steps=st.lists(st.lists(kinds, min_size=1, max_size=4) | st.integers(1, 3), max_size=20),
    size=st.integers(1, 4),
    windows=st.integers(1, 3),
)
@settings(deadline=None, max_examples=200)
def test_every_text_leaves_once_and_only_what_may_be_is_left_out(
    steps: list[list[Urgency | None] | int], size: int, windows: int
) -> None:
    queue = Queue(size=size, weights={"default": 2, "bulk": 1})
    added: dict[str, Urgency | None] = {}
    now_ms = 0
    for step in steps:
        if isinstance(step, int):
            queue.compute(step, at_ms=now_ms)
            now_ms += 1
        else:
            texts = [(str(len(added) + number), urgency) for number, urgency in enumerate(step)]
            added |= dict(texts)
            queue.add(*texts, windows=windows)
    queue.drain(at_ms=now_ms)
    assert queue.left.keys() == added.keys()
    assert queue.queue.next_deadline_ms() is None
    for id, how in queue.left.items():
        urgency = added[id]
        if how == "expired":
            assert urgency is not None
            assert urgency.expired(now_ms)
            assert queue.computed.count(id) < windows
        elif how == "superseded":
            assert urgency is not None
            assert urgency.revision is not None
            assert not urgency.revision.final
            assert id not in queue.computed
            assert any(
                other is not None
                and other.revision is not None
                and other.revision.utterance == urgency.revision.utterance
                and other.revision.number > urgency.revision.number
                for other in added.values()
            )
        else:
            assert queue.computed.count(id) == windows
