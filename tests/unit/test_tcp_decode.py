# SPDX-License-Identifier: Apache-2.0
"""Rows as the kernel wrote them (6.18, x86_64), recorded beside this file in data/.

What was done meanwhile: three connections to 127.0.0.1:18080 of 20 ms, each with a request of 100 bytes, an answer
of 1,000 and the client's close; one that stayed open to it as ::ffff:127.0.0.1, one that stayed open to
[::1]:18081; two to 127.0.0.1:1, where nobody listens.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tidegate.kernel import layouts
from tidegate.model.fields import Role
from tidegate.model.snapshot import EndpointRow
from tidegate.signals.counts import Counts, difference
from tidegate.signals.tcp import BATCH, Decoder, endpoint_text
from tidegate.signals.tcp_fields import CLOSERS, COUNTERS, DURATION, FAILURES, FIELDS, HISTOGRAMS, RESETS, Counter

pytestmark = pytest.mark.unit
DATA = Path(__file__).parent / "data"


def recorded() -> dict[tuple[Role, str], Counts]:
    keys, values = ((DATA / f"tcp_rows.{part}").read_bytes() for part in ("keys", "values"))
    records = list(Decoder().records(keys, values))
    assert {(r.endpoint, r.rtt_min_us) for r in records if r.rtt_min_us} == {
        ("127.0.0.1:18080", 5),
        ("[::1]:18081", 16),
        (":18080", 14),
        (":18081", 10),
    }
    assert {r.netns for r in records} == {4026531833}
    return {(r.role, r.endpoint): (r.counters, r.histograms) for r in records}


def test_recorded_rows() -> None:
    rows = recorded()
    assert set(rows) == {
        (Role.CLIENT, "127.0.0.1:1"),
        (Role.CLIENT, "127.0.0.1:18080"),
        (Role.CLIENT, "[::1]:18081"),
        (Role.SERVER, ":18080"),
        (Role.SERVER, ":18081"),
    }
    counters, (handshake, duration, rtt) = rows[Role.CLIENT, "127.0.0.1:18080"]
    assert counters[: Counter.FAILURES] == (4, 4, 0, 3)
    assert counters[Counter.CLOSES + CLOSERS.index("local")] == 3
    assert counters[Counter.SENT_BYTES : Counter.SEGMENTS_SENT] == (300, 3000)
    assert counters[Counter.EXCHANGES] == 3
    assert counters[Counter.HANDSHAKE_NS] == 105649
    assert handshake == {17: 2, 18: 1, 26: 1}
    assert duration == {49: 3}
    assert counters[Counter.DURATION_NS] / 3 == pytest.approx(0.02e9, rel=0.1)
    assert sum(rtt.values()) == 4
    counters, histograms = rows[Role.CLIENT, "127.0.0.1:1"]
    assert counters[: Counter.FAILURES] == (2, 0, 0, 0)
    assert counters[Counter.FAILURES + FAILURES.index("refused")] == 2
    assert counters[Counter.RESETS + RESETS.index("received")] == 2
    assert sum(counters[Counter.FAILURES : Counter.CLOSES]) == 2
    assert histograms == ({}, {}, {})
    counters, _ = rows[Role.SERVER, ":18080"]
    assert counters[: Counter.FAILURES] == (0, 4, 0, 3)
    assert counters[Counter.CLOSES + CLOSERS.index("remote")] == 3
    assert counters[Counter.SENT_BYTES : Counter.SEGMENTS_SENT] == (3000, 300)
    assert rows[Role.SERVER, ":18081"][0][: Counter.FAILURES] == (0, 1, 0, 0)


@pytest.mark.parametrize(
    ("role", "family", "address", "port", "text"),
    [
        (0, 4, bytes([10, 0, 0, 6]) + bytes(12), 5000, "10.0.0.6:5000"),
        (0, 6, bytes([0xFD]) + bytes(14) + b"\6", 5000, "[fd00::6]:5000"),
        (0, 6, bytes(16), 65535, "[::]:65535"),
        (1, 0, bytes(16), 443, ":443"),
        (1, 0, bytes(16), 0, ":*"),
    ],
)
def test_endpoint_text(role: int, family: int, address: bytes, port: int, text: str) -> None:
    assert endpoint_text(role, family, address, port) == text


def test_difference_of_reads_survives_the_wrap_of_a_slot() -> None:
    before: Counts = ((1,) * COUNTERS, ({3: 0xFFFFFFFE, 5: 7}, {}, {1: 1}))
    now: Counts = ((4,) * COUNTERS, ({3: 2, 5: 7, 6: 1}, {}, {1: 1}))
    assert difference(now, before) == ((3,) * COUNTERS, ({3: 4, 6: 1}, {}, {}))


def test_difference_where_a_slot_wraps_to_nothing() -> None:
    before: Counts = ((1,) * COUNTERS, ({3: 0xFFFFFFFF}, {}, {}))
    assert difference(((1,) * COUNTERS, ({}, {}, {})), before)[1] == ({3: 1}, {}, {})


def value(numbers: range, slots: dict[int, int]) -> bytes:
    """Return a ``struct tcp_counts`` with these counters, and counts at these places of its histograms' slots."""
    all_slots = [slots.get(place, 0) for place in range(sum(h.slots for h in HISTOGRAMS))]
    return struct.pack(f"<{COUNTERS}Q2I{len(all_slots)}I", *numbers, 7, 8, *all_slots)


def test_counters_stand_where_their_names_say() -> None:
    ((counters, _),) = Decoder().counts(value(range(COUNTERS), {}))
    assert counters == tuple(range(COUNTERS))
    names = {c.name.lower(): c for c in Counter}
    counts = layouts.TcpCounts._make(layouts.TCP_COUNTS.unpack(value(range(COUNTERS), {})))
    for name, found in counts._asdict().items():
        if name in names:
            first = found if isinstance(found, int) else int.from_bytes(found[:8], "little")
            assert first == names[name], name
    assert set(counts._fields) - set(names) == {"rtt_min_us", "netns", "handshake", "duration", "rtt"}


def test_histograms_of_many_rows_keep_apart() -> None:
    starts = [sum(h.slots for h in HISTOGRAMS[:n]) for n in range(len(HISTOGRAMS))]
    last = starts[1] + DURATION.slots - 1
    values = [
        value(range(COUNTERS), {starts[0]: n, starts[1]: 1, last: 2, starts[2] + n: 3}) for n in range(BATCH)
    ]
    found = list(Decoder().counts(b"".join(values)))
    assert [histograms for _, histograms in found] == [
        ({0: n} if n else {}, {0: 1, DURATION.slots - 1: 2}, {n: 3} if n < HISTOGRAMS[2].slots else {})
        for n in range(BATCH)
    ]


def test_more_rows_than_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match=f"at most {BATCH} values, found {BATCH + 1}"):
        list(Decoder().counts(bytes(layouts.TCP_COUNTS.size * (BATCH + 1))))


def test_every_declared_field_is_an_attribute_of_the_row_with_help_and_unit() -> None:
    for field in FIELDS:
        assert hasattr(EndpointRow, field.name)
        assert field.help.endswith(".")
        assert field.unit
        assert len(field.bounds) < 12
        assert list(field.bounds) == sorted(field.bounds)
