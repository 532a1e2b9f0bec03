# SPDX-License-Identifier: Apache-2.0
"""What ``tidegate config memory`` foretells, against what the kernel says of the maps that it has really made."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.lab.limited import Limited
from tidegate.config import Config, parse
from tidegate.footprint import footprint
from tidegate.identity.cgroups import CgroupWatch
from tidegate.kernel.charge import charge
from tidegate.kernel.maps import Map
from tidegate.kernel.objects import BpfObject, map_health, possible_cpus
from tidegate.ratelimit import policy
from tidegate.ratelimit.lists import keys_of
from tidegate.signals import disk, tcp
from tidegate.signals.oom import OomSignal
from tidegate.signals.ports import PortsSignal

pytestmark = pytest.mark.kernel

CONFIG = parse(
    b"""
signals:
  tcp: {max_rows: 1000, max_sockets: 5000}
  ports: {max_rows: 700}
  disk: {max_rows: 300, max_requests: 3000}
rate_limit:
  interfaces: [eth0]
  max_sources: 40000
  sketch_cells: 8192
  max_prefixes: 60000
  max_bans: 100000
""",
    "f",
)
#: Fills a map with as many entries as it may have, all different. What it needs itself it has before.
FILL = """
import random
from tidegate.kernel.objects import BpfObject
with BpfObject.named(sys.argv[1]) as bpf:
    bpf.set_max_entries(sys.argv[2], int(sys.argv[3]))
    table, start = bpf.load().maps[sys.argv[2]], bytes.fromhex(sys.argv[4])
    numbers = random.Random(1).sample(range(1 << 32), table.max_entries)
    keys = [(start + n.to_bytes(4, "big")).ljust(table.key_size, bytes(1)) for n in numbers]
    value = bytes(table.value_size)
    print("made", flush=True)
    sys.stdin.readline()
    for key in keys:
        table[key] = value
    print("full", flush=True)
    sys.stdin.readline()
"""


def memlock(of: Map) -> int:
    found = re.search(r"memlock:\s+(\d+)", Path(f"/proc/self/fdinfo/{of.fd}").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1])


@pytest.fixture
def started() -> Iterator[dict[str, BpfObject]]:
    """What the agent loads for CONFIG, in its own ways; not attached where hashes would fill."""
    signals = CONFIG.signals
    with ExitStack() as stack:
        cgroups = stack.enter_context(closing(CgroupWatch.start([1])))
        kills = stack.enter_context(closing(OomSignal.start()))
        loaded, _ = tcp.load(signals.tcp.max_rows, signals.tcp.max_sockets, signals.ports.max_rows)
        connections = stack.enter_context(closing(tcp.TcpSignal(loaded)))
        held = stack.enter_context(closing(PortsSignal.start(signals.ports.max_rows, connections)))
        devices, _ = disk.load(signals.disk.max_rows, signals.disk.max_requests)
        stack.enter_context(devices)
        limiter = stack.enter_context(BpfObject.named("ratelimit"))
        limiter.resize(policy.sizes(CONFIG.rate_limit))
        limiter.load()
        yield {
            "cgroup": cgroups.bpf,
            "oom": kills.bpf,
            "tcp": connections.bpf,
            "ports": held.bpf,
            "disk": devices,
            "ratelimit": limiter,
        }


def test_maps_take_from_the_start_what_is_foretold(started: dict[str, BpfObject]) -> None:
    cpus = possible_cpus()
    for bpf in started.values():
        for shape in bpf.shapes():
            foretold, found = charge(shape, cpus).bytes, memlock(bpf.maps[shape.name])
            # Of a map of one entry, the kernel's own struct is the most, which differs between kernels.
            assert abs(foretold - found) <= max(0.1 * found, 128), shape
    rows = footprint(CONFIG, cpus)
    shapes = [shape for bpf in started.values() for shape in bpf.shapes()]
    assert sorted((row.map.split(": ")[-1], row.entries) for row in rows) == sorted(
        (shape.name, shape.max_entries) for shape in shapes
    )
    total = sum(memlock(bpf.maps[shape.name]) for bpf in started.values() for shape in bpf.shapes())
    assert sum(row.bytes for row in rows) == pytest.approx(total, rel=0.1)


@pytest.fixture
def cgroup() -> Iterator[Limited]:
    with Limited(f"/tidegate-footprint-{os.getpid()}") as made:
        yield made


# A kernel keeps some charges for each CPU before it takes them from the cgroup: the maps are large beside those.
@pytest.mark.parametrize(
    ("name", "table", "entries", "start"),
    [
        ("ratelimit", "ratelimit_bans", 100_000, ""),
        ("ratelimit", "ratelimit_allowed", 60_000, "80000000" + "00" * 10 + "ffff"),
        ("tcp", "tcp_rows_a", 6000, ""),
        ("tcp", "tcp_sockets", 100_000, ""),
        ("ports", "ports_listeners", 100_000, ""),
    ],
)
def test_full_maps_take_what_is_foretold(cgroup: Limited, name: str, table: str, entries: int, start: str) -> None:
    with BpfObject.named(name) as bpf:
        bpf.set_max_entries(table, entries)
        foretold = charge(next(shape for shape in bpf.shapes() if shape.name == table), possible_cpus())
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with cgroup.start(FILL, name, table, str(entries), start, **pipes) as filler:
        assert filler.stdin is not None
        assert filler.stdout is not None
        assert filler.stdout.readline() == "made\n"
        before = cgroup.memory()
        filler.stdin.write("\n")
        filler.stdin.flush()
        assert filler.stdout.readline() == "full\n"
        assert cgroup.memory() - before == pytest.approx(foretold.most - foretold.bytes, rel=0.1)
        filler.stdin.write("\n")
        filler.stdin.close()
    assert filler.returncode == 0


def test_counts_are_kept_for_each_interface() -> None:
    config = parse(b"rate_limit: {interfaces: [eth0, eth1]}", "f")
    one, two = ({row.map: row for row in footprint(c, 2)} for c in (CONFIG, config))
    assert two["ratelimit_counts"].bytes == 2 * one["ratelimit_counts"].bytes
    assert two["ratelimit_notes"].maps == 1


def test_without_interfaces_and_disks_there_are_no_maps_of_them() -> None:
    maps = {row.map.split("_")[0] for row in footprint(Config(), 2)}
    assert {"tcp", "ports", "disk", "oom", "cgroup"} <= maps
    assert "ratelimit" not in maps
    without = footprint(parse(b"signals: {disk: {enabled: false}}", "f"), 2)
    assert not any(row.map.startswith("disk") for row in without)


def test_tries_show_how_full_they_are() -> None:
    with BpfObject.named("ratelimit").load() as limiter:
        allowed = limiter.maps["ratelimit_allowed"]
        assert (allowed.entries(), allowed.memory()) == (0, 0)
        for key in {key for network in ("10.0.0.0/8", "2001:db8::/32", "::/0") for key in keys_of(network)}:
            allowed[key] = bytes(8)
        assert allowed.entries() == 98
        assert map_health(limiter)["ratelimit_allowed"].limit == allowed.max_entries
        assert allowed.memory() == memlock(allowed) > 0
