"""A tokenizer and a task of one's own: docs/own-classes.md."""

import re
from pathlib import Path
from typing import ClassVar

import numpy as np
from tokenizers import Tokenizer

from stages.own import asked_or


class WithoutAddresses:
    """The model's tokenizer, with a word in place of every e-mail address."""

    def __init__(self, source: Path, *, word: str = "someone"):
        self._tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._cls, self._sep = map(self._tokenizer.token_to_id, ("[CLS]", "[SEP]"))
        self._word = word

    def __call__(self, texts):
        texts = [re.sub(r"\S+@\S+", self._word, text) for text in texts]
        return [each.ids for each in self._tokenizer.encode_batch(texts, add_special_tokens=False)]

    def build_inputs_with_special_tokens(self, ids, pair_ids=None):
        return [self._cls, *ids, self._sep] + ([] if pair_ids is None else [*pair_ids, self._sep])

    def create_token_type_ids_from_sequences(self, ids, pair_ids):
        return [0] * (len(ids) + 2) + [1] * (len(pair_ids) + 1)


class Verdict:
    """The best label, and whether it is far enough from the others."""

    parameters = ("threshold",)
    json_schema: ClassVar = {
        "type": "object",
        "properties": {"verdict": {"type": "string"}, "score": {"type": "number"}},
    }

    def __init__(self, labels: tuple[str, ...], *, sure_from: float = 0.8):
        self._labels = labels
        self._sure_from = sure_from

    def __call__(self, rows, asked):
        scores = np.exp(rows - rows.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        return [self._verdict(*each) for each in zip(scores, asked, strict=True)]

    def _verdict(self, scores, asked):
        best = int(scores.argmax())
        sure = scores[best] >= asked_or(asked.threshold, self._sure_from)
        return {"verdict": self._labels[best] if sure else "UNSURE", "score": float(scores[best])}
