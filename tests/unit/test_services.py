# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.identity.cgroups import Services, decode_event, text_of, tree, walk
from tidegate.identity.services import KERNEL, UNKNOWN, Service, is_name, service_of
from tidegate.identity.workload import Kind, Workload
from tidegate.kernel.layouts import CgroupChange, TcpCgroup

pytestmark = pytest.mark.unit

ID = "f0d6c251b55ac04d5f83473d93d4fb1184c94894f133f7568a8b9657adeaf413"
SCOPE = f"/system.slice/docker-{ID}.scope"


@pytest.mark.parametrize(
    ("path", "service"),
    [
        ("/", "/"),
        ("", "/"),
        ("/system.slice/nginx.service", "nginx.service"),
        ("/system.slice/docker.service/init", "docker.service"),
        ("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service"),
        ("/system.slice/delegated.service/own.service/own.scope", "delegated.service"),
        ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope"),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/shell.service", "shell.service"),
        ("/user.slice/user-1000.slice/user@1000.service/init.scope", "user@1000.service"),
        ("/init.scope", "init.scope"),
        ("/batch/job-7", "/batch/job-7"),
        ("/.service", "/.service"),
    ],
)
def test_service_of_a_path(path: str, service: str) -> None:
    assert service_of(path) == Service(service)


@given(st.binary(max_size=300))
def test_any_bytes_become_printable_text(name: bytes) -> None:
    text = text_of(name)
    assert text.isprintable()
    text.encode("utf-8")


def event(id_: int, change: CgroupChange, path: bytes) -> bytes:
    return struct.pack("<QII", id_, change, len(path) + 1) + path + b"\0"


@given(st.binary(max_size=900).map(lambda b: b.replace(b"\0", b"x")))
def test_event_with_any_path_decodes(path: bytes) -> None:
    assert decode_event(event(7, CgroupChange.MADE, path)) == (7, CgroupChange.MADE, text_of(path), 0)


def test_ids_of_two_hierarchies_are_told_apart_and_a_path_is_one_service() -> None:
    unit = "/system.slice/nginx.service"
    services = Services(lambda: [(1, "/"), (5, unit)], others={7: lambda: [(1, "/"), (3, unit), (5, "/batch")]})
    assert services.of(5) == services.of(3, 7) == Service("nginx.service")
    assert services.of(1) == services.of(1, 7) == Service("/")
    assert services.of(5, 7) == Service("/batch")
    assert services.of(3) == services.of(5, 8) == UNKNOWN
    services.apply([struct.pack("<QHHI", 9, CgroupChange.MADE, 7, len(unit) + 1) + unit.encode() + b"\0"])
    assert services.of(9, 7) == Service("nginx.service")
    services.apply([struct.pack("<QHHI", 9, CgroupChange.REMOVED, 7, len(unit) + 1) + unit.encode() + b"\0"])
    assert services.of(9, 7) == Service("nginx.service")
    services.rescan()
    assert services.of(5, 7) == Service("/batch")


def test_walk_gives_inode_and_path(tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/a.slice/\xff\xfe.service"
    os.makedirs(odd)
    found = dict(walk(tmp_path))
    assert found[tmp_path.stat().st_ino] == "/"
    assert found[os.stat(odd).st_ino] == "/a.slice/\\xff\\xfe.service"
    assert len(found) == 3


def test_walk_of_a_missing_tree_is_empty(tmp_path: Path) -> None:
    assert list(walk(tmp_path / "none")) == []


def test_cgroup_made_after_the_walk_is_known_and_keeps_its_name_when_gone() -> None:
    services = Services(lambda: [(1, "/")])
    assert services.of(9) == UNKNOWN
    services.apply([event(9, CgroupChange.MADE, b"/system.slice/job.service")])
    assert services.of(9) == Service("job.service")
    services.apply([event(9, CgroupChange.REMOVED, b"/system.slice/job.service")])
    assert services.of(9) == Service("job.service")


def test_what_has_no_cgroup_or_one_that_nobody_saw_is_one_service() -> None:
    services = Services(lambda: [(1, "/")])
    assert {services.of(id_) for id_ in (0, *range(100, 1100))} == {UNKNOWN}


def test_a_gone_cgroup_that_still_has_traffic_keeps_its_name() -> None:
    services = Services(lambda: [(1, "/"), (2, "/old.service")])
    services.apply([removed(2, "/old.service")])
    for id_ in range(3, 10_003):
        services.apply([made(id_, f"/{id_}.service"), removed(id_, f"/{id_}.service")])
        assert services.of(2) == Service("old.service")
    assert services.of(10_002 - 4094) == Service(f"{10_002 - 4094}.service")
    assert services.of(10_002 - 4095) == UNKNOWN


def test_the_tree_is_the_hosts_where_that_is_seen(tmp_path: Path) -> None:
    mounted = Path("/sys/fs/cgroup")
    assert tree(tmp_path, mounted) == mounted
    of_host = tmp_path / "sys/fs/cgroup"
    of_host.mkdir(parents=True)
    assert tree(tmp_path, mounted) == mounted
    (of_host / "cgroup.procs").touch()
    assert tree(tmp_path, mounted) == of_host
    assert tree(Path("/"), of_host) == of_host


def test_names_of_gone_cgroups_are_bounded() -> None:
    services = Services(lambda: [(1, "/")])
    for id_ in range(2, 10_002):
        services.apply([event(id_, CgroupChange.MADE, b"/x/%d.service" % id_)])
        services.apply([event(id_, CgroupChange.REMOVED, b"/x/%d.service" % id_)])
    assert services.of(10_001) == Service("10001.service")
    assert services.of(2) == UNKNOWN


def test_rescan_finds_what_lost_events_would_have_told() -> None:
    tree = {1: "/", 2: "/old.service"}
    services = Services(lambda: list(tree.items()))
    del tree[2]
    tree[3] = "/new.service"
    services.rescan()
    assert services.of(2) == Service("old.service")
    assert services.of(3) == Service("new.service")


def test_a_unit_that_is_started_again_is_the_same_service() -> None:
    services = Services(lambda: [(1, "/"), (2, "/system.slice/web.service")])
    services.apply([removed(2, "/system.slice/web.service"), made(3, "/system.slice/web.service")])
    assert services.of(2) == services.of(3) == Service("web.service")


def test_an_id_that_comes_again_is_what_it_is_now() -> None:
    services = Services(lambda: [(1, "/")])
    services.apply([made(2, "/a.service"), removed(2, "/a.service"), made(2, "/b.service")])
    assert services.of(2) == Service("b.service")
    services.apply([removed(2, "/b.service")])
    assert services.of(2) == Service("b.service")


def made(id_: int, path: str) -> bytes:
    return event(id_, CgroupChange.MADE, path.encode())


def removed(id_: int, path: str) -> bytes:
    return event(id_, CgroupChange.REMOVED, path.encode())


class Engine:
    """Stands for an engine's files: names by container id, and who was asked for."""

    def __init__(self, **names: str) -> None:
        self.names = names
        self.asked: list[str] = []
        self.now = 0.0

    def name_of(self, workload: Workload) -> str:
        assert workload.kind is Kind.CONTAINER
        self.asked.append(workload.container_id)
        return self.names.get(workload.container_id, "")

    def services(self, *paths: str) -> Services:
        return Services(lambda: list(enumerate(paths, 1)), self.name_of, lambda: self.now)


def test_container_that_is_there_at_the_start_has_its_name_at_once() -> None:
    engine = Engine(**{ID: "web"})
    services = engine.services(
        "/", SCOPE, f"{SCOPE}/init.scope", "/system.slice/a.service", f"/kubepods/pod{ID[:32]}/{ID}"
    )
    assert [services.of(id_) for id_ in (2, 3, 4)] == [Service("web"), Service("web"), Service("a.service")]
    assert services.of(5) == Service(f"pod/{ID[:32]}", ID[:12])
    assert engine.asked == [ID]


def test_container_that_is_made_has_its_name_at_once() -> None:
    engine = Engine(**{ID: "web"})
    services = engine.services("/")
    services.apply([made(2, SCOPE)])
    services.apply([made(3, f"{SCOPE}/init.scope")])
    assert services.of(2) == services.of(3) == Service("web")
    services.of(4)
    assert engine.asked == [ID]


def test_container_that_is_gone_before_the_next_look_has_its_name() -> None:
    services = Engine(**{ID: "web"}).services("/")
    services.apply([made(2, SCOPE), removed(2, SCOPE)])
    assert services.of(2) == Service("web")


def test_container_of_which_only_the_end_was_seen_has_its_name() -> None:
    services = Engine(**{ID: "web"}).services("/")
    services.apply([removed(2, SCOPE)])
    assert services.of(2) == Service("web")


def test_name_that_comes_late_is_found() -> None:
    engine = Engine()
    services = engine.services("/", SCOPE)
    services.apply([made(3, f"{SCOPE}/a"), made(4, f"{SCOPE}/b"), removed(4, f"{SCOPE}/b")])
    assert services.of(2) == services.of(4) == Service("docker/f0d6c251b55a")
    engine.names[ID] = "web"
    services.apply([])
    assert [services.of(id_) for id_ in (2, 3, 4)] == [Service("web")] * 3


def test_name_that_never_comes_is_no_longer_asked_for_after_a_minute() -> None:
    engine = Engine()
    services = engine.services("/", SCOPE)
    for _ in range(200):
        engine.now += 1
        services.apply([])
    assert 50 < len(engine.asked) < 70


def test_name_of_a_container_that_is_gone_is_no_longer_asked_for() -> None:
    engine = Engine()
    services = engine.services("/", SCOPE)
    services.apply([removed(2, SCOPE)])
    before = len(engine.asked)
    services.apply([])
    assert len(engine.asked) == before


def test_container_that_is_started_again_may_have_another_name() -> None:
    engine = Engine(**{ID: "web"})
    services = engine.services("/", SCOPE, f"{SCOPE}/a")
    engine.names[ID] = "shop"
    services.apply([removed(3, f"{SCOPE}/a"), made(4, f"{SCOPE}/b")])
    assert services.of(4) == Service("web")
    services.apply([removed(4, f"{SCOPE}/b"), removed(2, SCOPE), made(5, SCOPE)])
    assert services.of(2) == Service("web")
    assert services.of(5) == Service("shop")


def test_names_survive_a_rescan() -> None:
    engine = Engine(**{ID: "web"})
    services = engine.services("/", SCOPE)
    services.rescan()
    assert services.of(2) == Service("web")
    assert engine.asked == [ID]


def test_new_containers_are_asked_for_before_nameless_ones() -> None:
    engine = Engine(**{ID: "web"})
    services = engine.services("/", *(f"/docker/{id_:064x}" for id_ in range(1000)))
    services.apply([made(2000, SCOPE)])
    assert services.of(2000) == Service("web")


def test_what_is_kept_of_containers_that_come_and_go_is_bounded() -> None:
    engine = Engine(**{f"{id_:064x}": "x" for id_ in range(0, 15_000, 2)})
    services = engine.services("/")
    for batch in range(100, 15_100, 500):
        events = []
        for id_ in range(batch, batch + 500):
            path = f"/docker/{id_:064x}"
            events += [made(id_, path), *([removed(id_, path)] if id_ % 3 else [])]
        services.apply(events)
    tables = {name: len(table) for name, table in vars(services).items() if isinstance(table, dict)}
    assert tables.pop("_here") == tables.pop("_paths") == 5000 + 1
    assert max(tables.values()) <= 4096


def test_the_kernels_own_row_is_no_cgroup_and_no_container_is_called_like_it() -> None:
    services = Services(lambda: [(1, "/")])
    assert services.of(TcpCgroup.KERNEL) == KERNEL
    assert not is_name(KERNEL.name)


def test_cgroups_of_a_service_are_those_that_are_there() -> None:
    services = Services(lambda: [(1, "/"), (2, "/a.service"), (3, "/a.service/b"), (4, "/c.service")])
    found = services.cgroups()
    assert found == {
        Service("/"): ["/"],
        Service("a.service"): ["/a.service", "/a.service/b"],
        Service("c.service"): ["/c.service"],
    }
    services.apply([])
    assert services.cgroups() is found
    services.apply([removed(4, "/c.service"), removed(3, "/a.service/b"), made(5, "/d.service")])
    assert services.cgroups() == {
        Service("/"): ["/"],
        Service("a.service"): ["/a.service"],
        Service("d.service"): ["/d.service"],
    }
    services.rescan()
    assert set(services.cgroups()) == {Service("/"), Service("a.service"), Service("c.service")}


def test_cgroups_of_a_container_are_found_under_its_name_once_that_is_known() -> None:
    engine = Engine()
    services = engine.services("/", SCOPE)
    assert services.cgroups()[Service("docker/f0d6c251b55a")] == [SCOPE]
    engine.names[ID] = "web"
    services.apply([])
    assert services.cgroups() == {Service("/"): ["/"], Service("web"): [SCOPE]}
