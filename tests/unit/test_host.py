# SPDX-License-Identifier: Apache-2.0
"""Facts gathered from a made-up root, and what is decided from them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tidegate.errors import UnavailableError
from tidegate.features import features, require
from tidegate.kernel.probe import CAPABILITIES, Hierarchy, Host, hierarchy_of, probe
from tidegate.model.feature import State

pytestmark = pytest.mark.unit
HYBRID = """\
24 30 0:22 / /proc rw - proc proc rw
30 1 254:0 / / rw - ext4 /dev/root rw
31 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
35 30 0:31 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
36 30 0:32 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
32 30 0:28 / /sys/fs/cgroup/uni\\040fied rw shared:3 - cgroup2 cgroup2 rw
33 30 0:29 / /sys/fs/bpf rw - bpf bpf rw
"""
HEALTHY = Host(
    kernel="6.1.0",
    euid=0,
    capabilities=frozenset(CAPABILITIES),
    btf=True,
    cgroup2="/sys/fs/cgroup",
    hybrid=False,
    bpffs=True,
    unprivileged_bpf="2",
    cgroup2_controllers=frozenset({"cpu", "io", "memory"}),
)


def root(tmp_path: Path, mounts: str, capabilities: str, *, btf: bool) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(mounts)
    (tmp_path / "proc/self/status").write_text(f"Name:\tx\nCapEff:\t{capabilities}\n")
    if btf:
        (tmp_path / "sys/kernel/btf").mkdir(parents=True)
        (tmp_path / "sys/kernel/btf/vmlinux").touch()
    return tmp_path


def test_facts_of_a_hybrid_host(tmp_path: Path) -> None:
    host = probe(root(tmp_path, HYBRID, "000001ffffffffff", btf=True))
    assert host.cgroup2 == "/sys/fs/cgroup/uni fied"
    assert (host.hybrid, host.bpffs, host.btf) == (True, True, True)
    assert host.controllers == {
        "memory": "/sys/fs/cgroup/memory",
        "cpu": "/sys/fs/cgroup/cpu,cpuacct",
        "cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
    }
    assert host.capabilities == frozenset(CAPABILITIES)


BLKIO = "34 30 0:30 / /sys/fs/cgroup/blk\\040io rw - cgroup cgroup rw,cpu,blkio\n"


def test_the_hierarchy_of_block_requests_is_v1s_where_it_has_blkio(tmp_path: Path) -> None:
    host = root(tmp_path, HYBRID + BLKIO, "0", btf=True)
    (tmp_path / "proc/self/cgroup").write_text("7:cpu,blkio:/a:b\n4:memory:/\n0::/\n")
    assert probe(host).block_hierarchy == Hierarchy(id=7, mounted="/sys/fs/cgroup/blk io")
    assert probe(host).io_controlled
    assert hierarchy_of("memory", host) == Hierarchy(id=4, mounted="/sys/fs/cgroup/memory")
    assert hierarchy_of("cpuset", host) is None


@pytest.mark.parametrize(("controllers", "state"), [("cpu io memory\n", State.OK), ("cpu\n", State.DEGRADED)])
def test_disks_of_services_need_the_io_controller(tmp_path: Path, controllers: str, state: State) -> None:
    host = root(tmp_path, HYBRID, "0", btf=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "sys/fs/cgroup/uni fied").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/uni fied/cgroup.subtree_control").write_text(controllers)
    assert probe(host).block_hierarchy is None
    found = {feature.name: feature for feature in features(probe(host))}["disk:services"]
    assert found.state is state
    assert ("IOAccounting=yes" in found.remedy) == (state is State.DEGRADED)


def test_facts_of_a_bare_root(tmp_path: Path) -> None:
    host = probe(tmp_path)
    assert (host.cgroup2, host.hybrid, host.btf, host.capabilities) == (None, False, False, frozenset())


def test_a_healthy_host_has_all() -> None:
    found = features(HEALTHY)
    assert {feature.state for feature in found} == {State.OK}
    require(found)


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        ({"capabilities": frozenset({"CAP_NET_ADMIN"}), "euid": 1000}, "privilege", "run as root"),
        ({"btf": False}, "btf", "CONFIG_DEBUG_INFO_BTF=y"),
        ({"cgroup2": None}, "cgroup2", "mount -t cgroup2"),
    ],
)
def test_what_is_missing_is_named_with_its_remedy(change: dict[str, object], name: str, words: str) -> None:
    found = features(msgspec.structs.replace(HEALTHY, **change))
    (missing,) = [feature for feature in found if feature.state is State.UNAVAILABLE]
    assert missing.name == name
    with pytest.raises(UnavailableError, match=words):
        require(found)


def test_without_sys_admin_only_what_was_open_before_is_less() -> None:
    capabilities = frozenset({"CAP_BPF", "CAP_PERFMON"})
    found = features(msgspec.structs.replace(HEALTHY, capabilities=capabilities, euid=1000))
    (less,) = [feature for feature in found if feature.state is not State.OK]
    assert (less.name, less.state) == ("namespaces", State.DEGRADED)
    assert "CAP_SYS_ADMIN and CAP_SYS_PTRACE" in less.reason
    require(found)


def test_sys_admin_alone_is_enough() -> None:
    host = msgspec.structs.replace(HEALTHY, capabilities=frozenset({"CAP_SYS_ADMIN"}))
    require(features(host))


def test_a_host_without_psi_or_controllers_is_only_less() -> None:
    found = features(msgspec.structs.replace(HEALTHY, pressure=False, cgroup2_controllers=frozenset({"cpu"})))
    less = {feature.name: feature for feature in found if feature.state is not State.OK}
    assert set(less) == {"controllers", "pressure"}
    assert "the controller memory" in less["controllers"].reason
    assert "psi=1" in less["pressure"].remedy
    require(found)


def test_v1_controllers_are_as_good() -> None:
    host = msgspec.structs.replace(
        HEALTHY, controllers={"memory": "/m", "cpu": "/c"}, cgroup2_controllers=frozenset()
    )
    found = {feature.name: feature for feature in features(host)}
    assert found["controllers"].state is State.OK
    assert found["controllers"].reason == "cpu and memory of cgroup v1, joined to the services of cgroup2 by path"


def test_cgroup2s_controllers_and_psi_are_facts(tmp_path: Path) -> None:
    root(tmp_path, HYBRID, "0", btf=False)
    host = probe(tmp_path)
    assert (host.cgroup2_controllers, host.pressure, host.virtual) == (frozenset(), False, False)
    unified = tmp_path / "sys/fs/cgroup/uni fied"
    unified.mkdir(parents=True)
    (unified / "cgroup.controllers").write_text("cpuset cpu io memory\n")
    (tmp_path / "proc/pressure").mkdir()
    (tmp_path / "proc/pressure/cpu").write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n")
    host = probe(tmp_path)
    assert (host.cgroup2_controllers, host.pressure) == (frozenset({"cpuset", "cpu", "io", "memory"}), True)


X86 = "processor\t: 0\nmodel name\t: x\nflags\t\t: fpu vme {} lahf_lm\n\nprocessor\t: 1\n"


@pytest.mark.parametrize(
    ("files", "virtual"),
    [
        ({"proc/cpuinfo": X86.format("hypervisor")}, True),
        ({"proc/cpuinfo": X86.format("vmx")}, False),
        ({"proc/cpuinfo": X86.format("nohypervisor_x")}, False),
        ({"sys/hypervisor/type": "xen\n"}, True),
        ({"proc/device-tree/hypervisor/compatible": "linux,kvm\0"}, True),
        ({"sys/class/dmi/id/sys_vendor": "QEMU\n"}, True),
        ({"sys/class/dmi/id/product_name": "KVM Virtual Machine\n"}, True),
        ({"sys/class/dmi/id/sys_vendor": "Amazon EC2\n", "sys/class/dmi/id/product_name": "m7g.large\n"}, True),
        ({"sys/class/dmi/id/sys_vendor": "Amazon EC2\n", "sys/class/dmi/id/product_name": "m7g.metal\n"}, False),
        ({"sys/class/dmi/id/sys_vendor": "Dell Inc.\n", "sys/class/dmi/id/product_name": "R640\n"}, False),
    ],
)
def test_a_guest_is_told_from_bare_metal(tmp_path: Path, files: dict[str, str], virtual: bool) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert probe(tmp_path).virtual is virtual
