# SPDX-License-Identifier: Apache-2.0
"""Which namespaces are visited when, and where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidegate.ports.rounds import QUIET, SHARE, Directory, Rounds

pytestmark = pytest.mark.unit


def visits(namespaces: list[int], active: set[int], took: float, ticks: int) -> list[list[int]]:
    """Tick once a second and return who was visited in each."""
    rounds, done = Rounds(), []
    for tick in range(ticks):
        visited = []
        for netns in rounds.due(namespaces, active, active, float(tick)):
            if not rounds.may_go_on():
                break
            rounds.visited(netns, float(tick), took)
            visited.append(netns)
        done.append(visited)
    return done


def test_the_active_are_visited_at_each_tick_and_the_quiet_now_and_then() -> None:
    done = visits([1, 2, 3], {2}, 0.001, 11)
    assert all(2 in visited for visited in done)
    for netns in (1, 3):
        at = [tick for tick, visited in enumerate(done) if netns in visited]
        assert at == [0, QUIET, 2 * QUIET]


def test_the_first_visits_are_where_clients_are() -> None:
    assert Rounds().due([1, 2, 3, 4], set(), {3}, 0.0) == [3, 1, 2, 4]


def test_visits_take_no_more_than_their_share() -> None:
    ticks = 200
    done = visits(list(range(100)), set(range(100)), 0.004, ticks)
    assert sum(map(len, done)) * 0.004 <= SHARE * ticks + 0.06
    # Nobody is left out.
    assert {netns for visited in done for netns in visited} == set(range(100))


def test_a_visit_that_takes_long_is_paid_for_by_those_to_come() -> None:
    done = visits([1], {1}, 0.1, 40)
    assert 4 <= sum(map(len, done)) <= 6


def test_it_is_looked_anew_where_one_is_missing_but_not_at_each_tick() -> None:
    looks = []

    def look() -> dict[int, Path]:
        looks.append(1)
        return {5: Path("/proc/5/ns/net"), -1: Path("/proc/9/ns/net")}

    directory = Directory(look)
    assert directory.paths({5}, 0.0) == {5: Path("/proc/5/ns/net")}
    directory.paths({5, 6}, 1.0)
    assert len(looks) == 2
    # It isn't to be found: not at once again.
    directory.paths({5, 6}, 2.0)
    assert len(looks) == 2
    directory.paths({5, 6}, 6.0)
    assert len(looks) == 3
    directory.paths({5}, 20.0)
    assert len(looks) == 3
    directory.paths({5}, 36.0)
    assert len(looks) == 4
    directory.forget(5)
    directory.paths({5}, 37.0)
    assert len(looks) == 5
