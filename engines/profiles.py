"""Which shapes a plan that others have built is run in: what its optimization profiles allow.

They are those of padded rows, moved to the next that there is: lengths that double, each with a full micro-batch and an
eighth of one. A plan of fixed shapes has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engines.plan_shapes import PlanShape, padded_lengths, row_counts


@dataclass(frozen=True, slots=True)
class Range:
    """From `least` to `most`, tuned for `best`."""

    least: int
    best: int
    most: int

    def nearest(self, wanted: int) -> int:
        return min(max(wanted, self.least), self.most)


@dataclass(frozen=True, slots=True)
class Profile:
    """Rows, and tokens of each."""

    rows: Range
    lengths: Range


def longest(profiles: Sequence[Profile]) -> int:
    """The most tokens of a row."""
    return max(profile.lengths.most for profile in profiles)


def shapes_within(profiles: Sequence[Profile], *, max_length: int, max_batch_tokens: int) -> dict[PlanShape, int]:
    """Shapes for texts up to `max_length` tokens, which is at most `longest`, each with the number of its profile.

    Where no profile has rows as few or as long as wanted, they are the next that there are, which may be more than
    `max_batch_tokens`.
    """
    assert max_length <= longest(profiles)
    shapes: dict[PlanShape, int] = {}
    for wanted in padded_lengths(max_length):
        # The next length that there is: a longer row holds the text too.
        length = min(max(wanted, each.lengths.least) for each in profiles if each.lengths.most >= wanted)
        fitting = [number for number, each in enumerate(profiles) if each.lengths.least <= length <= each.lengths.most]
        for count in row_counts(length, max_batch_tokens):
            number = min(fitting, key=lambda number: _distance(profiles[number], length, count))
            shapes.setdefault(PlanShape(row_length=length, rows=profiles[number].rows.nearest(count)), number)
    return dict(sorted(shapes.items()))


def _distance(profile: Profile, length: int, rows: int) -> tuple[int, int]:
    """How far a profile is from a shape: first what can't be, then what it is tuned for."""
    tuned = profile.rows.best * profile.lengths.best
    return abs(profile.rows.nearest(rows) - rows), abs(tuned - rows * length)
