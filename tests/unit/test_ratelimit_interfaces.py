# SPDX-License-Identifier: Apache-2.0
"""What to do with which interface, why one isn't native, and what the doctor says of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.kernel.ethernet import Facts
from tidegate.kernel.probe import Host
from tidegate.kernel.xdp import why
from tidegate.model.feature import State
from tidegate.ratelimit import feature
from tidegate.ratelimit.interfaces import Change, Step, matches, plan

pytestmark = pytest.mark.unit
ATTACH, DETACH, RENAME = Step.ATTACH, Step.DETACH, Step.RENAME
ALL = frozenset({"CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"})


@pytest.mark.parametrize(
    ("name", "patterns", "expected"),
    [
        ("eth0", ["eth0"], True),
        ("eth0", ["eth*"], True),
        ("eth10", ["eth?"], False),
        ("ETH0", ["eth*"], False),
        ("ens3", ["eth*", "ens[1-4]"], True),
        ("lo", [], False),
    ],
)
def test_patterns(name: str, patterns: list[str], expected: bool) -> None:
    assert matches(name, patterns) is expected


@pytest.mark.parametrize(
    ("present", "attached", "expected"),
    [
        ({1: "lo", 2: "eth0"}, {}, [(ATTACH, 2, "eth0")]),
        ({1: "lo", 2: "eth0"}, {2: "eth0"}, []),
        ({1: "lo", 2: "eth1"}, {2: "eth0"}, [(RENAME, 2, "eth1")]),
        ({1: "lo", 2: "lan"}, {2: "eth0"}, [(DETACH, 2, "lan")]),
        ({1: "lo"}, {2: "eth0"}, [(DETACH, 2, "eth0")]),
        ({1: "lo", 3: "eth0"}, {2: "eth0"}, [(DETACH, 2, "eth0"), (ATTACH, 3, "eth0")]),
        ({2: "eth1", 3: "eth0"}, {2: "eth0", 3: "eth1"}, [(RENAME, 2, "eth1"), (RENAME, 3, "eth0")]),
    ],
)
def test_plan(present: dict[int, str], attached: dict[int, str], expected: list[Change]) -> None:
    assert plan(present, attached, ["eth*"]) == expected


NAMES = st.dictionaries(st.integers(1, 6), st.sampled_from(["eth0", "eth1", "lo", "lan"]))


@given(NAMES, NAMES)
def test_a_plan_that_is_carried_out_leaves_nothing_to_do(
    present: dict[int, str], attached: dict[int, str]
) -> None:
    for change in plan(present, attached, ["eth*"]):
        if change.step is DETACH:
            del attached[change.ifindex]
        else:
            assert (change.step is RENAME) == (change.ifindex in attached)
            attached[change.ifindex] = change.name
    assert attached == {index: name for index, name in present.items() if name.startswith("eth")}
    assert plan(present, attached, ["eth*"]) == []


def test_the_reason_is_the_kernels_with_facts_and_what_to_do() -> None:
    facts = Facts("eth0", "virtio_net", 4, 4, 1500, lro=True)
    assert why(facts, "Operation not supported", "Can't set XDP while host is implementing GRO_HW") == (
        "Can't set XDP while host is implementing GRO_HW; driver virtio_net, 4 of at most 4 queues, MTU 1500, "
        "LRO on; without LRO: ethtool -K eth0 lro off"
    )
    few = Facts("eth0", "virtio_net", 4, 4, 1500, lro=False)
    assert why(few, "Cannot allocate memory", "Too few free TX rings available").endswith(
        "LRO off; fewer queues leave room for XDP's own: ethtool -L eth0 combined N"
    )
    assert why(Facts("eth0", "ixgbe", mtu=9000), "Invalid argument", "MTU too large").endswith(
        "a smaller MTU: ip link set dev eth0 mtu N"
    )
    assert why(Facts("tun0"), "Operation not supported", "") == "Operation not supported"


def host(*, capabilities: frozenset[str] = ALL, bpffs: bool = True) -> Host:
    return Host(
        kernel="6.1.0",
        euid=0,
        capabilities=capabilities,
        btf=True,
        cgroup2="/sys/fs/cgroup",
        hybrid=False,
        bpffs=bpffs,
        unprivileged_bpf="2",
    )


def test_a_host_that_can_limit() -> None:
    found = feature.of_host(host())
    assert (found.name, found.state, found.reason) == ("rate limit (XDP)", State.OK, "")
    assert "the agent mounts one" in feature.of_host(host(bpffs=False)).reason


@pytest.mark.parametrize(
    ("capabilities", "missing"),
    [
        (ALL - {"CAP_NET_ADMIN"}, "CAP_NET_ADMIN"),
        (frozenset(), "CAP_BPF and CAP_PERFMON and CAP_NET_ADMIN"),
        (frozenset({"CAP_SYS_ADMIN"}), "CAP_NET_ADMIN"),
    ],
)
def test_a_missing_privilege_is_named(capabilities: frozenset[str], missing: str) -> None:
    found = feature.of_host(host(capabilities=capabilities))
    assert (found.state, found.reason) == (
        State.UNAVAILABLE,
        f"XDP programs can't be attached without {missing}",
    )
    assert "AmbientCapabilities=CAP_BPF CAP_PERFMON CAP_NET_ADMIN" in found.remedy


def test_a_kernel_that_refuses_the_program_is_unavailable() -> None:
    found = feature.of_host(host(), "object ratelimit: load: Invalid argument (errno 22)")
    assert found.state is State.UNAVAILABLE
    assert found.reason.startswith(
        "this kernel (6.1.0) doesn't take the limiter's program: object ratelimit: load"
    )
    assert found.remedy.startswith("Linux 5.18 or later")


def test_interfaces_are_judged_by_their_mode() -> None:
    native = feature.of_interface("eth0", "native", "")
    assert (native.name, native.state, native.remedy) == ("rate limit (XDP) eth0", State.OK, "")
    generic = feature.of_interface("br0", "generic", "driver bridge")
    assert (generic.state, generic.reason.endswith(": driver bridge")) == (State.DEGRADED, True)
    assert generic.remedy
    missing = feature.of_interface("eth1", None, "the XDP program 'other' (id 7) is attached already")
    assert (missing.state, missing.reason.startswith("not attached: the XDP program 'other'")) == (
        State.UNAVAILABLE,
        True,
    )
    assert missing.remedy


def test_a_program_that_could_not_be_replaced_is_degraded() -> None:
    kept = feature.of_interface("eth0", "native", "object ratelimit: load: Invalid argument (errno 22)")
    assert (kept.state, kept.remedy != "") == (State.DEGRADED, True)
