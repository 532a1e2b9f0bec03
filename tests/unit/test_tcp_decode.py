# SPDX-License-Identifier: Apache-2.0
"""Rows as the kernel wrote them (6.18, x86_64), recorded beside this file in data/.

What was done meanwhile: three connections to 127.0.0.1:18080, one that stayed open to it as ::ffff:127.0.0.1, one
that stayed open to [::1]:18081, two to 127.0.0.1:1, where nobody listens.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tidegate.kernel import layouts
from tidegate.model.fields import Role
from tidegate.model.snapshot import EndpointRow
from tidegate.signals.tcp import (
    COUNTERS,
    FAILURES,
    FIELDS,
    Counter,
    decode,
    decode_counts,
    difference,
    endpoint_text,
)

pytestmark = pytest.mark.unit
DATA = Path(__file__).parent / "data"


def recorded() -> dict[tuple[Role, str], tuple[tuple[int, ...], tuple[dict[int, int], ...]]]:
    keys, values = ((DATA / f"tcp_rows.{part}").read_bytes() for part in ("keys", "values"))
    return {(r.role, r.endpoint): (r.counters, r.histograms) for r in decode(keys, values)}


def test_recorded_rows() -> None:
    rows = recorded()
    assert set(rows) == {
        (Role.CLIENT, "127.0.0.1:1"),
        (Role.CLIENT, "127.0.0.1:18080"),
        (Role.CLIENT, "[::1]:18081"),
        (Role.SERVER, ":18080"),
        (Role.SERVER, ":18081"),
    }
    counters, (handshake,) = rows[Role.CLIENT, "127.0.0.1:18080"]
    assert counters[: Counter.FAILURES] == (4, 4, 3)
    assert counters[Counter.HANDSHAKE_NS] == 104276
    assert handshake == {8: 2, 9: 1, 33: 1}
    counters, (handshake,) = rows[Role.CLIENT, "127.0.0.1:1"]
    assert counters[: Counter.FAILURES] == (2, 0, 0)
    assert counters[Counter.FAILURES + FAILURES.index("refused")] == 2
    assert sum(counters[Counter.FAILURES : Counter.HANDSHAKE_NS]) == 2
    assert handshake == {}
    assert rows[Role.SERVER, ":18080"][0][: Counter.FAILURES] == (0, 4, 3)
    assert rows[Role.SERVER, ":18081"][0][: Counter.FAILURES] == (0, 1, 0)


@pytest.mark.parametrize(
    ("role", "family", "address", "port", "text"),
    [
        (0, 4, bytes([10, 0, 0, 6]) + bytes(12), 5000, "10.0.0.6:5000"),
        (0, 6, bytes([0xFD]) + bytes(14) + b"\6", 5000, "[fd00::6]:5000"),
        (0, 6, bytes(16), 65535, "[::]:65535"),
        (1, 0, bytes(16), 443, ":443"),
    ],
)
def test_endpoint_text(role: int, family: int, address: bytes, port: int, text: str) -> None:
    assert endpoint_text(role, family, address, port) == text


def test_difference_of_reads_survives_the_wrap_of_a_slot() -> None:
    before = ((1,) * COUNTERS, ({3: 0xFFFFFFFE, 5: 7},))
    now = ((4,) * COUNTERS, ({3: 2, 5: 7, 6: 1},))
    assert difference(now, before) == ((3,) * COUNTERS, ({3: 4, 6: 1},))


def test_difference_where_a_slot_wraps_to_nothing() -> None:
    before = ((1,) * COUNTERS, ({3: 0xFFFFFFFF},))
    assert difference(((1,) * COUNTERS, ({},)), before)[1] == ({3: 1},)


def test_counters_stand_where_their_names_say() -> None:
    counts = layouts.TcpCounts(1, 2, 3, struct.pack("<8Q", *range(10, 18)), 99, bytes(800))
    counters, _ = decode_counts(layouts.TCP_COUNTS.pack(*counts))
    assert counters == (1, 2, 3, *range(10, 18), 99)
    assert len(counters) == COUNTERS
    assert counters[Counter.HANDSHAKE_NS] == 99


def test_every_declared_field_is_an_attribute_of_the_row_with_help_and_unit() -> None:
    for field in FIELDS:
        assert field.name in EndpointRow.__struct_fields__
        assert field.help.endswith(".")
        assert field.unit
        assert len(field.bounds) < 12
