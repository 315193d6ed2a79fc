"""How long a dead child waits, without any child."""

from __future__ import annotations

from pipeline.supervisor import RestartCount, RestartPolicy


def test_the_delay_doubles_up_to_the_longest_and_then_it_gives_up() -> None:
    count = RestartCount(RestartPolicy())
    delays = [count.next_delay_s(lived_s=0.1) for _ in range(10)]
    assert delays == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0, None]


def test_a_healthy_life_starts_over() -> None:
    count = RestartCount(RestartPolicy())
    for _ in range(9):
        count.next_delay_s(lived_s=29.9)
    assert count.deaths == 9
    assert count.next_delay_s(lived_s=30.0) == 0.0
    assert count.next_delay_s(lived_s=1.0) == 0.2


def test_a_child_that_always_dies_after_a_healthy_life_is_never_given_up() -> None:
    count = RestartCount(RestartPolicy())
    assert {count.next_delay_s(lived_s=31.0) for _ in range(100)} == {0.0}


def test_one_death_allowed_means_none_is_followed_by_a_start() -> None:
    assert RestartCount(RestartPolicy(max_deaths=1)).next_delay_s(lived_s=0.0) is None
