# SPDX-License-Identifier: Apache-2.0
"""TCP connections: who connects to whom, what fails and why, how long the handshake takes."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from enum import IntEnum
from functools import lru_cache
from typing import Any, Self

from tidegate.kernel import layouts
from tidegate.kernel.maps import Map, SwappedTables
from tidegate.kernel.objects import BpfObject, map_health
from tidegate.model.fields import Field, Kind, Role
from tidegate.model.record import Record
from tidegate.model.snapshot import MapHealth

HANDSHAKE_SHIFT = int(layouts.Histogram.HANDSHAKE_SHIFT)
FAILURES = tuple(f.name.lower() for f in layouts.TcpFailure if f is not layouts.TcpFailure.COUNT)


class Counter(IntEnum):
    """Where each count stands in ``Record.counters``; the failures stand in the order of FAILURES."""

    CONNECTS = 0
    ESTABLISHED = 1
    CLOSED = 2
    FAILURES = 3
    HANDSHAKE_NS = 3 + layouts.TcpFailure.COUNT


COUNTERS = Counter.HANDSHAKE_NS + 1
CLIENT, SERVER = frozenset({Role.CLIENT}), frozenset({Role.SERVER})

#: Upper bounds of the exported handshake buckets in ns: powers of two, which are edges of kernel slots.
HANDSHAKE_BOUNDS = tuple(1 << exponent for exponent in range(16, 38, 2))

FIELDS = (
    Field(
        name="connects",
        metric="tcp_connects_total",
        kind=Kind.COUNTER,
        unit="connections",
        help="Connections that the service began to open (SYN to be sent).",
        roles=CLIENT,
    ),
    Field(
        name="accepts",
        metric="tcp_accepts_total",
        kind=Kind.COUNTER,
        unit="connections",
        help="Connections that clients opened to a port of the service.",
        roles=SERVER,
    ),
    Field(
        name="established",
        metric="tcp_connections_established_total",
        kind=Kind.COUNTER,
        unit="connections",
        help="Connections whose handshake was completed.",
    ),
    Field(
        name="failures",
        metric="tcp_connect_failures_total",
        kind=Kind.COUNTER,
        unit="connections",
        label="reason",
        help="Connections that came to nothing, by reason; reset: established, then reset by the peer "
        "before it had sent a byte.",
        roles=CLIENT,
    ),
    Field(
        name="open",
        metric="tcp_open_connections",
        kind=Kind.GAUGE,
        unit="connections",
        help="Established connections that neither the service has closed nor its peer has ended.",
    ),
    Field(
        name="handshake",
        metric="tcp_handshake_seconds",
        kind=Kind.HISTOGRAM,
        unit="seconds",
        help="From the first SYN to the established connection, retransmits included.",
        roles=CLIENT,
        bounds=tuple(bound / 1e9 for bound in HANDSHAKE_BOUNDS),
    ),
)


@lru_cache(maxsize=65536)
def endpoint_text(role: int, family: int, address: bytes, port: int) -> str:
    """Return the listening side as people write it: ``10.0.0.6:5000``, ``[fd00::6]:5000``, ``:5000``."""
    if role == layouts.TcpRole.SERVER:
        return f":{port}"
    if family == 4:
        return f"{ipaddress.IPv4Address(address[:4])}:{port}"
    return f"[{ipaddress.IPv6Address(address)}]:{port}"


def decode_counts(value: bytes) -> tuple[tuple[int, ...], tuple[dict[int, int], ...]]:
    """Turn one ``struct tcp_counts`` into (counters, histograms)."""
    counts = layouts.TcpCounts._make(layouts.TCP_COUNTS.unpack(value))
    failures = layouts.TCP_COUNTS_FAILURES.unpack(counts.failures)
    counters = (counts.connects, counts.established, counts.closed, *failures, counts.handshake_ns)
    if not counts.handshake_ns:
        return counters, ({},)
    slots = layouts.TCP_COUNTS_HANDSHAKE.unpack(counts.handshake)
    return counters, ({slot: count for slot, count in enumerate(slots) if count},)


def decode(keys: Any, values: Any) -> Iterator[Record]:
    """Turn the keys and values of a batch, each one after the other, into records."""
    size = layouts.TCP_COUNTS.size
    for i, fields in enumerate(layouts.TCP_KEY.iter_unpack(keys)):
        key = layouts.TcpKey._make(fields)
        counters, histograms = decode_counts(values[i * size : (i + 1) * size])
        yield Record(
            key.cgroup,
            Role.SERVER if key.role == layouts.TcpRole.SERVER else Role.CLIENT,
            endpoint_text(key.role, key.family, key.address, key.port),
            counters,
            histograms,
        )


class TcpSignal:
    """The running TCP programs and what they have counted since the last read."""

    name = "tcp"
    fields = FIELDS

    def __init__(self, bpf: BpfObject) -> None:
        self.bpf = bpf
        self._rows = SwappedTables(bpf.maps["tcp_rows"], [bpf.maps["tcp_rows_a"], bpf.maps["tcp_rows_b"]])
        self._other = bpf.maps["tcp_other"]
        self._seen_other = [bytes(self._other.value_size)] * layouts.TcpRole.COUNT
        self.entries = 0

    @classmethod
    def start(cls, max_rows: int, max_sockets: int) -> Self:
        """Load and attach.

        ``max_rows`` is how many (service, role, endpoint) one interval may have, ``max_sockets`` how many
        connections are followed at a time.
        """
        bpf = BpfObject.named("tcp")
        try:
            # The template in tcp_rows keeps its size: since 5.10 (134fede4eecf) inner hashes may differ in it.
            for table in ("tcp_rows_a", "tcp_rows_b"):
                bpf.set_max_entries(table, max_rows)
            bpf.set_max_entries("tcp_sockets", max_sockets)
            row = (layouts.TCP_KEY.size, layouts.TCP_COUNTS.size)
            bpf.load({"tcp_rows_a": row, "tcp_rows_b": row, "tcp_other": (4, row[1])}).attach()
        except BaseException:
            bpf.close()
            raise
        return cls(bpf)

    def read(self) -> list[Record]:
        """Return what was counted since the last read."""
        records: list[Record] = []
        for _, keys, values in self._rows.drain():
            records.extend(decode(keys, values))
        self.entries = len(records)
        records.extend(self._read_other())
        return records

    def losses(self) -> dict[str, int]:
        """Return what the programs had to leave out since they were loaded."""
        return {
            f"tcp_{reason.name.lower()}": read_counter(self.bpf.maps["tcp_losses"], reason)
            for reason in layouts.TcpLoss
            if reason is not layouts.TcpLoss.COUNT
        }

    def maps(self) -> dict[str, MapHealth]:
        """Return how full the maps are; the two tables and their selector are one, ``tcp_rows``."""
        maps = map_health(self.bpf)
        parts = [maps.pop(name) for name in ("tcp_rows_a", "tcp_rows_b", "tcp_rows")]
        size = sum(part.bytes or 0 for part in parts)
        return {"tcp_rows": MapHealth(entries=self.entries, limit=parts[0].limit, bytes=size), **maps}

    def close(self) -> None:
        """Detach and unload."""
        self.bpf.close()

    def _read_other(self) -> Iterable[Record]:
        for role in (layouts.TcpRole.CLIENT, layouts.TcpRole.SERVER):
            before, now = self._seen_other[role], self._other[role.to_bytes(4, "little")]
            if now == before:
                continue
            self._seen_other[role] = now
            counters, histograms = difference(decode_counts(now), decode_counts(before))
            yield Record(None, Role(role.name.lower()), "other", counters, histograms)


def read_counter(array: Map, index: int) -> int:
    """Read one u64 of an array map."""
    return int.from_bytes(array[index.to_bytes(4, "little")], "little")


Counts = tuple[tuple[int, ...], tuple[dict[int, int], ...]]


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
