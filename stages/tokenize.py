"""Tokenize: requests in, packs of tokens out."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.errors import BadRecord, Reason
from schemas.packs import ClosedText, PackedText, TokenPack, token_pack
from schemas.parameters import KNOWN_PARAMETERS, check_parameters, known_names
from schemas.records import InputRecord, Source
from schemas.requests import (
    ONE_TEXT_TASKS,
    TOKEN_TASKS,
    Request,
    RequestFormat,
    RequestKind,
    decode_request,
    request_kind,
)
from schemas.urgency import LANE, UTTERANCE, Urgency, urgency_of
from stages.blame import answer_apart
from stages.mask_tokens import MaskToken
from stages.pairs import Truncation
from stages.question_tokenizer import QuestionTokenizer
from stages.text_tokenizer import TextTokenizer, TokenizedText
from stages.token_details import bare_details

# What a tokenizer that fails on a text is tried with, to tell it from one that fails on all.
_HARMLESS = "a"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that can't be answered, and why."""

    record: InputRecord
    error: BadRecord


class _Good(NamedTuple):
    """A record that can be read, and what its headers say of its time."""

    record: InputRecord
    request: Request
    urgency: Urgency | None


class TokenizeStage:
    """Request records of one partition -> a pack of tokens, and the records that can't be answered."""

    def __init__(
        self,
        tokenizer: TextTokenizer | QuestionTokenizer,
        *,
        request_format: RequestFormat,
        max_text_bytes: int,
        tasks: Collection[str] = ("sentence-embedding",),
        known_parameters: Mapping[str, Collection[str]] | None = None,
        most_tokens: int = sys.maxsize,
        most_masks: int = sys.maxsize,
        deadline_ms: int | None = None,
        lanes: Collection[str] = (),
        lane_topics: Mapping[str, str] | None = None,
    ) -> None:
        """`tasks` are those of the ensemble's models: what requests look like. `known_parameters` are those that they
        may have, by task; by default those of `tasks`. A text of more than `most_tokens` would have a result that is
        too large for Kafka, one of more than `most_masks` encodings that are. A request has expired `deadline_ms` after
        it was written. `lanes` are those that its headers may name, `lane_topics` the lanes of topics whose requests
        name none. Raises TokenizerError where a task wants masks, and the tokenizer has none. Questions have
        a tokenizer of their own."""
        self.tokenizer = tokenizer
        self._format: RequestFormat = request_format
        self._max_text_bytes = max_text_bytes
        if known_parameters is None:
            known_parameters = {task: KNOWN_PARAMETERS.get(task, ()) for task in tasks}
        self._known_parameters = known_parameters
        self._parameter_names = known_names(known_parameters)
        self._most_tokens = most_tokens
        self._deadline_ms = deadline_ms
        self._lanes = lanes
        self._lane_topics = lane_topics or {}
        self._most_masks = most_masks
        self._mask = tokenizer.mask() if "fill-mask" in tasks and isinstance(tokenizer, TextTokenizer) else None
        self._of_one_text = sorted(ONE_TEXT_TASKS.intersection(tasks))
        self.kind: RequestKind = request_kind(tasks)
        self._details = not TOKEN_TASKS.isdisjoint(tasks)
        self._names_words = "token-classification" in tasks
        # As transformers' pipeline cuts.
        self._truncation: Truncation = "only_first" if self.kind == "zero-shot" else "longest_first"

    @property
    def mask_word(self) -> str | None:
        """What a text must have one of, where a task fills masks."""
        return None if self._mask is None else self._mask.word

    def __call__(
        self, groups: Sequence[Sequence[InputRecord]], *, now_ms: float | None = None
    ) -> list[tuple[TokenPack | None, list[Rejected]]]:
        """One pack a group, None where none of the group's records can be answered; both in the records' order.

        `now_ms` are milliseconds since 1970: what has expired by then is not read; without it nothing expires. Each
        group comes from one partition. All groups go to the tokenizer together: it is the larger batch that keeps its
        threads busy. Raises StageError where the tokenizer fails whatever the text.
        """
        requests: list[list[_Good]] = []
        rejected: list[list[Rejected]] = []
        closed: list[list[ClosedText]] = []
        for group in groups:
            good, bad = self._decode(group)
            in_time, late = _by_deadline(good, now_ms)
            requests.append(in_time)
            closed.append(late)
            rejected.append(bad)
        flat = [each.request for good in requests for each in good]
        tokenized = iter(
            answer_apart(
                flat,
                self._tokenized,
                harmless=self._try_harmless,
                text_of=lambda request: str(request.inputs),
            )
        )
        packs: list[tuple[TokenPack | None, list[Rejected]]] = []
        for group, good, bad, late in zip(groups, requests, rejected, closed, strict=True):
            found = [next(tokenized) for _ in good]
            pack = _pack(good, found, bad, late, with_details=self._details, source=group[0].source)
            packs.append((pack, bad))
            bad.sort(key=lambda rejected: rejected.record.source.offset)
        assert next(tokenized, None) is None, "as many tokenized texts as requests"
        return packs

    def _decode(self, group: Sequence[InputRecord]) -> tuple[list[_Good], list[Rejected]]:
        good: list[_Good] = []
        bad: list[Rejected] = []
        for record in group:
            try:
                request = decode_request(
                    record,
                    format=self._format,
                    max_text_bytes=self._max_text_bytes,
                    kind=self.kind,
                    known_parameters=self._parameter_names,
                )
                if request.parameters is not None:
                    check_parameters(request.parameters, self._known_parameters)
                if self._of_one_text and not isinstance(request.inputs[0], str):
                    read = "reads" if len(self._of_one_text) == 1 else "read"
                    message = f"text_pair: {' and '.join(self._of_one_text)} {read} one text"
                    raise BadRecord(Reason.BAD_REQUEST, message)
                if self._names_words:
                    request = _with_text(request)
                urgency = self._urgency(record)
            except BadRecord as err:
                bad.append(Rejected(record, err))
            else:
                good.append(_Good(record, request, urgency))
        return good, bad

    def _urgency(self, record: InputRecord) -> Urgency | None:
        urgency = urgency_of(record.headers, written_ms=record.written_ms, deadline_ms=self._deadline_ms)
        if urgency is not None and urgency.revision is not None and record.key is None:
            message = f"{UTTERANCE}: the record has no key, which says whose utterance it is"
            raise BadRecord(Reason.BAD_HEADERS, message)
        lane = urgency.lane if urgency is not None else None
        if lane is not None and self._lanes and lane not in self._lanes:
            raise BadRecord(Reason.BAD_HEADERS, f"{LANE}: {lane[:40]!r}; allowed: {', '.join(self._lanes)}")
        if lane is None and (of_topic := self._lane_topics.get(record.source.topic)) is not None:
            return msgspec.structs.replace(urgency or Urgency(), lane=of_topic)
        return urgency

    def _tokenized(self, requests: Sequence[Request]) -> list[TokenizedText | BadRecord]:
        """One entry a request: a text's windows, the window of each of its pairs, or those of a question."""
        if isinstance(self.tokenizer, QuestionTokenizer):
            return self.tokenizer(requests)
        texts = [text for request in requests for text in request.inputs if isinstance(text, str)]
        pairs = [pair for request in requests for pair in request.inputs if isinstance(pair, tuple)]
        tokenizer = self.tokenizer.with_details if self._details else self.tokenizer
        found = iter(tokenizer(texts)) if texts else iter(())
        of_pairs = iter(self.tokenizer.pairs(pairs, truncation=self._truncation)) if pairs else iter(())
        return [
            self._bounded(_together([next(found if isinstance(each, str) else of_pairs) for each in request.inputs]))
            for request in requests
        ]

    def _try_harmless(self) -> None:
        if isinstance(self.tokenizer, QuestionTokenizer):
            self.tokenizer.try_text(_HARMLESS)
        else:
            self.tokenizer([_HARMLESS])

    def _bounded(self, outcome: TokenizedText | BadRecord) -> TokenizedText | BadRecord:
        if isinstance(outcome, BadRecord):
            return outcome
        if self._mask is not None and (refused := self._refused(outcome, self._mask)):
            return refused
        if len(outcome.windows) == 1:
            return outcome
        tokens = sum(map(len, outcome.windows))
        if tokens <= self._most_tokens:
            return outcome
        return BadRecord(
            Reason.RESULT_TOO_LARGE,
            f"{tokens} tokens, of which feature-extraction answers a vector each; allowed here: {self._most_tokens}",
        )

    def _refused(self, outcome: TokenizedText, mask: MaskToken) -> BadRecord | None:
        """Why its masks can't be filled, if they can't."""
        masks = sum(int(np.count_nonzero(window == mask.number)) for window in outcome.windows)
        if not masks:
            where = (
                f" in its first {len(outcome.windows[0])} tokens, the others are cut off" if outcome.truncated else ""
            )
            return BadRecord(
                Reason.BAD_REQUEST, f"text: no {mask.word}{where}: fill-mask wants one where a token is to be found"
            )
        if masks > self._most_masks:
            return BadRecord(Reason.RESULT_TOO_LARGE, f"{masks} {mask.word}; allowed here: {self._most_masks}")
        return None


def _by_deadline(good: list[_Good], now_ms: float | None) -> tuple[list[_Good], list[ClosedText]]:
    """What is in time, and what has expired."""
    in_time: list[_Good] = []
    late: list[ClosedText] = []
    for each in good:
        request, urgency = each.request, each.urgency
        if urgency is None or now_ms is None or not urgency.expired(now_ms):
            in_time.append(each)
        else:
            late.append(ClosedText(request.id, request.key, request.headers, request.source.offset, "expired"))
    return in_time, late


def _with_text(request: Request) -> Request:
    """Whose text travels along: entities are told in its words."""
    [text] = request.inputs
    assert isinstance(text, str), "a pair is refused"
    return msgspec.structs.replace(request, echo=[text])


def _together(outcomes: list[TokenizedText | BadRecord]) -> TokenizedText | BadRecord:
    """Of one request. One of its pairs that can't be read is all of it."""
    if len(outcomes) == 1:
        return outcomes[0]
    read: list[TokenizedText] = []
    for outcome in outcomes:
        if isinstance(outcome, BadRecord):
            return outcome
        read.append(outcome)
    windows = [window for each in read for window in each.windows]
    return TokenizedText(windows, truncated=any(each.truncated for each in read))


def _pack(
    good: list[_Good],
    tokenized: list[TokenizedText | BadRecord],
    rejected: list[Rejected],
    closed: list[ClosedText],
    *,
    with_details: bool,
    source: Source,
) -> TokenPack | None:
    texts: list[PackedText] = []
    chunks: list[NDArray[np.int32]] = []
    details: list[NDArray[np.int32]] = []
    for (record, request, urgency), outcome in zip(good, tokenized, strict=True):
        if isinstance(outcome, BadRecord):
            rejected.append(Rejected(record, outcome))
            continue
        chunks.extend(outcome.windows)
        if with_details:
            details.extend(outcome.details or map(bare_details, outcome.windows))
        texts.append(
            PackedText(
                id=request.id,
                key=request.key,
                headers=request.headers,
                offset=request.source.offset,
                chunks=len(outcome.windows),
                tokens=sum(map(len, outcome.windows)),
                truncated=outcome.truncated,
                parameters=request.parameters,
                echo=request.echo,
                urgency=urgency,
            )
        )
    if not texts and not closed:
        return None
    return token_pack(
        topic=source.topic,
        partition=source.partition,
        texts=texts,
        chunks=chunks,
        details=details,
        closed=closed,
    )
