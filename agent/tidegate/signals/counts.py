# SPDX-License-Identifier: Apache-2.0
"""Counters with histograms behind them, as the programs of a signal keep them: declared, decoded, subtracted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Any, NamedTuple

from tidegate.kernel.maps import Map, SparseHistograms

#: Counters and histograms, each of these from slot to count.
Counts = tuple[tuple[int, ...], tuple[dict[int, int], ...]]


class Histogram(NamedTuple):
    """One of a record's ``histograms``, in the order in which its signal declares them.

    ``total`` is the counter that holds its sum in ns; ``bounds`` are exported, in ns: powers of two, which are
    edges of slots.
    """

    total: int
    shift: int
    slots: int
    bounds: tuple[int, ...]

    @property
    def seconds(self) -> tuple[float, ...]:
        """The bounds in seconds."""
        return tuple(bound / 1e9 for bound in self.bounds)


class CountsDecoder:
    """Decodes values that are ``counters`` times u64 and then the ``histograms``; at most ``batch`` at a time.

    ``between`` the two may be bytes of something else.
    """

    def __init__(self, counters: int, histograms: Sequence[Histogram], batch: int, between: int = 0) -> None:
        self._counters = Struct(f"<{counters}Q")
        slots = [histogram.slots for histogram in histograms]
        self._size = self._counters.size + between + 4 * sum(slots)
        self._histograms = SparseHistograms(self._counters.size + between, slots, batch)

    def counts(self, values: Any) -> Iterator[Counts]:
        """Decode values that stand one after the other."""
        count = len(values) // self._size
        histograms = self._histograms.read(values, count)
        for i in range(count):
            yield self._counters.unpack_from(values, i * self._size), histograms[i]


def read_counter(array: Map, index: int) -> int:
    """Read one u64 of an array map."""
    return int.from_bytes(array[index.to_bytes(4, "little")], "little")


def difference(now: Counts, before: Counts) -> Counts:
    """Return what was counted between two reads of a value that is never emptied; u32 slots may wrap."""
    counters = tuple(n - b for n, b in zip(now[0], before[0], strict=True))
    histograms = tuple(
        {
            slot: (n.get(slot, 0) - b.get(slot, 0)) & 0xFFFFFFFF
            for slot in n.keys() | b
            if n.get(slot) != b.get(slot)
        }
        for n, b in zip(now[1], before[1], strict=True)
    )
    return counters, histograms
