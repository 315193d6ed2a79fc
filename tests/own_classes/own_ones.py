"""Classes as users write them, sound ones and others."""

from __future__ import annotations

import sys

import numpy as np

from stages.own import BadRecord, Reason

WIDTH = 24


class Letters:
    """A token for each letter; fails on an exclamation mark."""

    unk_token_id = 0

    def __call__(self, texts):
        if any("!" in text for text in texts):
            raise ValueError("no '!' please")
        return [[1000 + ord(letter) for letter in text if letter != " "] for text in texts]

    def build_inputs_with_special_tokens(self, ids, pair_ids=None):
        return [101, *ids, 102]

    def offsets(self, texts):
        return [[(place, place + 1) for place, letter in enumerate(text) if letter != " "] for text in texts]

    def convert_ids_to_tokens(self, ids):
        return [chr(number - 1000) for number in ids]

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)


class Bare:
    """No special tokens, no pairs, no offsets."""

    model_max_length = 8

    def __call__(self, texts):
        return [np.arange(1, len(text.split()) + 1) for text in texts]


class Numbers:
    """A vector of each token that is its id; fails where there is a '#', answers nonsense where there is a '%'."""

    def __init__(self, models=(), threads=0, scale=1.0):
        self.models, self.threads, self.scale = models, threads, scale
        self.closed = 0

    def __call__(self, input_ids, attention_mask, token_type_ids):
        assert set(np.unique(attention_mask)) <= {0, 1}
        if (input_ids == 1000 + ord("#")).any():
            raise RuntimeError("no '#' please")
        if (input_ids == 1000 + ord("&")).any():
            raise BadRecord(Reason.BAD_REQUEST, "no ampersands")
        if (input_ids == 1000 + ord("%")).any():
            return {"last_hidden_state": np.zeros((1, 1))}
        vectors = np.repeat(input_ids[..., None], WIDTH, axis=-1) * self.scale
        return {"last_hidden_state": vectors, "logits": vectors[:, 0, :3]}

    def close(self):
        self.closed += 1


class Rows:
    """Reads packed rows, and answers each text's tokens."""

    def __init__(self, models):
        self.widths = dict.fromkeys(models, 3)
        self.of_tokens = frozenset()

    def run(self, rows):
        counts = [(rows.segment_ids[row] == slot + 1).sum() for row, slot in zip(rows.row, rows.slot, strict=True)]
        if 7 in counts:
            return {}
        return {name: np.repeat(np.array(counts, np.float32)[:, None], 3, axis=1) for name in self.widths}


class Count:
    """The first number of the vector; fails over 1,000, answers what is no JSON over 900."""

    reads = "sentence-embedding"

    def __call__(self, rows):
        if (rows[:, 0] > 1000).any():
            raise ArithmeticError("too much")
        return [np.float32(1) if row[0] > 900 else {"count": round(float(row[0]), 2)} for row in rows]


class Odds:
    """Of the letters a and b, infinite of b, and unknown of c."""

    reads = "sentence-embedding"

    def __call__(self, rows):
        odds = {1097: 1.5, 1098: float("inf"), 1099: float("nan")}
        return [{"odds": [odds.get(round(float(3 * row[0] - 203)))], "null": None} for row in rows]


class Spans:
    """Places of the tokens, and the text where the pack has it."""

    def of_tokens(self, rows, details, text):
        return {"spans": details[:, 2:].tolist(), "text": text.echo, "numbers": rows.shape[1]}


class Best:
    reads = "text-ranking"
    parameters = ("top_k",)

    def of_pairs(self, rows, text):
        return int(rows[:, 0].argmax())


class ExitingLetters(Letters):
    """Ends the process on a '?'."""

    def __call__(self, texts):
        if any("?" in text for text in texts):
            sys.exit("no '?' please")
        return super().__call__(texts)

    def convert_ids_to_tokens(self, ids):
        raise SystemExit


class ExitingNumbers(Numbers):
    """On a '^'."""

    def __call__(self, input_ids, attention_mask, token_type_ids):
        if (input_ids == 1000 + ord("^")).any():
            sys.exit(3)
        return super().__call__(input_ids, attention_mask, token_type_ids)


class ExitingCount(Count):
    """On a long text."""

    def __call__(self, rows):
        if (rows[:, 0] > 800).any():
            sys.exit(4)
        return super().__call__(rows)


class Exits:
    def __init__(self, **options):
        sys.exit(2)


class ExitingTokens(Bare):
    def __call__(self, texts):
        sys.exit(1)


class ExitingRows(Rows):
    def run(self, rows):
        sys.exit(1)


class NoMethod:
    pass


class Raises:
    def __init__(self, **options):
        raise OSError("no such\nfile")


class Halves(Bare):
    def __call__(self, texts):
        return [[0.5] for _ in texts]


class Few(Bare):
    def __call__(self, texts):
        return []


class NoText(Bare):
    def build_inputs_with_special_tokens(self, ids, pair_ids=None):
        return [1, 2]


class Words:
    def __call__(self, input_ids, attention_mask):
        return {"last_hidden_state": "words"}


class Narrow:
    def __call__(self, input_ids, attention_mask):
        return np.zeros((len(input_ids), 5))


class Unnamed:
    def __call__(self, input_ids, attention_mask):
        return {"a": np.zeros((len(input_ids), WIDTH)), "b": np.zeros((len(input_ids), WIDTH))}


class OtherRows(Rows):
    def __init__(self):
        super().__init__(["other"])


class ReadsWhat:
    reads = "minds"

    def __call__(self, rows): ...


class Asks:
    parameters = ("topk",)

    def __call__(self, rows, asked): ...


class BadSchema:
    json_schema = 3

    def __call__(self, rows): ...
