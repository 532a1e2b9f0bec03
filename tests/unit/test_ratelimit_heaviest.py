# SPDX-License-Identifier: Apache-2.0
"""Which sources are heaviest, at which rates, and which begin to be over their limits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.remains import wait_until
from tidegate.errors import TidegateError
from tidegate.kernel.layouts import RatelimitKey, RatelimitSource, RatelimitWidth
from tidegate.ratelimit.heaviest import CANDIDATES, Entry, Heavy, Sample, sample
from tidegate.ratelimit.watch import QUIET, SHARE, SourceWatch

pytestmark = pytest.mark.unit


def entry(
    source: int, packets: int, refused: int, *, policy: int = 1, width: int = RatelimitWidth.NARROW
) -> Entry:
    return RatelimitKey(source, policy, 4, width, 0), RatelimitSource(bytes(24), 0, packets, refused)


def shown(found: Sample) -> list[tuple[int, int, int, float | None, float | None]]:
    return [(of.key.source, of.packets, of.refused, of.packet_rate, of.refused_rate) for of in found.heavy]


def test_buckets_of_a_source_are_summed_over_policies_and_tables() -> None:
    found = sample(
        1.0,
        [entry(7, 100, 10), entry(7, 50, 0, policy=2), entry(8, 500, 0), entry(9, 900, 900, width=1)],
        [entry(7, 5, 5)],
    )
    assert (found.sources, found.requesting) == (4, 1)
    assert shown(found) == [(7, 155, 15, None, None), (8, 500, 0, None, None)]


def test_rates_are_of_the_time_between_samples_and_come_first() -> None:
    before = sample(1.0, [entry(7, 100, 90), entry(8, 100, 0)], [])
    found = sample(3.0, [entry(7, 100, 90), entry(8, 300, 20), entry(9, 10, 0)], [], before)
    assert shown(found) == [
        (8, 300, 20, 100.0, 10.0),
        (7, 100, 90, 0.0, 0.0),
        (9, 10, 0, 5.0, 0.0),  # in no bucket before, so all that it sent came since
    ]


def test_no_rate_where_a_bucket_was_made_anew_or_might_have_been_there() -> None:
    before = sample(1.0, [entry(7, 100, 90)], [])
    assert shown(sample(2.0, [entry(7, 4, 0)], [], before)) == [(7, 4, 0, None, None)]
    many = sample(1.0, [entry(n, 9, 9) for n in range(CANDIDATES)] + [entry(CANDIDATES, 1, 0)], [])
    assert len(many.heavy) == CANDIDATES
    found = sample(2.0, [entry(CANDIDATES, 11, 5)], [], many)
    assert shown(found) == [(CANDIDATES, 11, 5, None, None)]


class Tables:
    """What the two tables hold, changed by the test."""

    def __init__(self) -> None:
        self.now = 0.0
        self.entries: list[Entry] = []
        self.fails = False
        self.seconds = 0.0
        self.read_by = set[int]()

    def sources(self) -> list[Entry]:
        self.read_by.add(threading.get_ident())
        if self.fails:
            raise TidegateError("gone")
        self.now += self.seconds
        return list(self.entries)


@contextmanager
def watched(tables: Tables) -> Iterator[SourceWatch]:
    watch = SourceWatch(tables.sources, list, clock=lambda: tables.now)
    try:
        yield watch
    finally:
        watch.close()


def crossed(watch: SourceWatch, tables: Tables) -> list[int]:
    """Let a second pass and a sample be made, and return who has begun to be over."""
    tables.now += 1.0
    found: list[Heavy] = watch.tick()
    before = watch.latest

    def is_new() -> bool:
        found.extend(watch.tick())
        return watch.latest is not before

    wait_until(is_new, "another sample")
    return [heavy.key.source for heavy in found]


def test_a_source_is_told_once_until_it_was_quiet() -> None:
    tables = Tables()
    with watched(tables) as watch:
        tables.entries = [entry(7, 10, 5)]
        assert crossed(watch, tables) == []  # what an earlier agent has counted
        tables.entries = [entry(7, 10, 5), entry(8, 4, 1)]
        assert crossed(watch, tables) == [8]
        tables.entries = [entry(7, 20, 9), entry(8, 9, 3)]
        assert crossed(watch, tables) == [7]
        tables.now += QUIET / 2
        tables.entries = [entry(7, 21, 9), entry(8, 9, 4)]
        assert crossed(watch, tables) == []
        tables.now += QUIET
        tables.entries = [entry(7, 31, 12), entry(8, 9, 4)]
        assert crossed(watch, tables) == [7]
        assert threading.get_ident() not in tables.read_by


def test_what_takes_long_is_done_rarely_and_while_nobody_waits() -> None:
    tables = Tables()
    tables.entries, tables.seconds = [entry(7, 10, 5)], 2.0
    with watched(tables) as watch:
        crossed(watch, tables)
        first = watch.latest
        assert first is not None
        assert watch.now() is first
        tables.now = first.time + 2.0 / SHARE - 1.0
        watch.tick()
        assert watch.latest is first
        tables.seconds = 0.0
        assert crossed(watch, tables) == []
        assert watch.latest is not first
        assert watch.now() is not watch.latest


def test_a_table_that_cannot_be_read_leaves_the_last_sample(caplog: pytest.LogCaptureFixture) -> None:
    tables = Tables()
    with watched(tables) as watch:
        crossed(watch, tables)
        before, tables.fails = watch.latest, True
        tables.now += 1.0

        def told() -> bool:
            watch.tick()
            return "can't be read: gone" in caplog.text

        wait_until(told, "the error")
        assert watch.latest is before
