"""Tokenize: texts in, windows of token ids out.

The tokenizer is whatever `transformers.AutoTokenizer` finds in the model's folder; its Rust batch call does the
work and releases the GIL. Fixed padding and truncation in `tokenizer.json` (many sentence-transformers carry 128)
are turned off: rows are packed, and a long text is never cut silently.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.errors import BadRecord, Reason
from schemas.packs import PackedText, TokenPack, token_pack
from schemas.parameters import check_parameters
from schemas.records import InputRecord
from schemas.requests import (
    TOKEN_TASKS,
    Request,
    RequestFormat,
    RequestKind,
    TextInput,
    decode_request,
    request_kind,
)
from stages.blame import answer_apart
from stages.errors import TokenizerError
from stages.pairs import PairTemplate, Truncation
from stages.token_details import TokenDetails, bare_details
from stages.tokenizer_files import load_tokenizer
from stages.word_cache import Windows, WordCache

LongTexts = Literal["stride", "truncate", "reject"]

# What a tokenizer that fails on a text is tried with, to tell it from one that fails on all.
_HARMLESS = "a"

# Rust keeps 200 to 400 bytes a token until a call returns: 430 MB for a megabyte of one-letter words, 3 GB for sixteen.
# The 1,024 sentences that a worker tokenizes at once (180,000 characters) still go in one call.
_MAX_CALL_CHARACTERS = 256 * 1024


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that can't be answered, and why."""

    record: InputRecord
    error: BadRecord


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """`windows` are int32 (tokens,), special tokens included, each at most the tokenizer's `max_length`. Tokens of a
    pair's second text are SECOND_TEXT higher. `details` are each window's, (tokens, 4), where they were asked for."""

    windows: list[NDArray[np.int32]]
    truncated: bool
    details: list[NDArray[np.int32]] | None = None


class TextTokenizer:
    """A model's tokenizer with one policy for texts longer than `max_length` tokens.

    `stride` cuts them into windows that share `stride` tokens, `truncate` keeps the first window and says so,
    `reject` raises BadRecord for that text.
    """

    def __init__(self, folder: Path, *, max_length: int, long_texts: LongTexts, stride: int) -> None:
        tokenizer = load_tokenizer(folder)
        self.max_length = min(max_length, tokenizer.model_max_length)
        self._long_texts = long_texts
        backend = tokenizer.backend_tokenizer
        special = backend.num_special_tokens_to_add(is_pair=False)
        stride = stride if long_texts == "stride" else 0
        if stride >= self.max_length - special:
            raise TokenizerError(
                f"tokenizer.stride: {stride} leaves no room in windows of {self.max_length} tokens, of which "
                f"{special} are special; allowed: 0 to {self.max_length - special - 1}"
            )
        backend.no_padding()
        backend.no_truncation()
        try:
            self._pairs: PairTemplate | None = PairTemplate(backend)
        except ValueError:
            self._pairs = None
        backend.enable_truncation(self.max_length, stride=stride)
        self._backend = WordCache(backend)
        self._details = TokenDetails(backend, stride=stride)

    def __call__(self, texts: Sequence[str]) -> list[TokenizedText | BadRecord]:
        """One entry a text, in order."""
        outcomes: list[TokenizedText | BadRecord] = []
        for call in _calls(texts):
            outcomes.extend(map(self._outcome, self._backend.windows(call)))
        return outcomes

    def with_details(self, texts: Sequence[str]) -> list[TokenizedText | BadRecord]:
        """The same with each token's details."""
        outcomes: list[TokenizedText | BadRecord] = []
        for call in _calls(texts):
            for details in self._details.of_windows(call):
                outcome = self._outcome([each[:, 0] for each in details])
                if isinstance(outcome, TokenizedText):
                    outcome = replace(outcome, details=details[: len(outcome.windows)])
                outcomes.append(outcome)
        return outcomes

    def pairs(
        self, pairs: Sequence[tuple[str, str]], *, truncation: Truncation = "longest_first"
    ) -> list[TokenizedText | BadRecord]:
        """One entry a pair, in order. A pair has one window: what it can't hold is cut off, unless long texts are
        rejected."""
        if self._pairs is None or self.max_length <= self._pairs.special:
            return [BadRecord(Reason.BAD_REQUEST, "text_pair: this ensemble's tokenizer reads no pairs")] * len(pairs)
        ids = [ids for call in _calls([text for pair in pairs for text in pair]) for ids in self._backend.ids(call)]
        outcomes: list[TokenizedText | BadRecord] = []
        for first, second in zip(ids[::2], ids[1::2], strict=True):
            window, truncated = self._pairs.window(first, second, max_length=self.max_length, truncation=truncation)
            if truncated and self._long_texts == "reject":
                outcomes.append(self._too_long("pair"))
            else:
                outcomes.append(TokenizedText([window], truncated=truncated))
        return outcomes

    def _outcome(self, windows: Windows) -> TokenizedText | BadRecord:
        if not len(windows[0]):
            # Only without special tokens, which no published model of the BERT family does.
            return BadRecord(Reason.BAD_REQUEST, "the tokenizer makes no token of the text")
        truncated = False
        if len(windows) > 1:
            if self._long_texts == "reject":
                return self._too_long("text")
            if self._long_texts == "truncate":
                windows, truncated = windows[:1], True
        return TokenizedText(windows, truncated=truncated)

    def _too_long(self, what: str) -> BadRecord:
        return BadRecord(
            Reason.TEXT_TOO_LONG,
            f"the {what} has more than {self.max_length} tokens and the ensemble rejects long texts",
        )


def _calls(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts in order, in lists of at most _MAX_CALL_CHARACTERS; a longer text is alone."""
    call: list[str] = []
    characters = 0
    for text in texts:
        if call and characters + len(text) > _MAX_CALL_CHARACTERS:
            yield call
            call, characters = [], 0
        call.append(text)
        characters += len(text)
    if call:
        yield call


class TokenizeStage:
    """Request records of one partition -> a pack of tokens, and the records that can't be answered."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        *,
        request_format: RequestFormat,
        max_text_bytes: int,
        tasks: Collection[str] = ("sentence-embedding",),
    ) -> None:
        """`tasks` are those of the ensemble's models: what requests look like, and which parameters they may have."""
        self._tokenizer = tokenizer
        self._format: RequestFormat = request_format
        self._max_text_bytes = max_text_bytes
        self._tasks = frozenset(tasks)
        self.kind: RequestKind = request_kind(tasks)
        self._details = not TOKEN_TASKS.isdisjoint(tasks)
        self._names_words = "token-classification" in tasks
        # As transformers' pipeline cuts.
        self._truncation: Truncation = "only_first" if self.kind == "zero-shot" else "longest_first"

    def __call__(self, groups: Sequence[Sequence[InputRecord]]) -> list[tuple[TokenPack | None, list[Rejected]]]:
        """One pack a group, None where none of the group's records can be answered; both in the records' order.

        Each group comes from one partition. All groups go to the tokenizer together: it is the larger batch
        that keeps its threads busy. Raises StageError where the tokenizer fails whatever the text.
        """
        requests: list[list[tuple[InputRecord, Request]]] = []
        rejected: list[list[Rejected]] = []
        for group in groups:
            good, bad = self._decode(group)
            requests.append(good)
            rejected.append(bad)
        inputs = [request.inputs for good in requests for _, request in good]
        tokenized = iter(
            answer_apart(inputs, self._tokenized, harmless=lambda: self._tokenizer([_HARMLESS]), text_of=str)
        )
        packs: list[tuple[TokenPack | None, list[Rejected]]] = []
        for good, bad in zip(requests, rejected, strict=True):
            packs.append((_pack(good, [next(tokenized) for _ in good], bad, with_details=self._details), bad))
            bad.sort(key=lambda rejected: rejected.record.source.offset)
        assert next(tokenized, None) is None, "as many tokenized texts as requests"
        return packs

    def _decode(self, group: Sequence[InputRecord]) -> tuple[list[tuple[InputRecord, Request]], list[Rejected]]:
        good: list[tuple[InputRecord, Request]] = []
        bad: list[Rejected] = []
        for record in group:
            try:
                request = decode_request(
                    record, format=self._format, max_text_bytes=self._max_text_bytes, kind=self.kind
                )
                if request.parameters is not None:
                    check_parameters(request.parameters, self._tasks)
                if self._names_words:
                    request = _with_text(request)
            except BadRecord as err:
                bad.append(Rejected(record, err))
            else:
                good.append((record, request))
        return good, bad

    def _tokenized(self, requests: Sequence[list[TextInput]]) -> list[TokenizedText | BadRecord]:
        """One entry a request: a text's windows, or the window of each of its pairs."""
        texts = [text for inputs in requests for text in inputs if isinstance(text, str)]
        pairs = [pair for inputs in requests for pair in inputs if isinstance(pair, tuple)]
        tokenizer = self._tokenizer.with_details if self._details else self._tokenizer
        found = iter(tokenizer(texts)) if texts else iter(())
        of_pairs = iter(self._tokenizer.pairs(pairs, truncation=self._truncation)) if pairs else iter(())
        return [
            _together([next(found if isinstance(each, str) else of_pairs) for each in inputs]) for inputs in requests
        ]


def _with_text(request: Request) -> Request:
    """Whose text travels along: entities are told in its words."""
    [text] = request.inputs
    if not isinstance(text, str):
        raise BadRecord(Reason.BAD_REQUEST, "text_pair: token-classification reads one text")
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
    good: list[tuple[InputRecord, Request]],
    tokenized: list[TokenizedText | BadRecord],
    rejected: list[Rejected],
    *,
    with_details: bool,
) -> TokenPack | None:
    texts: list[PackedText] = []
    chunks: list[NDArray[np.int32]] = []
    details: list[NDArray[np.int32]] = []
    for (record, request), outcome in zip(good, tokenized, strict=True):
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
            )
        )
    if not texts:
        return None
    source = good[0][1].source
    return token_pack(topic=source.topic, partition=source.partition, texts=texts, chunks=chunks, details=details)
