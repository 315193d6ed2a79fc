"""Whatever is repeated, reordered, superseded or killed: the same transcripts, and no annotation of another text."""

from __future__ import annotations

import json
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.speech.speech_world import Crash, World, answer, end, event, make_settings

STREAMS = ("a", "b")


def some_speech(draw: random.Random) -> list[bytes]:
    """Two streams; some events twice, late, or in another order; utterances that never become final; one text again."""
    said: list[tuple[float, bytes]] = []
    for stream in STREAMS:
        for utterance in range(draw.randint(0, 3)):
            revisions = draw.randint(1, 4)
            is_final = draw.random() < 0.8
            for revision in range(revisions):
                text = f"{stream}{utterance} " + "word " * draw.randint(0, 2)
                value = event(stream, str(utterance), revision, text, final=is_final and revision == revisions - 1)
                for _ in range(draw.choice((1, 1, 1, 2))):
                    said.append((utterance + revision / 5 + draw.random() * draw.choice((0.1, 2)), value))
        said.append((draw.choice((3.5, 9)), end(stream)))
    return [value for _, value in sorted(said, key=lambda each: each[0])]


def unkilled(said: list[bytes], **speech: Any) -> World:
    world = World(make_settings(**speech))
    for value in said:
        world.say(value)
        world.read("speech")
        world.settle()
    return world


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 1 << 32), context_characters=st.sampled_from((0, 12)), atomic=st.booleans())
def test_crashes_change_nothing(seed: int, context_characters: int, atomic: bool) -> None:
    draw = random.Random(seed)
    said = some_speech(draw)
    speech = {"context_characters": context_characters, "silence_ms": 3_600_000, "resend_after_ms": 1_000}
    expected = unkilled(said, **speech)
    lossy = draw.random()

    def superseding(text: str, headers: dict[str, bytes | None]) -> dict[str, Any] | None:
        if headers["penstock.final"] != b"true" and draw.random() < 0.3:
            return {"unanswered": "superseded"} if draw.random() < 0.5 else None
        # A result that was deleted before it was read: asked again.
        return None if draw.random() < 0.1 * lossy else answer(text)

    world = World(make_settings(**speech), answers=superseding, atomic=atomic)
    waiting = [*said]
    while waiting:
        if draw.random() < 0.3:
            world.crash_after = draw.randint(0, 8)
        try:
            match draw.choice(("say", "speech", "result", "dead_letter", "tick")):
                case "say":
                    world.say(waiting.pop(0))
                case "tick":
                    world.tick(0.2)
                case kind:
                    world.read(kind, draw.randint(1, 5))
        except Crash:
            world.start()
    world.start()
    for _ in range(40):
        world.settle()
        world.tick(1_000)

    whole = world.whole()
    if atomic:
        assert len(world.raw) == len({*world.raw}), "nothing is said twice"
    assert {name: {*values} for name, values in whole.items()} == {
        name: {*values} for name, values in expected.whole().items()
    }
    assert whole.keys() == {*STREAMS}
    texts = {(e["stream_id"], e["utterance_id"], e["revision"]): e for e in map(json.loads, said) if "text" in e}
    for record in world.transcripts:
        for utterance in record.get("utterances", [record]):
            heard = texts[record["stream_id"], utterance["utterance_id"], utterance["revision"]]
            assert (utterance["text"], utterance["is_final"]) == (heard["text"], heard["is_final"])
            [label] = utterance["outputs"]["m"]
            assert label["label"].endswith(heard["text"])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_an_utterance_never_goes_back(seed: int) -> None:
    """What consumers see of an utterance gets newer, while nothing crashes."""
    newest: dict[tuple[str, str], tuple[bool, int]] = {}
    for record in unkilled(some_speech(random.Random(seed))).transcripts:
        if record["type"] == "utterance":
            place, rank = (record["stream_id"], record["utterance_id"]), (record["is_final"], record["revision"])
            assert rank > newest.get(place, (False, -1))
            newest[place] = rank
