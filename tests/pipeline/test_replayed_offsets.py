"""What has been replayed is remembered through a commit, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.replayed_offsets import MOST_RANGES, ReplayedOffsets

ranges = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 6)).map(lambda each: (each[0], each[0] + each[1])), max_size=12
)


@given(place=st.integers(0, 20), added=ranges)
def test_it_is_a_set_of_offsets_that_a_commit_keeps(place: int, added: list[tuple[int, int]]) -> None:
    replayed = ReplayedOffsets(place)
    for start, end in added:
        replayed.add(start, end)
    expected = set(range(place)).union(*(range(start, end) for start, end in added))
    read = ReplayedOffsets.committed(replayed.place, replayed.metadata())
    for each in (replayed, read):
        assert {offset for offset in range(80) if offset in each} == expected
        assert each.place not in expected


@given(added=st.lists(st.integers(0, 10**6), max_size=400))
def test_what_it_keeps_beside_the_offset_has_room_there(added: list[int]) -> None:
    replayed = ReplayedOffsets(0)
    for offset in added:
        replayed.add(offset, offset + 1)
    assert len(replayed.metadata()) <= 4096
    read = ReplayedOffsets.committed(replayed.place, replayed.metadata())
    remembered = {offset for offset in added if offset in read}
    assert remembered <= set(added)
    assert replayed.forgotten or remembered == set(added)


def test_the_highest_range_is_forgotten_where_there_are_too_many() -> None:
    replayed = ReplayedOffsets(0)
    for number in range(MOST_RANGES + 2):
        replayed.add(2 * number + 1, 2 * number + 2)
    assert replayed.forgotten == 2
    assert 2 * MOST_RANGES - 1 in replayed
    assert 2 * MOST_RANGES + 1 not in replayed


@pytest.mark.parametrize("metadata", ["", None, "x", "1-", "5-3", "3,1", "0-4", "2-3,4", "1,,3", "9" * 40, "1;2"])
def test_metadata_of_somebody_else_says_nothing(metadata: str | None) -> None:
    replayed = ReplayedOffsets.committed(10, metadata)
    assert [offset in replayed for offset in (9, 10, 11, 12, 13, 14, 15)] == [True] + [False] * 6
