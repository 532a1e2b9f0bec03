# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidegate.identity.containers import ContainerNames
from tidegate.identity.services import is_name
from tidegate.identity.workload import Kind, Workload, workload_of

pytestmark = pytest.mark.unit

ID = "960873171e2e2058f2ac106ea9bfe5d7c737e8ebd358a39d2dd91548afd0ddeb"
OTHER_ID = "579635db3532e954d07927bdc32bd435bd082f03a0696ded072f04d762a18775"
DOCKER = f"var/lib/docker/containers/{ID}/config.v2.json"
PODMAN = "var/lib/containers/storage/overlay-containers/containers.json"
VOLATILE = "var/lib/containers/storage/overlay-containers/volatile-containers.json"
NERDCTL = "var/lib/nerdctl/1935db59/names/default"
# As the engines write them, shortened.
DOCKER_CONFIG = {"StreamConfig": {}, "State": {"Running": True}, "ID": ID, "Managed": False, "Name": "/gitea"}
PODMAN_INDEX = [
    {
        "id": ID,
        "names": ["contenedor1"],
        "image": "d7af31210b288164c319bae740ca1281528390a3c5cee657e95f243670b49e6a",
        "metadata": '{"image-name":"quay.io/centos7/httpd-24-centos7:latest","name":"contenedor1"}',
        "created": "2024-03-22T20:59:54.545266929Z",
        "flags": {"MountLabel": "system_u:object_r:container_file_t:s0:c14,c100"},
    },
    {"id": OTHER_ID, "layer": "67b0c66296f7957a0d82c8e48442ee0d7e3b3386dadde46cd8dadf3c90d40000"},
]


def put(root: Path, place: str, content: object) -> None:
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def name(root: Path, runtime: str, id_: str = ID) -> str:
    return ContainerNames.below(root).name_of(Workload(Kind.CONTAINER, container_id=id_, runtime=runtime))


@pytest.mark.parametrize("runtime", ["docker", "podman", "containerd", "crio", ""])
def test_nothing_there_gives_no_name(tmp_path: Path, runtime: str) -> None:
    assert name(tmp_path, runtime) == ""


def test_docker(tmp_path: Path) -> None:
    put(tmp_path, DOCKER, DOCKER_CONFIG)
    assert name(tmp_path, "docker") == "gitea"
    assert name(tmp_path, "docker", OTHER_ID) == ""
    assert name(tmp_path, "podman") == ""


def test_docker_elsewhere(tmp_path: Path) -> None:
    put(tmp_path, "etc/docker/daemon.json", {"data-root": "/srv/docker", "log-driver": "journald"})
    put(tmp_path, f"srv/docker/containers/{ID}/config.v2.json", DOCKER_CONFIG)
    assert name(tmp_path, "docker") == "gitea"


def test_podman(tmp_path: Path) -> None:
    put(tmp_path, PODMAN, PODMAN_INDEX)
    assert name(tmp_path, "podman") == "contenedor1"
    assert name(tmp_path, "podman", OTHER_ID) == ""


def test_podman_run_rm(tmp_path: Path) -> None:
    put(tmp_path, PODMAN, PODMAN_INDEX)
    put(tmp_path, VOLATILE, [{"id": OTHER_ID, "names": ["once"]}])
    assert name(tmp_path, "podman") == "contenedor1"
    assert name(tmp_path, "podman", OTHER_ID) == "once"


def test_podman_index_is_read_again_when_it_changed(tmp_path: Path) -> None:
    names = ContainerNames.below(tmp_path)
    later = Workload(Kind.CONTAINER, container_id=OTHER_ID, runtime="podman")
    put(tmp_path, PODMAN, PODMAN_INDEX)
    assert names.name_of(later) == ""
    put(tmp_path, PODMAN, [*PODMAN_INDEX[:1], {"id": OTHER_ID, "names": ["later"]}])
    assert names.name_of(later) == "later"
    (tmp_path / PODMAN).unlink()
    assert names.name_of(later) == ""


def test_nerdctl(tmp_path: Path) -> None:
    put(tmp_path, f"{NERDCTL}/web", ID.encode())
    put(tmp_path, f"{NERDCTL}/db", OTHER_ID.encode() + b"\n")
    assert name(tmp_path, "containerd") == "web"
    assert name(tmp_path, "containerd", OTHER_ID) == "db"


def test_nerdctl_is_read_again_when_it_changed(tmp_path: Path) -> None:
    names = ContainerNames.below(tmp_path)
    container = Workload(Kind.CONTAINER, container_id=ID, runtime="containerd")
    put(tmp_path, f"{NERDCTL}/db", OTHER_ID.encode())
    assert names.name_of(container) == ""
    put(tmp_path, f"{NERDCTL}/web", ID.encode())
    os.utime(tmp_path / NERDCTL, ns=(1, 1))
    assert names.name_of(container) == "web"


@pytest.mark.parametrize(
    "found",
    [
        "",
        "/",
        "//x",
        "/../../etc/passwd",
        "/a\nb",
        '/a"} 1',
        "/nginx.service",
        "/other",
        "/unknown",
        "/é",
        "/a\x1b[2J",
        "/" + "x" * 300,
    ],
)
def test_a_name_that_is_none_is_not_taken(tmp_path: Path, found: str) -> None:
    put(tmp_path, DOCKER, {"Name": found})
    put(tmp_path, PODMAN, [{"id": ID, "names": [found]}])
    assert name(tmp_path, "docker") == ""
    assert name(tmp_path, "podman") == ""


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"null", b"[]", b"{}", b'{"Name": 7}', b'{"Name": null}', b'[{"names": "x"}]'),
        *(b'{"Name": "\xff"}', b"[" * 100_000, b'{"Name": "x"}' + b" " * 1024 * 1024),
    ],
    ids=lambda content: content[:16].decode("ascii", "replace"),
)
def test_garbled_files_give_no_name(tmp_path: Path, content: bytes) -> None:
    put(tmp_path, DOCKER, content)
    put(tmp_path, PODMAN, content)
    put(tmp_path, f"{NERDCTL}/web", content)
    put(tmp_path, "etc/docker/daemon.json", content)
    assert [name(tmp_path, runtime) for runtime in ("docker", "podman", "containerd")] == ["", "", ""]


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_content_gives_a_name_or_none(tmp_path: Path, content: bytes) -> None:
    put(tmp_path, DOCKER, content)
    put(tmp_path, PODMAN, content)
    for runtime in ("docker", "podman"):
        found = name(tmp_path, runtime)
        assert not found or is_name(found)


def test_what_is_no_plain_file_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / DOCKER).parent.mkdir(parents=True)
    os.mkfifo(tmp_path / DOCKER)
    (tmp_path / PODMAN).mkdir(parents=True)
    put(tmp_path, "secret", [{"id": ID, "names": ["secret"]}])
    os.symlink(tmp_path / "secret", tmp_path / VOLATILE)
    (tmp_path / NERDCTL).mkdir(parents=True)
    os.mkfifo(tmp_path / NERDCTL / "web")
    assert [name(tmp_path, runtime) for runtime in ("docker", "podman", "containerd")] == ["", "", ""]


def test_names_of_any_bytes_in_the_store_of_nerdctl(tmp_path: Path) -> None:
    put(tmp_path, f"{NERDCTL}/web", ID.encode())
    Path(os.fsdecode(os.fsencode(tmp_path / NERDCTL) + b"/\xff")).write_text(OTHER_ID)
    assert name(tmp_path, "containerd") == "web"
    assert name(tmp_path, "containerd", OTHER_ID) == ""


def test_an_index_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    put(tmp_path, PODMAN, json.dumps(PODMAN_INDEX).encode() + b" " * 16 * 1024 * 1024)
    assert name(tmp_path, "podman") == ""


@pytest.mark.parametrize("path", [f"/kubepods/pod{ID[:32]}/{ID}", "/system.slice/a.service", "/lxc/web", "/"])
def test_only_plain_containers_are_looked_up(tmp_path: Path, path: str) -> None:
    put(tmp_path, DOCKER, DOCKER_CONFIG)
    assert ContainerNames.below(tmp_path).name_of(workload_of(path)) == ""
