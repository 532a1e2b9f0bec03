# SPDX-License-Identifier: Apache-2.0
"""Which sources have most refused, and send most, of all that the tables hold; pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import nlargest
from typing import NamedTuple

from tidegate.kernel.layouts import RatelimitKey, RatelimitSource, RatelimitWidth

#: Buckets of a table that are looked at more closely, so that what is kept doesn't grow with the table.
CANDIDATES = 1024

Entry = tuple[RatelimitKey, RatelimitSource]


class Heavy(NamedTuple):
    """A source: its narrow key without the policy, and what its buckets have seen together since they are known.

    Rates are per second since the sample before; None where that doesn't tell.
    """

    key: RatelimitKey
    packets: int
    refused: int
    packet_rate: float | None = None
    refused_rate: float | None = None


class Sample(NamedTuple):
    """Both tables at a time (monotonic seconds): how many buckets they hold, and the heaviest sources."""

    time: float
    sources: int
    requesting: int
    heavy: tuple[Heavy, ...]


def sample(
    time: float, sources: Iterable[Entry], requesting: Iterable[Entry], before: Sample | None = None
) -> Sample:
    """Go through both tables once.

    The heaviest are those with most refused packets a second, then in all, then those that send most. Of each
    table the 1,024 buckets with most refused are summed by source, so a source of which a bucket is not among them
    has more than is shown.
    """
    counted = [0, 0]
    sums: dict[RatelimitKey, list[int]] = {}
    for table, entries in enumerate((sources, requesting)):
        largest = nlargest(CANDIDATES, _narrow(entries, counted, table))
        for refused, packets, family, source in largest:
            key = RatelimitKey(source, 0, family, RatelimitWidth.NARROW, 0)
            found = sums.setdefault(key, [0, 0])
            found[0] += packets
            found[1] += refused
    known = {heavy.key: heavy for heavy in before.heavy} if before else {}
    heavy = [_rated(Heavy(key, *counts), known.get(key), before, time) for key, counts in sums.items()]
    heavy.sort(
        key=lambda of: (of.refused_rate or 0.0, of.refused, of.packet_rate or 0.0, of.packets), reverse=True
    )
    return Sample(time, counted[0], counted[1], tuple(heavy))


def _narrow(entries: Iterable[Entry], counted: list[int], table: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield refused, packets, family, source of each narrow bucket; count all."""
    count, narrow = 0, int(RatelimitWidth.NARROW)
    for key, source in entries:
        count += 1
        if key.width == narrow:
            yield source.refused, source.packets, key.family, key.source
    counted[table] = count


def _rated(now: Heavy, then: Heavy | None, before: Sample | None, time: float) -> Heavy:
    if before is None or time <= before.time:
        return now
    if then is None and max(before.sources, before.requesting) > CANDIDATES:
        return now  # it may have been there, with little
    packets, refused = (then.packets, then.refused) if then else (0, 0)
    if now.packets < packets or now.refused < refused:
        return now  # its bucket was made anew
    seconds = time - before.time
    return now._replace(
        packet_rate=(now.packets - packets) / seconds, refused_rate=(now.refused - refused) / seconds
    )
