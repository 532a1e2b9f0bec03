# SPDX-License-Identifier: Apache-2.0
"""Histograms as shown, and arithmetic on the kernel's log-linear ones (shape: bpf/include/histogram.h)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

SUBSLOT_BITS = 3
_SUBSLOTS = 1 << SUBSLOT_BITS

Slots = Mapping[int, int]


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """A histogram: percentiles of the last interval (None without samples), the rest since the start.

    ``buckets`` are cumulative counts at the bounds that the field declares, the last at +Inf: ``count``.
    """

    p50: float | None
    p90: float | None
    p99: float | None
    count: int
    sum: float
    buckets: tuple[int, ...]


def slot_edges(slot: int, shift: int) -> tuple[int, int]:
    """Return the lower (included) and upper (excluded) value of a slot, in the unit of the counted values."""
    if slot < _SUBSLOTS:
        return slot << shift, (slot + 1) << shift
    excess = (slot >> SUBSLOT_BITS) - 1
    base = _SUBSLOTS + (slot & (_SUBSLOTS - 1))
    return base << (excess + shift), (base + 1) << (excess + shift)


def percentiles(slots: Slots, shift: int, quantiles: Sequence[float]) -> tuple[float | None, ...]:
    """Return the values below which the shares ``quantiles`` (ascending) of the samples lie; None without samples.

    Linear within a slot, so at most a slot's width off: 12.5 % of the value, 6.25 % from its middle.
    """
    total = sum(slots.values())
    if not total:
        return (None,) * len(quantiles)
    ordered = iter(sorted(slots.items()))
    slot, count = next(ordered)
    found: list[float | None] = []
    seen = 0
    for quantile in quantiles:
        rank = quantile * total
        while seen + count < rank:
            seen += count
            slot, count = next(ordered)
        lower, upper = slot_edges(slot, shift)
        found.append(lower + (upper - lower) * max(rank - seen, 0.5) / (count + 0.5))
    return tuple(found)


def add(a: Slots, b: Slots) -> dict[int, int]:
    """Return the sum of two histograms."""
    result = dict(a)
    for slot, count in b.items():
        result[slot] = result.get(slot, 0) + count
    return result


def total(several: Iterable[Slots]) -> dict[int, int]:
    """Return the sum of any number of histograms."""
    result: dict[int, int] = {}
    for slots in several:
        for slot, count in slots.items():
            result[slot] = result.get(slot, 0) + count
    return result


def subtract(a: Slots, b: Slots) -> dict[int, int]:
    """Return what ``a`` has more than the earlier ``b``."""
    return {slot: count - b.get(slot, 0) for slot, count in a.items() if count != b.get(slot, 0)}


def cumulative(slots: Slots, shift: int, bounds: Sequence[int]) -> tuple[int, ...]:
    """Return the counts at or below each bound, then the total; exact where the bounds are slot edges."""
    ordered = sorted((slot_edges(slot, shift)[1], count) for slot, count in slots.items())
    result, seen, i = [], 0, 0
    for bound in bounds:
        while i < len(ordered) and ordered[i][0] <= bound:
            seen += ordered[i][1]
            i += 1
        result.append(seen)
    return (*result, seen + sum(count for _, count in ordered[i:]))
