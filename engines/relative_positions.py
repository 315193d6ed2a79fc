"""Positions that count only by how far two tokens are apart: MPNet's distances and ModernBERT's rotations.

Both are tables by numbers that the rows have, whatever company a text is in: of a distance, or of a position in a text.
So a graph is as large for rows of 8,192 tokens as for rows of 64.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

# MPNet's, which are not in its config: buckets before and after a token, and the distance from which on all are alike.
DISTANCE_BUCKETS, FARTHEST = 32, 128


def by_distance(buckets: NDArray[np.float32]) -> NDArray[np.float32]:
    """What MPNet adds to a score (2 * FARTHEST + 1, heads) by the place of the token that is attended to, less that of
    the one that attends, plus FARTHEST, from its table of buckets (DISTANCE_BUCKETS or more, heads).

    Distances up to 8 have a bucket each, longer ones share (Raffel et al., T5, 2020, as transformers' MPNet has it).
    In float32, as there: where a bucket begins the digits decide.
    """
    half = DISTANCE_BUCKETS // 2
    exact = half // 2
    distance = np.arange(-FARTHEST, FARTHEST + 1)
    far = np.abs(distance)
    logarithm = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact))
    shared = logarithm / np.float32(math.log(FARTHEST / exact)) * np.float32(half - exact)
    bucket = np.where(far < exact, far, np.minimum(exact + shared.astype(np.int64), half - 1))
    return np.ascontiguousarray(buckets[bucket + half * (distance > 0)])


def rotations(theta: float, *, size: int, positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines, (positions, size / 2) each, of the angles by which a head's `size` numbers are turned, in
    pairs of the i-th and the i-th of the second half (Su et al., RoFormer, 2021). Angles are rounded as transformers
    rounds them."""
    frequencies = (theta ** -(np.arange(0, size, 2) / size)).astype(np.float32)
    angles = (np.arange(positions, dtype=np.float32)[:, np.newaxis] * frequencies).astype(np.float64)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
