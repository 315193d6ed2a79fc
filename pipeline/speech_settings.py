"""The ensemble file's section `speech`: a recognizer's feed, and the annotated transcripts made of it."""

from __future__ import annotations

from pydantic import Field

from pipeline.ensemble_file import Section
from pipeline.names import TopicName
from schemas.speech_feeds import FeedName


class SpeechSettings(Section):
    """Of `penstock transcripts`, which `penstock up` starts beside the stages where this section is there. The
    ensemble's tasks must read texts."""

    feed: FeedName = "penstock"
    """What the feed's topic carries: Penstock's own speech events, or a recognizer's messages as they came, keyed by
    stream. docs/speech.md has the fields."""

    topic: TopicName | None = None
    """Default `<name>.speech`: what recognizers say."""

    transcripts: TopicName | None = None
    """Default `<name>.transcripts`: what consumers read."""

    silence_ms: int = Field(default=60_000, ge=1_000, le=86_400_000)
    """A stream of which nothing was heard for so long has ended, without an end event too. After a restart the silence
    begins anew."""

    remember_ms: int = Field(default=600_000, ge=1_000, le=86_400_000)
    """How long an ended stream is remembered: what comes for it until then is a repeat and dropped, or late and a dead
    letter (`stream_ended`). After that the id is free for another stream."""

    context_characters: int = Field(default=0, ge=0, le=10_000)
    """How much of what was said before an utterance the models read with it, at most, in characters. Helps with short
    utterances; costs the time of reading it, for each revision."""

    partial_budget_ms: int | None = Field(default=None, ge=1, le=600_000)
    """After how long nobody wants a partial hypothesis answered any more (`ce_expirytime`). Default: never. What is
    final is always answered."""

    max_text_bytes: int = Field(default=65_536, ge=1, le=1 << 20)
    """Longer hypotheses are dead letters: an hour of speech is as long. requests.max_text_bytes bounds it too."""

    max_utterances: int = Field(default=10_000, ge=1, le=100_000)
    """Of one stream, all of which is kept until it ends; more are dead letters. Ten hours of speech are as many."""

    decimals: int = Field(default=4, ge=0, le=9)
    """To which numbers in transcripts are rounded. The last digits depend on what else was in the batch; rounded, a
    transcript that is made twice is the same twice."""

    resend_after_ms: int = Field(default=30_000, ge=1_000, le=3_600_000)
    """What must be answered and was not is asked again after so long, then after twice as long, and so on."""
