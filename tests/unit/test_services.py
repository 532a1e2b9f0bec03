# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.identity.cgroups import Services, decode_event, text_of, walk
from tidegate.identity.services import Service, service_of
from tidegate.kernel.layouts import CgroupChange

pytestmark = pytest.mark.unit


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
    assert decode_event(event(7, CgroupChange.MADE, path)) == (7, CgroupChange.MADE, text_of(path))


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
    assert services.of(9) == Service("cgroup:9")
    services.apply([event(9, CgroupChange.MADE, b"/system.slice/job.service")])
    assert services.of(9) == Service("job.service")
    services.apply([event(9, CgroupChange.REMOVED, b"/system.slice/job.service")])
    assert services.of(9) == Service("job.service")


def test_names_of_gone_cgroups_are_bounded() -> None:
    services = Services(lambda: [(1, "/")])
    for id_ in range(2, 10_002):
        services.apply([event(id_, CgroupChange.MADE, b"/x/%d.service" % id_)])
        services.apply([event(id_, CgroupChange.REMOVED, b"/x/%d.service" % id_)])
    assert services.of(10_001) == Service("10001.service")
    assert services.of(2) == Service("cgroup:2")


def test_rescan_finds_what_lost_events_would_have_told() -> None:
    tree = {1: "/", 2: "/old.service"}
    services = Services(lambda: list(tree.items()))
    del tree[2]
    tree[3] = "/new.service"
    services.rescan()
    assert services.of(2) == Service("old.service")
    assert services.of(3) == Service("new.service")
