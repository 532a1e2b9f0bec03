# SPDX-License-Identifier: Apache-2.0
"""What the limiter costs a packet, what its table takes, and what it drops of a flood beside others."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import msgspec

from bench import flood
from bench.contenders import Limiter
from bench.report import Figure
from lab.flood import Flood, Kind, Plan
from tidegate.config.limits import Bucket, Limits, RateLimit
from tidegate.kernel.layouts import RATELIMIT_KEY, RATELIMIT_SOURCE, RATELIMIT_STATE

PORT, ROUNDS, RUNS = 443, 9, 1_000_000
SOURCES = {1000: "130 ns", 100_000: "450 ns"}
#: The default's example in deploy/tidegate.yaml.
LIMITS = Limits(syn=Bucket(rate=10, burst=20), packets=Bucket(rate=2000, burst=4000))
TABLES = {Kind.SYN: "ratelimit_syns", Kind.ACK: "ratelimit_sources"}
FIRST, PLACES, NEVER_SEEN = "1.0.0.0", 1_048_576, 100_000_000


def figures(_: Path) -> Iterator[Figure]:
    """Measure all."""
    yield from costs()
    yield full_table()
    yield from flood.figures()


def costs() -> Iterator[Figure]:
    """Measure the whole program on packets of known sources in turn."""
    for sources, target in SOURCES.items():
        for kind, table in TABLES.items():
            with Limiter(RateLimit(default=LIMITS), PORT) as limiter, made(kind, sources) as packets:
                entries = limiter.bpf.maps[table]
                for n in range(sources):
                    entries[_key(n)] = bytes(RATELIMIT_SOURCE.size)
                empty, whole = by_turns(packets, limiter)
            net = [b - a for a, b in zip(empty, whole, strict=True)]
            yield Figure(
                f"The limiter's program a packet, {sources:,} active sources, {kind.upper()}s",
                f"{statistics.median(net):.0f} ns",
                target,
                f"median of {ROUNDS} test runs of {RUNS:,} packets by turns with a program that does nothing, "
                f"less what that takes: {statistics.median(whole):.0f} and {statistics.median(empty):.0f} ns, the "
                f"making of each packet included; {min(net)} to {max(net)} ns",
            )


def full_table() -> Figure:
    """Measure packets of which each is of a source never seen, for which another has to go."""
    config = RateLimit(default=LIMITS, max_sources=PLACES)
    with Limiter(config, PORT) as limiter, made(Kind.SYN, NEVER_SEEN, FIRST) as packets:
        let_all_in = limiter.maps.state._replace(inserts=0xFFFFFFFF)
        limiter.bpf.maps["ratelimit_state"][bytes(4)] = RATELIMIT_STATE.pack(*let_all_in)
        packets.judged_by(limiter.program, 2 * PLACES)
        empty, whole = by_turns(packets, limiter)
        table = limiter.bpf.maps["ratelimit_syns"]
        entries = sum(count for count, _, _ in table.batches())
        memory = (table.memory() or 0) / 2**20
    net = [b - a for a, b in zip(empty, whole, strict=True)]
    return Figure(
        f"Packet of a new source with {PLACES:,} places, all taken",
        f"{statistics.median(net):.0f} ns, {memory:.0f} MiB",
        "900 ns",
        f"as above for the whole program, with the guard of inserts off, so that each packet pushes a source out: "
        f"{min(net)} to {max(net)} ns; {entries:,} entries at the end; memlock of fdinfo of one of the two tables",
    )


def by_turns(packets: Flood, limiter: Limiter) -> tuple[list[int], list[int]]:
    """Return the ns of a packet to a program that does nothing, and to the limiter's, in each round."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    empty, whole = [], []
    try:
        for _ in range(ROUNDS):
            empty.append(packets.judged_by(packets.program("dropped"), RUNS))
            whole.append(packets.judged_by(limiter.program, RUNS))
    finally:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    return empty, whole


def made(kind: Kind, sources: int, first: str = "172.16.0.0") -> Flood:
    """Return packets to a port that listens, of so many sources in turn."""
    to = {"mac": "02:00:00:00:00:02", "address": "192.0.2.1", "port": PORT, "interface": "lo", "cpu": 0}
    return Flood(msgspec.convert({**to, "kind": kind, "sources": sources, "first": first}, Plan))


def _key(number: int) -> bytes:
    address = (IPv4Address("172.16.0.0") + number).packed
    return RATELIMIT_KEY.pack(int.from_bytes(address, "little"), 1, 4, 0, 0)
