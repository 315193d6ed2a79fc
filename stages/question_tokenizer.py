"""Questions and their contexts: windows of the question and a piece of the context each, as `transformers` cuts them.

    [CLS] question [SEP] context's tokens 0 to 99 [SEP]
    [CLS] question [SEP] context's tokens 68 to 167 [SEP]      with a doc_stride of 32

All that depends on a request's parameters is done here: the question and the context are tokenized as they are, each by
itself, and put together by the tokenizer's template for pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from schemas.errors import BadRecord, Reason
from schemas.packs import DETAILS, SPECIAL
from schemas.parameters import NOTHING_ASKED, Parameters, asked_or
from schemas.requests import MAX_PAIRS, Request
from stages.errors import TokenizerError
from stages.pairs import PairTemplate
from stages.text_tokenizer import LongTexts, TokenizedText, in_calls
from stages.tokenizer_files import load_tokenizer

# As `transformers` has them, where a model can read so many.
_MAX_SEQ_LEN = 384
_DOC_STRIDE = 128

# Of one request's windows: with two float32 and their details 24 bytes each, of the 16 MiB that a record may have.
_MAX_TOKENS = 500_000


class QuestionTokenizer:
    """A model's tokenizer, as question answering reads with it. `window_tokens` are those of the longest window, unless
    a request asks for others. None is `slow`."""

    slow = ""

    def __init__(
        self, folder: Path, *, max_length: int, long_texts: LongTexts, max_seq_len: int | None, doc_stride: int | None
    ) -> None:
        """`max_seq_len` and `doc_stride` are the ensemble file's wishes, where it has some; no window has more than
        `max_length` tokens. `long_texts` is of contexts of more than one window. Raises TokenizerError."""
        tokenizer = load_tokenizer(folder)
        if tokenizer.padding_side != "right":
            raise TokenizerError(
                f"tokenizer.source: {folder} has padding_side {tokenizer.padding_side!r}, with which the question is "
                "read last; question-answering is supported with 'right'"
            )
        self.max_length = min(max_length, tokenizer.model_max_length)
        self.window_tokens = min(self.max_length, max_seq_len or _MAX_SEQ_LEN)
        self._doc_stride = doc_stride
        self._long_texts = long_texts
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_padding()
        self._backend.no_truncation()
        try:
            self._pairs = PairTemplate(self._backend)
        except ValueError as err:
            raise TokenizerError(f"tokenizer.source: {folder}: {err}, which question-answering reads") from err
        self._no_answer = tokenizer.cls_token_id

    def __call__(self, requests: Sequence[Request]) -> list[TokenizedText | BadRecord]:
        """One entry a request of a question and a context, in order, with details."""
        pairs = [pair for request in requests for pair in request.inputs if isinstance(pair, tuple)]
        # Many questions may be asked of one context.
        texts = [*dict.fromkeys(text for pair in pairs for text in pair)]
        encodings = (each for call in in_calls(texts) for each in self._encodings(call))
        found = dict(zip(texts, encodings, strict=True))
        return [
            self._read(found[question], found[context], request.parameters or NOTHING_ASKED)
            for (question, context), request in zip(pairs, requests, strict=True)
        ]

    def try_text(self, text: str) -> None:
        """Fails only where every text does."""
        self._encodings([text])

    def _encodings(self, texts: list[str]) -> list[Encoding]:
        found: list[Encoding] = self._backend.encode_batch(texts, add_special_tokens=False)
        return found

    def _read(self, question: Encoding, context: Encoding, asked: Parameters) -> TokenizedText | BadRecord:
        max_seq_len = asked_or(asked.max_seq_len, self.window_tokens)
        question_ids = np.array(question.ids[: asked_or(asked.max_question_len, len(question.ids))], np.int32)
        room = max_seq_len - self._pairs.special - len(question_ids)
        try:
            pieces = self._pieces(len(context.ids), room, max_seq_len, asked)
        except BadRecord as err:
            return err
        ids = np.array(context.ids, np.int32)
        offsets = np.array(context.offsets, np.int32).reshape(-1, 2)
        words = np.array([-1 - at if word is None else word for at, word in enumerate(context.word_ids)], np.int64)
        windows: list[NDArray[np.int32]] = []
        details: list[NDArray[np.int32]] = []
        for piece in pieces:
            window, _ = self._pairs.window(question_ids, ids[piece], max_length=max_seq_len, truncation="longest_first")
            windows.append(window)
            details.append(self._details(window, len(question_ids), offsets[piece], words[piece]))
        truncated = len(question_ids) < len(question.ids) or pieces[-1].stop < len(context.ids)
        return TokenizedText(windows, truncated=truncated, details=details)

    def _pieces(self, tokens: int, room: int, max_seq_len: int, asked: Parameters) -> list[slice]:
        """Of the context's tokens, of which a window has room for so many. Raises BadRecord."""
        if max_seq_len > self.max_length:
            raise _refused(f"parameters.max_seq_len: {max_seq_len}; allowed here: at most {self.max_length}")
        if tokens <= room:
            return [slice(0, tokens)]
        if room < 1:
            raise _too_long(
                f"the question leaves no room for the context in windows of {max_seq_len} tokens: shorten it, or ask "
                "for a max_question_len or a larger max_seq_len"
            )
        if self._long_texts == "reject":
            raise _too_long(
                f"the context has {tokens} tokens and a window has room for {room}, and the ensemble rejects long texts"
            )
        if self._long_texts == "truncate":
            return [slice(0, room)]
        stride = self._stride(asked, max_seq_len, room)
        # As many as it takes for the last one to reach the end.
        starts = range(0, tokens - stride, room - stride)
        in_all = tokens + (len(starts) - 1) * stride + len(starts) * (max_seq_len - room)
        if len(starts) > MAX_PAIRS or in_all > _MAX_TOKENS:
            raise _too_long(
                f"the context makes {len(starts)} windows of {in_all} tokens together; allowed: {MAX_PAIRS} windows of "
                f"{_MAX_TOKENS}: send it in parts, or ask for a smaller doc_stride"
            )
        return [slice(start, min(start + room, tokens)) for start in starts]

    def _stride(self, asked: Parameters, max_seq_len: int, room: int) -> int:
        """As it is asked for, else the file's or `transformers`', and half the room where a long question leaves less:
        there `transformers` fails."""
        default = min(max_seq_len // 2, _DOC_STRIDE) if self._doc_stride is None else self._doc_stride
        stride = asked_or(asked.doc_stride, default if default < room else room // 2)
        if stride >= room:
            raise _refused(
                f"parameters.doc_stride: {stride}; beside this question a window of {max_seq_len} tokens has room for "
                f"{room}; allowed: 0 to {room - 1}"
            )
        return stride

    def _details(
        self, window: NDArray[np.int32], question: int, offsets: NDArray[np.int32], words: NDArray[np.int64]
    ) -> NDArray[np.int32]:
        """(tokens, 4), as `schemas.packs` has them; of a word what the window has of it."""
        details = np.full((len(window), DETAILS), SPECIAL, np.int32)
        if window[0] == self._no_answer:
            details[0] = 0
        if len(words):
            begins = np.concatenate(([True], words[1:] != words[:-1]))
            first = np.flatnonzero(begins)
            last = np.concatenate((first[1:], [len(words)])) - 1
            word = np.cumsum(begins) - 1
            at = self._pairs.second_at(question)
            of_context = details[at : at + len(words)]
            of_context[:, :2] = offsets
            of_context[:, 2] = offsets[first, 0][word]
            of_context[:, 3] = offsets[last, 1][word]
        return details


def _refused(message: str) -> BadRecord:
    return BadRecord(Reason.BAD_REQUEST, message)


def _too_long(message: str) -> BadRecord:
    return BadRecord(Reason.TEXT_TOO_LONG, message)
