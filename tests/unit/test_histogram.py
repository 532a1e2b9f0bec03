# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.kernel import layouts
from tidegate.model import histogram

pytestmark = pytest.mark.unit
SHIFT = 10
NANOSECONDS = st.integers(min_value=1 << 14, max_value=(1 << 37) - 1)


def slot_of(value: int) -> int:
    """The kernel's rule, said once more: eight slots to a power of two."""
    v = value >> SHIFT
    if v < 8:
        return v
    power = v.bit_length() - 1
    return (power - 2) * 8 + (v >> (power - 3)) % 8


def filled(values: list[int]) -> dict[int, int]:
    slots: dict[int, int] = {}
    for value in values:
        slots[slot_of(value)] = slots.get(slot_of(value), 0) + 1
    return slots


def test_slots_follow_each_other_without_gap_up_to_the_last() -> None:
    end = 0
    for slot in range(layouts.Histogram.HANDSHAKE_SLOTS):
        lower, upper = histogram.slot_edges(slot, SHIFT)
        assert lower == end
        end = upper
    assert end == 1 << 37


def test_shape_is_the_one_of_the_kernel() -> None:
    assert layouts.Histogram.SUBSLOT_BITS == histogram.SUBSLOT_BITS
    assert layouts.Histogram.HANDSHAKE_SHIFT == SHIFT


@given(NANOSECONDS)
def test_value_lies_in_its_slot(value: int) -> None:
    lower, upper = histogram.slot_edges(slot_of(value), SHIFT)
    assert lower <= value < upper


@given(st.lists(NANOSECONDS, min_size=1, max_size=400), st.sampled_from([0.5, 0.9, 0.99]))
def test_percentile_is_in_the_slot_of_the_true_one(values: list[int], quantile: float) -> None:
    rank = quantile * len(values)
    truth = sorted(values)[max(int(-(-rank // 1)), 1) - 1]
    lower, upper = histogram.slot_edges(slot_of(truth), SHIFT)
    (found,) = histogram.percentiles(filled(values), SHIFT, (quantile,))
    assert found is not None
    assert lower <= found <= upper


@given(st.integers(min_value=1 << 14, max_value=1 << 30))
def test_percentiles_of_a_spread_are_within_ten_percent(base: int) -> None:
    values = [base + base * i // 500 for i in range(1000)]
    quantiles = (0.5, 0.9, 0.99)
    truth = [values[int(quantile * 1000) - 1] for quantile in quantiles]
    assert histogram.percentiles(filled(values), SHIFT, quantiles) == pytest.approx(truth, rel=0.1)


def test_percentile_without_samples_is_not_measured() -> None:
    assert histogram.percentiles({}, SHIFT, (0.5, 0.9)) == (None, None)


@given(st.lists(NANOSECONDS, max_size=200), st.lists(NANOSECONDS, max_size=200))
def test_difference_undoes_sum(a: list[int], b: list[int]) -> None:
    first, both = filled(a), histogram.add(filled(a), filled(b))
    assert both == filled(a + b)
    assert histogram.subtract(both, first) == filled(b)


@given(st.lists(NANOSECONDS, max_size=200))
def test_cumulative_counts_are_exact_at_powers_of_two(values: list[int]) -> None:
    bounds = [1 << n for n in range(16, 38, 2)]
    found = histogram.cumulative(filled(values), SHIFT, bounds)
    assert list(found) == [*(sum(v < bound for v in values) for bound in bounds), len(values)]
