# SPDX-License-Identifier: Apache-2.0
"""Which sources have most refused, and send most, of all that the tables hold; pure."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import nlargest
from typing import NamedTuple

from tidegate.kernel.layouts import RatelimitKey, RatelimitSource, RatelimitWidth


class Heavy(NamedTuple):
    """A source: its narrow key without the policy, and what its buckets have seen together."""

    key: RatelimitKey
    packets: int
    refused: int


def heaviest(entries: Iterable[tuple[RatelimitKey, RatelimitSource]], count: int) -> list[Heavy]:
    """Return the ``count`` sources with most refused packets, those with equally many by what they sent."""
    sums: dict[tuple[int, int], list[int]] = {}
    for key, source in entries:
        if key.width == RatelimitWidth.NARROW:
            found = sums.setdefault((key.family, key.source), [0, 0])
            found[0] += source.packets
            found[1] += source.refused
    most = nlargest(count, sums.items(), key=lambda item: (item[1][1], item[1][0]))
    return [
        Heavy(RatelimitKey(source, 0, family, RatelimitWidth.NARROW, 0), packets, refused)
        for (family, source), (packets, refused) in most
    ]
