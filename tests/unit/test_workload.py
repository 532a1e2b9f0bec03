# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tidegate.identity.cgroups import text_of
from tidegate.identity.services import OTHER, UNKNOWN, Service, is_name, service, service_of
from tidegate.identity.workload import Kind, Workload, unescape, workload_of

pytestmark = pytest.mark.unit

TREES = Path(__file__).parent / "data" / "cgroups"
ID = "f0d6c251b55ac04d5f83473d93d4fb1184c94894f133f7568a8b9657adeaf413"
UID = "85af8291-287b-44b0-897e-c4e6a9c8512b"


def recorded(tree: Path) -> list[tuple[str, Service]]:
    lines = tree.read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    return [(path, Service(name, container)) for path, name, container in rows]


@pytest.mark.parametrize("tree", sorted(TREES.glob("*.txt")), ids=lambda tree: tree.stem)
def test_recorded_tree(tree: Path) -> None:
    rows = recorded(tree)
    assert rows
    assert [(path, service_of(path)) for path, _ in rows] == rows


@pytest.mark.parametrize("tree", sorted(TREES.glob("*.txt")), ids=lambda tree: tree.stem)
def test_recorded_tree_says_where_it_is_from(tree: Path) -> None:
    assert tree.read_text(encoding="utf-8").startswith("# ")


def processes(name: str) -> list[dict[str, tuple[str, Service]]]:
    """Return recorded processes of hybrid hosts: path and service by hierarchy, cgroup2 as an empty name."""
    text = (TREES.with_name("hybrid") / name).read_text(encoding="utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    found = []
    for block in lines.split("\n\n"):
        rows = [line.split("\t") for line in block.splitlines()]
        found.append({hierarchy: (path, Service(*labels)) for hierarchy, path, *labels in rows})
    return found


@pytest.mark.parametrize("name", ["mirrored.txt", "runc-1.0.txt"])
def test_recorded_process_of_a_hybrid_host(name: str) -> None:
    for process in processes(name):
        assert {h: (path, service_of(path)) for h, (path, _) in process.items()} == process


def test_cgroup2_and_systemds_hierarchy_name_the_same_service() -> None:
    for process in processes("mirrored.txt"):
        assert process[""] == process["name=systemd"]


def test_cgroup2_names_the_engine_where_an_old_runc_left_the_container_there() -> None:
    for process in processes("runc-1.0.txt"):
        assert process[""][1] == Service("containerd.service")


def test_a_pod_keeps_what_a_resolver_needs() -> None:
    path = f"/kubepods.slice/kubepods-pod{UID.replace('-', '_')}.slice/cri-containerd-{ID}.scope/init.scope"
    assert workload_of(path) == Workload(Kind.POD, pod_uid=UID, container_id=ID, runtime="containerd")


@pytest.mark.parametrize(
    ("part", "uid"),
    [
        ("kubepods-podhdishd83djaidwnduwk28bcsb.slice", "hdishd83djaidwnduwk28bcsb"),
        ("kubepods/besteffort/podmine", "mine"),
        (f"kubepods/pod{UID.upper()}", UID.upper()),
    ],
)
def test_a_pod_may_have_any_uid(part: str, uid: str) -> None:
    assert workload_of(f"/{part}") == Workload(Kind.POD, pod_uid=uid)


@pytest.mark.parametrize("path", ["/podman", "/burstable/podman", "/kubepods/podman/x/pod_y", "/pods/pod1"])
def test_a_directory_that_merely_begins_like_a_pod_is_none(path: str) -> None:
    assert workload_of(path).kind is (Kind.POD if "kubepods" in path else Kind.PATH)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (f"docker-{ID[1:]}.scope", Kind.UNIT),
        (f"docker-{ID.upper()}.scope", Kind.UNIT),
        (f"other-{ID}.scope", Kind.UNIT),
        (ID[1:], Kind.PATH),
        (ID + "0", Kind.PATH),
        (f"docker-{ID}.service", Kind.UNIT),
        (f"pod-{ID}.scope", Kind.UNIT),
    ],
)
def test_only_whole_ids_of_known_engines_are_containers(part: str, expected: Kind) -> None:
    assert workload_of(f"/system.slice/{part}").kind is expected


@pytest.mark.parametrize(
    ("escaped", "text"),
    [
        (r"a\x2db", "a-b"),
        (r"\xc3\xa9", "é"),
        (r"\xff", r"\xff"),
        (r"a\x2fb\x5cc", r"a\x2fb\x5cc"),
        (r"\x5cx2d", r"\x5cx2d"),
        (r"\x0a\x2d\x1b", r"\x0a-\x1b"),
        (r"\x2", r"\x2"),
    ],
)
def test_unescape(escaped: str, text: str) -> None:
    assert unescape(escaped) == text


@pytest.mark.parametrize(
    "name", ["other", "unknown", "nginx.service", "/x", "a/b", "a b", "", "a\nb", "x" * 256, "-x", "é"]
)
def test_a_name_that_could_be_another_label_is_not_taken(name: str) -> None:
    container = Workload(Kind.CONTAINER, container_id=ID, runtime="docker")
    assert service(container, name) == Service("docker/f0d6c251b55a")
    machine = Workload(Kind.MACHINE, name, runtime="lxc")
    assert service(machine) == Service(f"lxc/{name}")


def test_a_container_is_known_by_its_name() -> None:
    container = Workload(Kind.CONTAINER, container_id=ID, runtime="docker")
    assert service(container, "shop_web-1") == Service("shop_web-1")


def test_a_name_is_no_matter_to_what_has_one_of_its_own() -> None:
    for path in ("/system.slice/nginx.service", f"/kubepods/pod{UID}/{ID}", "/lxc/web", "/x"):
        assert service(workload_of(path), "web") == service_of(path)


PIECES = st.sampled_from(
    [
        *(
            "kubepods",
            "kubepods.slice",
            "burstable",
            "docker",
            "buildkit",
            "default",
            "lxc",
            "machine",
            "libpod_parent",
        ),
        *(f"pod{UID}", f"kubepods-pod{UID.replace('-', '_')}.slice", f"docker-{ID}.scope", ID, f"libpod-{ID}"),
        *(f"crio-conmon-{ID}.scope", f"a.slice:cri-containerd:{ID}", "5cf82fwiumld3vcs5d5l5pzyv", "a.slice:b:"),
        *("user@1000.service", "init.scope", "nginx.service", "app-a\\x2db.scope", "_x.service", "_.scope", ".."),
        *(
            "lxc.payload.web",
            "machine-qemu\\x2d1\\x2dvm.scope",
            "machine-\\x2f.scope",
            "systemd-nspawn@web.service",
        ),
    ]
)
PATHS = st.lists(PIECES | st.text(max_size=20) | st.binary(max_size=20).map(text_of), max_size=8).map("/".join)


@given(PATHS)
def test_any_path_has_one_printable_service(path: str) -> None:
    found = service_of(path)
    assert found.name
    assert found.name.strip("/") or found.name == "/"
    assert found not in (OTHER, UNKNOWN)
    workload = workload_of(path)
    assert workload == workload_of(path)
    assert bool(found.container) == (workload.kind is Kind.POD and bool(workload.container_id))
    if path.isprintable():
        assert found.name.isprintable()


@given(PATHS)
def test_the_kinds_of_labels_can_be_told_apart(path: str) -> None:
    found, kind = service_of(path), workload_of(path).kind
    if found.name.startswith("/"):
        assert kind is Kind.PATH
    elif found.name.startswith("pod/"):
        assert kind is Kind.POD
    elif "/" not in found.name and found.name.endswith((".service", ".scope")):
        assert kind is Kind.UNIT


@given(PATHS, st.lists(st.sampled_from(["init.scope", "system.slice", "a.service", "x"]), max_size=4))
def test_what_is_below_a_container_is_part_of_it(path: str, below: list[str]) -> None:
    assume(path.rstrip("/").rpartition("/")[2] not in {"lxc", "lxc.payload"})  # below these are other machines
    workload = workload_of(path)
    if workload.kind in {Kind.POD, Kind.CONTAINER, Kind.MACHINE, Kind.MONITOR}:
        assert workload_of("/".join([path, *below])) == workload


@pytest.mark.parametrize("path", ["/lxc/lxc", "/lxc.payload/lxc", "/machine.slice/machine-lxc.scope/lxc/lxc"])
def test_a_machine_may_be_called_like_the_directory_of_machines(path: str) -> None:
    assert service_of(f"{path}/init.scope") == service_of(path) == Service("lxc")


@given(st.text(max_size=300))
def test_any_name_of_a_container_yields_a_label(name: str) -> None:
    found = service(Workload(Kind.CONTAINER, container_id=ID, runtime="docker"), name)
    assert found == (Service(name) if is_name(name) else Service("docker/f0d6c251b55a"))
    assert found.name.isascii()
    assert found.name.isprintable()
