# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from itertools import pairwise

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
    assert units.byte_rate(units.byte_rate_text(quotient)) == quotient


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


@pytest.mark.parametrize(
    ("count", "text"),
    [(10**12, "1TB"), (65536, "64KiB"), (1 << 40, "1TiB"), (24_000_000, "24MB"), (0, "0"), (7, "7")],
)
def test_sizes_are_written_in_the_largest_unit(count: int, text: str) -> None:
    assert units.size_text(count) == text


@pytest.mark.parametrize(
    ("text", "per_second"),
    [
        ("12MB/s", 12e6),
        ("64KiB/s", 65536.0),
        ("1.5kB/s", 1500.0),
        ("600B/m", 10.0),
        ("60/m", 1.0),
        ("36GiB/h", (36 << 30) / 3600),
    ],
)
def test_rates_of_bytes(text: str, per_second: float) -> None:
    assert units.byte_rate(text) == per_second
    assert re.fullmatch(str(units.BYTE_RATE.pattern), text)


@pytest.mark.parametrize("text", ["", "12MB", "12MBs", "12MBps", "1M/s", "1MB/d", "-1B/s", "10r/s"])
def test_what_is_no_rate_of_bytes(text: str) -> None:
    with pytest.raises(ValueError, match="expected bytes in a time"):
        units.byte_rate(text)


@pytest.mark.parametrize(
    ("text", "per_second"), [("10/s", 10.0), ("10r/s", 10.0), ("600r/m", 10.0), ("0.5/s", 0.5), ("36/h", 0.01)]
)
def test_rates(text: str, per_second: float) -> None:
    assert units.rate(text) == per_second
    assert re.fullmatch(str(units.RATE.pattern), text)


def test_days() -> None:
    assert units.duration("90d") == 90 * 86400
    assert units.duration("1d12h") == 1.5 * 86400
    assert units.duration_text(2 * 86400.0) == "2d"
    assert units.duration_text(36 * 3600.0) == "36h"


@given(st.lists(st.tuples(st.integers(1, 65535), st.integers(0, 500)), min_size=1, max_size=8))
def test_ranges_are_the_ports_of_the_text(drawn: list[tuple[int, int]]) -> None:
    ends = [(first, min(first + more, 65535)) for first, more in drawn]
    ranges = units.port_ranges(",".join(f"{first}-{last}" for first, last in ends))
    assert {port for some in ranges for port in some} == {
        p for first, last in ends for p in range(first, last + 1)
    }
    assert all(one.stop < other.start for one, other in pairwise(ranges))
    text = ",".join(f"{first}-{last}" for first, last in ends)
    assert units.port_ranges(units.ports(text)) == ranges
