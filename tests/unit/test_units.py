# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.config import units

pytestmark = pytest.mark.unit


@given(st.integers(0, 10**15), st.sampled_from([1, 60, 3600, 1000, 1e6, 7.0]))
def test_notations_read_back_what_they_write(number: int, divisor: float) -> None:
    quotient = number / divisor
    assert units.duration(units.duration_text(quotient)) == quotient
    assert units.rate(units.rate_text(quotient)) == quotient
    assert units.size(units.size_text(number)) == number


@pytest.mark.parametrize(
    ("text", "count"),
    [("64KiB", 65536), ("12MB", 12_000_000), ("1GiB", 1 << 30), ("1Gi", 1 << 30), ("1.5kB", 1500), ("7", 7)],
)
def test_sizes(text: str, count: int) -> None:
    assert units.size(text) == count
    assert re.fullmatch(str(units.SIZE.pattern), text)


@pytest.mark.parametrize("text", ["", "1.0001kB", "1 MB", "64k", "1m", "-1", "1e3", "١"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size"):
        units.size(text)
