# SPDX-License-Identifier: Apache-2.0
"""The files of cgroups, as kernels wrote them: cgroup2 alone, v1 alone, both at once, and what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidegate.signals.cgroup_files import CgroupFiles, Limits, Stalls, least, value

pytestmark = pytest.mark.unit

PRESSURE = (
    "some avg10=33.77 avg60=15.53 avg300=4.80 total=932963584\n"
    "full avg10=0.00 avg60=0.00 avg300=0.00 total=16784190\n"
)
CPU2 = "usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\n"
QUOTA2 = "nr_periods 40\nnr_throttled 10\nthrottled_usec 1500000\nnr_bursts 0\nburst_usec 0\n"
MEMORY2 = "anon 4096\nfile 8192\ninactive_anon 1\nactive_anon 2\ninactive_file 3000\nactive_file 5\n"
MEMORY1 = "cache 1\ninactive_file 7\nhierarchical_memory_limit 64\ntotal_inactive_file 2000\ntotal_active_file 4\n"
UNLIMITED1 = "9223372036854771712\n"


def write(directory: Path, **files: str) -> None:
    """Write files whose names have a dot for each double underscore."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text)


@pytest.fixture
def unified(tmp_path: Path) -> CgroupFiles:
    write(
        tmp_path / "pod/web",
        cpu__stat=CPU2 + QUOTA2,
        cpu__max="50000 100000\n",
        memory__current="10000\n",
        memory__max="max\n",
        memory__stat=MEMORY2,
        cpu__pressure=PRESSURE,
        memory__pressure=PRESSURE.splitlines()[0] + "\n",
        cgroup__procs="12\n34\n",
    )
    return CgroupFiles(tmp_path, {})


@pytest.fixture
def hybrid(tmp_path: Path) -> CgroupFiles:
    write(tmp_path / "unified/web", cpu__stat=CPU2, io__pressure=PRESSURE)
    write(tmp_path / "unified/alone", cpu__stat=CPU2)
    write(
        tmp_path / "cpu/web",
        cpu__stat="nr_periods 4\nnr_throttled 1\nthrottled_time 250000000\n",
        cpu__cfs_quota_us="25000\n",
        cpu__cfs_period_us="50000\n",
        cpuacct__usage="1250000000\n",
    )
    write(tmp_path / "cpu/free", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    write(
        tmp_path / "memory/web",
        memory__usage_in_bytes="9000\n",
        memory__limit_in_bytes="65536\n",
        memory__stat=MEMORY1,
        cgroup__procs="56\n",
    )
    write(tmp_path / "memory/free", memory__limit_in_bytes=UNLIMITED1)
    cpu = tmp_path / "cpu"
    return CgroupFiles(tmp_path / "unified", {"cpu": cpu, "cpuacct": cpu, "memory": tmp_path / "memory"})


def test_cgroup2_has_all(unified: CgroupFiles) -> None:
    found = unified.read("/pod/web")
    assert (found.cpu_seconds, found.periods, found.throttled, found.throttled_seconds) == (2.5, 40, 10, 1.5)
    assert (found.memory, found.inactive_file) == (10000, 3000)
    assert found.stalls == (Stalls(932.963584, 16.78419), Stalls(932.963584, None), None)
    assert unified.limits("/pod/web") == Limits(0.5, None)
    assert unified.processes("/pod/web") == [12, 34]


def test_v1_controllers_are_joined_by_path(hybrid: CgroupFiles) -> None:
    found = hybrid.read("/web")
    assert (found.cpu_seconds, found.periods, found.throttled, found.throttled_seconds) == (1.25, 4, 1, 0.25)
    assert (found.memory, found.inactive_file) == (9000, 2000)
    assert found.stalls == (None, None, Stalls(932.963584, 16.78419))
    assert hybrid.limits("/web") == Limits(0.5, 65536)
    assert hybrid.limits("/free") == Limits(None, None)
    assert hybrid.processes("/web") == [56]


def test_what_is_in_cgroup2_alone_has_its_cpu_time_from_there(hybrid: CgroupFiles) -> None:
    found = hybrid.read("/alone")
    assert (found.cpu_seconds, found.periods, found.memory) == (2.5, None, None)
    assert not found.is_empty


def test_controllers_that_are_not_enabled_leave_their_values_out(tmp_path: Path) -> None:
    write(tmp_path / "a", cpu__stat=CPU2)
    files = CgroupFiles(tmp_path, {})
    found = files.read("/a")
    assert (found.cpu_seconds, found.periods, found.throttled, found.throttled_seconds) == (2.5, None, None, None)
    assert (found.memory, found.inactive_file, set(found.stalls)) == (None, None, {None})
    assert files.limits("/a") == Limits(None, None)


def test_stalls_are_not_looked_for_where_the_kernel_keeps_none(tmp_path: Path) -> None:
    write(tmp_path / "pod/web", cpu__pressure=PRESSURE)
    assert CgroupFiles(tmp_path, {}).read("/pod/web").stalls[0] is not None
    assert set(CgroupFiles(tmp_path, {}, pressure=False).read("/pod/web").stalls) == {None}


def test_a_cgroup_that_is_gone_is_empty(unified: CgroupFiles, hybrid: CgroupFiles) -> None:
    for files in (unified, hybrid, CgroupFiles(None, {})):
        assert files.read("/gone").is_empty
        assert files.limits("/gone") == Limits(None, None)
        assert files.processes("/gone") == []


def test_values_are_found_at_the_begin_of_a_line_alone() -> None:
    text = b"total_inactive_file 7\ninactive_file 3\nlast 9"
    assert value(text, b"inactive_file") == 3
    assert value(text, b"total_inactive_file") == 7
    assert value(text, b"last") == 9
    assert value(text, b"active_file") is None
    assert value(text, b"inactive") is None


def test_the_least_limit_holds() -> None:
    assert least([Limits(None, 10), Limits(2.0, None), Limits(0.5, 20)]) == Limits(0.5, 10)
    assert least([Limits(None, None)]) == Limits(None, None)
