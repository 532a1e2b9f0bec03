# SPDX-License-Identifier: Apache-2.0
"""Which cgroups are read when, and the rows that come of it, over a made-up tree of cgroup2."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.unit.test_cgroup_files import write
from tidegate.identity.services import Service
from tidegate.model.resources import Executable, ResourceRow
from tidegate.resources.table import Resources, topmost
from tidegate.signals.cgroup_files import CgroupFiles

pytestmark = pytest.mark.unit
WEB = Service("web.service")
NGINX = Executable(name="nginx", version="1.22.1", path="/usr/sbin/nginx")


def cgroup(tree: Path, path: str, used: int, periods: int = 0, throttled: int = 0, **files: str) -> None:
    """Write a cgroup that has used so many seconds of CPU."""
    stat = f"usage_usec {used * 1_000_000}\n"
    stat += f"nr_periods {periods}\nnr_throttled {throttled}\nthrottled_usec {throttled * 100_000}\n"
    write(tree / path.lstrip("/"), cpu__stat=stat, **files)


def resources(tree: Path, *, per_second: int = 100, most: int = 100) -> Resources:
    return Resources(CgroupFiles(tree, {}), interval=1.0, per_second=per_second, most=most)


def rows(found: Resources) -> dict[tuple[str, str], ResourceRow]:
    return {(row.service, row.container): row for row in found.rows({}, {})}


def test_rates_are_of_the_time_between_a_cgroups_own_looks(tmp_path: Path) -> None:
    services = {WEB: ["/web.service"]}
    found = resources(tmp_path)
    cgroup(tmp_path, "/web.service", 100, 10, 5, cpu__max="100000 100000\n", memory__current="50\n")
    found.read(services, 10.0)
    (row,) = found.rows({}, {})
    assert (row.cpu_seconds, row.cpu, row.throttled, row.throttled_seconds) == (100.0, None, None, 0.5)
    assert (row.cpu_limit, row.memory, row.memory_working_set) == (1.0, None, None)
    cgroup(tmp_path, "/web.service", 106, 50, 25, memory__stat="inactive_file 20\n")
    found.read(services, 14.0)
    (row,) = found.rows({}, {})
    assert (row.cpu_seconds, row.cpu, row.throttled, row.throttled_seconds) == (106.0, 1.5, 0.5, 2.5)
    assert (row.cgroup, row.memory, row.memory_working_set) == ("/web.service", 50, 30)
    found.read(services, 18.0)
    (row,) = found.rows({}, {})
    assert (row.cpu_seconds, row.cpu, row.throttled) == (106.0, 0.0, 0.0)


def test_throttling_without_a_limit_of_its_own_is_not_measured(tmp_path: Path) -> None:
    found = resources(tmp_path)
    cgroup(tmp_path, "/web.service", 1)
    found.read({WEB: ["/web.service"]}, 1.0)
    found.read({WEB: ["/web.service"]}, 2.0)
    (row,) = found.rows({}, {})
    assert (row.throttled_seconds, row.throttled, row.cpu_limit) == (0.0, None, None)


def test_limits_above_hold_too_and_are_read_again_after_a_while(tmp_path: Path) -> None:
    found = resources(tmp_path)
    services = {WEB: ["/a.slice/b.slice/web.service"]}
    write(tmp_path / "a.slice", memory__max="1000\n", cpu__max="300000 100000\n")
    write(tmp_path / "a.slice/b.slice", memory__max="max\n", cpu__max="50000 100000\n")
    cgroup(tmp_path, services[WEB][0], 1, memory__max="2000\n")
    found.read(services, 0.0)
    (row,) = found.rows({}, {})
    assert (row.cpu_limit, row.memory_limit) == (0.5, 1000)
    cgroup(tmp_path, services[WEB][0], 1, memory__max="800\n", cpu__max="20000 100000\n")  # set a bit later
    found.read(services, 1.0)
    (row,) = found.rows({}, {})
    assert (row.cpu_limit, row.memory_limit) == (0.2, 800)
    write(tmp_path / "a.slice", memory__max="500\n")
    limits = {}
    for now in range(2, 61):
        found.read(services, float(now))
        limits[now] = found.rows({}, {})[0].memory_limit
    assert (limits[29], limits[60]) == (800, 500)


def test_totals_go_on_when_a_service_is_started_again(tmp_path: Path) -> None:
    found = resources(tmp_path)
    services = {WEB: ["/web.service"]}
    for now, used in enumerate((5, 7, 1, 2)):  # at 2 its cgroup was made anew
        cgroup(tmp_path, "/web.service", used)
        found.read(services, float(now))
    (row,) = found.rows({}, {})
    assert (row.cpu_seconds, row.cpu) == (9.0, 1.0)


def test_several_cgroups_of_a_service_are_summed_each_with_what_is_below_it_once(tmp_path: Path) -> None:
    found = resources(tmp_path)
    paths = ["/user-1/web.service", "/user-1/web.service/child", "/user-2/web.service"]
    limits = ("1000", "500", "2000")
    for n, path in enumerate(paths):
        cgroup(tmp_path, path, 10**n, memory__max=f"{limits[n]}\n", memory__current=f"{n + 1}\n")
        write(tmp_path / path.lstrip("/"), memory__stat="inactive_file 1\n")
    found.read({WEB: paths}, 0.0)
    (row,) = found.rows({}, {})
    assert (row.cpu_seconds, row.memory, row.memory_working_set, row.memory_limit) == (101.0, 4, 2, 3000)
    write(tmp_path / "user-2/web.service", memory__max="max\n")
    found.read({WEB: paths}, 31.0)
    assert found.rows({}, {})[0].memory_limit is None


def test_one_of_several_cgroups_that_goes_takes_nothing_off_the_total(tmp_path: Path) -> None:
    found = resources(tmp_path)
    paths = ["/a/web.service", "/b/web.service"]
    for path in paths:
        cgroup(tmp_path, path, 10)
    found.read({WEB: paths}, 0.0)
    shutil.rmtree(tmp_path / "b")
    found.read({WEB: paths[:1]}, 1.0)
    (row,) = found.rows({}, {})
    assert (row.cpu_seconds, row.cpu) == (20.0, 0.0)
    assert found.skipped() == {"cgroups": 0}


def test_slices_and_whole_pods_have_rows_only_with_processes_of_their_own(tmp_path: Path) -> None:
    found = resources(tmp_path)
    services = {
        Service("/"): ["/"],
        Service("/a.slice"): ["/a.slice"],
        Service("/batch"): ["/batch"],
        Service("pod/1"): ["/pod1"],
        Service("pod/1", "c"): ["/pod1/c"],
        WEB: ["/web.service"],
    }
    for paths in services.values():
        cgroup(tmp_path, paths[0], 1, cgroup__procs="")
    write(tmp_path / "batch", cgroup__procs="7\n")
    write(tmp_path, cgroup__procs="1\n")
    found.read(services, 0.0)
    assert set(rows(found)) == {("/batch", ""), ("pod/1", "c"), ("web.service", "")}
    write(tmp_path / "batch", cgroup__procs="")
    found.read(services, 1.0)
    assert set(rows(found)) == {("pod/1", "c"), ("web.service", "")}


def test_a_cgroup_that_goes_before_it_is_read_is_skipped_and_counted_once(tmp_path: Path) -> None:
    found = resources(tmp_path)
    services = {WEB: ["/web.service"], Service("b.service"): ["/b.service"]}
    cgroup(tmp_path, "/b.service", 1)
    for now in range(3):
        found.read(services, float(now))
    assert set(rows(found)) == {("b.service", "")}
    assert found.skipped() == {"cgroups": 1}
    shutil.rmtree(tmp_path / "b.service")
    found.read(services, 3.0)
    assert rows(found) == {}
    assert found.skipped() == {"cgroups": 1}


def test_readings_are_spread_where_there_are_many(tmp_path: Path) -> None:
    names = [f"{n}.service" for n in range(10)]
    services = {Service(name): [f"/{name}"] for name in names}
    found = resources(tmp_path, per_second=4)

    def read(now: float, used: int) -> list[str]:
        for name in names:
            cgroup(tmp_path, name, used)
        found.read(services, now)
        return [row.service for row in found.rows({}, {}) if row.cpu_seconds == used]

    assert sorted(read(0.0, 1)) == names  # all of them at the start
    turns = [read(float(now), now + 1) for now in range(1, 6)]
    assert [len(turn) for turn in turns] == [4, 4, 4, 4, 4]
    assert sorted(turns[0] + turns[1] + [name for name in turns[2] if name not in turns[0]]) == names
    assert read(5.1, 9) == []
    assert len(read(5.3, 10)) == 1


def test_a_service_is_not_read_more_often_than_asked_for(tmp_path: Path) -> None:
    found = resources(tmp_path)
    services = {WEB: ["/web.service"]}
    for tenth in range(25):
        cgroup(tmp_path, "/web.service", tenth)
        found.read(services, tenth / 10)
    (row,) = found.rows({}, {})
    assert row.cpu_seconds == 18.0  # read at 0, 0.9 and 1.8


def test_a_new_service_is_read_before_those_that_wait(tmp_path: Path) -> None:
    services = {Service(f"{n}.service"): [f"/{n}.service"] for n in range(100)}
    found = resources(tmp_path, per_second=2, most=200)
    for paths in services.values():
        cgroup(tmp_path, paths[0], 1)
    found.read(services, 0.0)
    cgroup(tmp_path, "/web.service", 1)
    found.read({**services, WEB: ["/web.service"]}, 1.0)
    assert ("web.service", "") in rows(found)


def test_services_that_find_no_place_are_counted_once(tmp_path: Path) -> None:
    found = resources(tmp_path, most=2)
    services = {Service(f"{n}.service"): [f"/{n}.service"] for n in range(5)}
    for paths in services.values():
        cgroup(tmp_path, paths[0], 1)
    for now in range(3):
        found.read(dict(services), float(now))
    assert len(rows(found)) == 2
    assert found.losses() == {"resources_full": 3}


def test_kills_and_programs_are_in_the_row_also_where_nothing_else_is_known(tmp_path: Path) -> None:
    found = resources(tmp_path)
    cgroup(tmp_path, "/web.service", 1)
    found.read({WEB: ["/web.service"]}, 0.0)
    gone = Service("gone.service")
    here, bare = found.rows({WEB: 2, gone: 1}, {WEB: (NGINX,)})
    assert (here.service, here.oom_kills, here.executables, here.cpu_seconds) == ("web.service", 2, (NGINX,), 1.0)
    assert (bare.service, bare.oom_kills, bare.executables, bare.cpu_seconds) == ("gone.service", 1, (), None)
    assert found.rows({WEB: 2, gone: 1}, {WEB: (NGINX,)})[0] is here
    found.read({WEB: ["/web.service"]}, 1.0)
    assert found.rows({WEB: 2}, {WEB: (NGINX,)})[0].oom_kills == 2
    (unknown,) = found.rows(None, {})
    assert unknown.oom_kills is None


def test_topmost_cgroups() -> None:
    assert topmost(["/a/b", "/a", "/a-b/c", "/a/b/c", "/x/y"]) == ("/a", "/a-b/c", "/x/y")
    assert topmost(["/"]) == ()
