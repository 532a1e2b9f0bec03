# SPDX-License-Identifier: Apache-2.0
"""The node's row from two looks, and kills counted against the kernel's own count."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tidegate.identity.cgroups import Services
from tidegate.identity.services import OTHER, Service
from tidegate.kernel import layouts
from tidegate.model.resources import Pressure
from tidegate.resources.watch import AllCgroups, Kills, service_of
from tidegate.signals.cgroup_files import Stalls
from tidegate.signals.node import NodeSample, node_resources, sample
from tidegate.signals.oom import OomKill, decode

pytestmark = pytest.mark.unit

BEFORE = NodeSample(
    at=100.0,
    cpus=4,
    total=1000.0,
    busy=400.0,
    steal=10.0,
    memory_total=4096,
    memory_available=2048,
    oom_kills=3,
    stalls=(Stalls(5.0, 1.0), Stalls(2.0, None), None),
)
NOW = BEFORE._replace(
    at=102.0, total=1008.0, busy=405.0, steal=12.0, stalls=(Stalls(6.0, 1.5), Stalls(2.0, None), None)
)


def test_shares_are_of_the_time_between_two_looks() -> None:
    found = node_resources(BEFORE, NOW, virtual=True, oom_kills=7)
    assert (found.cpu, found.steal, found.steal_seconds) == (2.5, 0.25, 12.0)
    assert (found.memory_total, found.memory_available, found.oom_kills) == (4096, 2048, 7)
    assert found.pressure == {
        "cpu": Pressure(some_seconds=6.0, some=0.5, full_seconds=1.5, full=0.25),
        "memory": Pressure(some_seconds=2.0, some=0.0, full_seconds=None, full=None),
    }
    assert found.pressure_seconds == {("cpu", "some"): 6.0, ("cpu", "full"): 1.5, ("memory", "some"): 2.0}


def test_what_is_counted_back_is_no_negative_share() -> None:
    back = NOW._replace(busy=BEFORE.busy - 1e-9, steal=BEFORE.steal - 1)
    found = node_resources(BEFORE, back, virtual=True, oom_kills=0)
    assert (found.cpu, found.steal) == (0.0, 0.0)
    again = node_resources(BEFORE, BEFORE, virtual=True, oom_kills=0)
    assert (again.cpu, again.steal) == (None, None)


def test_bare_metal_has_no_steal_and_a_guest_that_lost_nothing_0() -> None:
    same = NOW._replace(steal=BEFORE.steal)
    bare = node_resources(BEFORE, same, virtual=False, oom_kills=0)
    assert (bare.steal, bare.steal_seconds) == (None, None)
    assert node_resources(BEFORE, same, virtual=True, oom_kills=0).steal == 0.0


def test_without_psi_there_is_no_pressure() -> None:
    without = [look._replace(stalls=(None, None, None)) for look in (BEFORE, NOW)]
    found = node_resources(*without, virtual=True, oom_kills=0)
    assert (found.pressure, found.pressure_seconds) == (None, None)


def test_files_that_are_missing_leave_their_values_out(tmp_path: Path) -> None:
    found = sample(1.0, pressure=True, proc=tmp_path)
    assert (found.oom_kills, found.stalls) == (None, (None, None, None))
    assert found.total > found.busy > 0
    (tmp_path / "vmstat").write_text("nr_free_pages 7\noom_kill 5\ndrop_pagecache 0\n")
    assert sample(1.0, pressure=True, proc=tmp_path).oom_kills == 5


def event(cgroup: int, *names: bytes) -> bytes:
    """Return a record as the program writes it: names from the victim's own cgroup upwards."""
    size = layouts.OomLimit.OOM_NAME_MAX
    path = b"".join(name.ljust(size, b"\0") for name in names)
    return struct.pack("<QII16s", cgroup, 77, len(names), b"python3") + path


def test_events_are_decoded() -> None:
    assert decode(event(5)) == OomKill(5, 77, b"python3", None)
    assert decode(event(5, b"web", b"pod1", b"kubepods")) == OomKill(5, 77, b"python3", b"/kubepods/pod1/web")
    longest = [b"x" * (layouts.OomLimit.OOM_NAME_MAX - 1)] * layouts.OomLimit.OOM_DEPTH
    assert decode(event(5, *longest)).path == b"/" + b"/".join(longest)


def services() -> Services:
    return Services(lambda: [(1, "/"), (2, "/system.slice/web.service")])


@pytest.mark.parametrize(
    ("cgroup", "path", "service"),
    [
        (2, None, "web.service"),
        (2, b"/elsewhere", "web.service"),
        (1, None, "/"),
        (1, b"/system.slice/db.service", "db.service"),
        (9, b"/system.slice/db.service", "db.service"),
        (9, None, "unknown"),
    ],
)
def test_whose_the_victim_was(cgroup: int, path: bytes | None, service: str) -> None:
    assert service_of(OomKill(cgroup, 7, b"x", path), services()) == Service(service)


def test_kills_are_counted_by_service_and_those_that_nobody_saw_apart() -> None:
    kills = Kills(services(), 100, most=1)
    assert kills.of_node(100) == 0
    kills.count([OomKill(2, 7, b"x", None)] * 3, 102)
    # The kernel's count was read before the events: it may be behind, and is no loss.
    assert (kills.by_service, kills.unattributed, kills.of_node(102)) == ({Service("web.service"): 3}, 0, 3)
    kills.count([], 105)
    assert (kills.unattributed, kills.of_node(105)) == (2, 5)
    kills.count([OomKill(1, 7, b"x", None)], 105)  # there is room for one service
    assert (kills.by_service, kills.unattributed) == ({Service("web.service"): 3, OTHER: 1}, 2)


def test_where_the_kernel_counts_no_kills_only_those_seen_are_known() -> None:
    kills = Kills(services(), None, most=9)
    kills.count([OomKill(2, 7, b"x", None)], None)
    assert (kills.unattributed, kills.of_node(None)) == (0, 1)


def test_cgroups_that_only_v1_has_are_found_and_looked_for_again_after_a_while(tmp_path: Path) -> None:
    for path in ("memory/system.slice/web.service", "memory/db.service", "cpu/db.service"):
        (tmp_path / path).mkdir(parents=True)
    known = services()
    all_ = AllCgroups(known, [tmp_path / "memory", tmp_path / "cpu"])
    found = all_.at(0.0)
    assert found == {
        Service("/"): ["/"],
        Service("web.service"): ["/system.slice/web.service"],
        Service("/system.slice"): ["/system.slice"],
        Service("db.service"): ["/db.service"],
    }
    (tmp_path / "cpu/batch.service").mkdir()
    assert all_.at(29.0) is found
    assert all_.at(30.0)[Service("batch.service")] == ["/batch.service"]


def test_a_cgroup_that_comes_to_cgroup2_later_is_there_once(tmp_path: Path) -> None:
    (tmp_path / "db.service").mkdir()
    known = services()
    all_ = AllCgroups(known, [tmp_path])
    assert all_.at(0.0)[Service("db.service")] == ["/db.service"]
    path = b"/db.service"
    known.apply([struct.pack("<QII", 9, layouts.CgroupChange.MADE, len(path) + 1) + path + b"\0"])
    assert all_.at(1.0)[Service("db.service")] == ["/db.service"]
