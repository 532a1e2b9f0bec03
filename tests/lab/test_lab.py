# SPDX-License-Identifier: Apache-2.0
"""The lab itself: what its ports promise is what the generator counts, and nothing of it stays."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lab.lab import ROOT, Lab, Service
from lab.network import cgroup_root, sweep
from lab.results import Plan, Results, Step, endpoint_text
from lab.upstream import Behaviour
from tests.lab.remains import remains, wait_until

pytestmark = pytest.mark.lab
CLOSED = 4009


@dataclass(frozen=True)
class Kind:
    """One way for a connect to end: the port's behaviour, the step, the outcome by IPv4 (and mapped) and IPv6."""

    port: int
    behaviour: Behaviour
    v4: str
    v6: str
    count: int = 25
    step: dict[str, Any] = field(default_factory=dict)
    used_before: bool = False


KINDS = {
    "ok": Kind(4000, Behaviour.ACCEPT, "ok", "ok", 200),
    "reset": Kind(4001, Behaviour.RESET, "reset", "reset", step={"speak": True}),
    "refused": Kind(4002, Behaviour.REFUSE, "refused", "refused"),
    "timeout": Kind(4003, Behaviour.HANG, "timeout", "timeout"),
    "unreachable": Kind(4004, Behaviour.UNREACHABLE, "unreachable", "unreachable", 120),
    "denied": Kind(4005, Behaviour.DENIED, "unreachable", "denied", 120),
    "closed": Kind(4006, Behaviour.HANG, "aborted", "aborted", step={"give_up": 0.05}),
    "unspec": Kind(4007, Behaviour.HANG, "aborted", "aborted", step={"give_up": 0.05, "give_up_by": "unspec"}),
    "sndtimeo": Kind(4008, Behaviour.HANG, "aborted", "aborted", step={"give_up": 0.05, "give_up_by": "sndtimeo"}),
    "held": Kind(4010, Behaviour.HOLD, "ok", "ok", step={"hold": True}),
    "used_before": Kind(4011, Behaviour.ACCEPT, "ok", "ok", used_before=True),
}
#: Where to, and how: the IPv4-mapped connects have a host of their own, as the kernel prints them like IPv4.
WAYS = {"v4": "10.0.0.6", "v6": "fd00::6", "mapped": "10.0.0.5"}
ESTABLISHED = {"ok", "reset"}


def step_of(kind: Kind, way: str) -> Step:
    reuse = (WAYS[way], CLOSED) if kind.used_before else None
    return Step(WAYS[way], kind.port, kind.count, mapped=way == "mapped", reuse=reuse, **kind.step)


@dataclass(frozen=True)
class Mixed:
    """One run of every kind by every way, all at once."""

    results: Results
    upstreams: dict[str, Service]


@pytest.fixture(scope="module")
def mixed() -> Iterator[Mixed]:
    with Lab() as lab:
        inventory = lab.host("inventory", 6).service("inventory_service")
        auth = lab.host("auth", 5).service("auth_service")
        for upstream in (inventory, auth):
            upstream.upstream({kind.port: kind.behaviour for kind in KINDS.values()})
        shop = lab.host("gateway", 16).service("shop")
        steps = tuple(step_of(kind, way) for kind in KINDS.values() for way in WAYS)
        results = shop.generate(Plan(steps, parallel=200))
        yield Mixed(results, {"inventory": inventory, "auth": auth})


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_ends_as_its_port_promises(mixed: Mixed, name: str, way: str) -> None:
    kind = KINDS[name]
    outcome = kind.v6 if way == "v6" else kind.v4
    result = mixed.results.endpoints[endpoint_text(WAYS[way], kind.port)]
    assert result.outcomes == {outcome: kind.count}
    assert result.connects == kind.count
    assert result.established == len(result.handshakes) == (kind.count if outcome in ESTABLISHED else 0)
    first = {Behaviour.ACCEPT: "server", Behaviour.RESET: "reset"}.get(kind.behaviour)
    assert result.closed == ({first: kind.count} if first else {})
    assert len(result.lifetimes) == sum(result.closed.values())
    assert (result.sent, result.received) == (kind.count if kind.step.get("speak") else 0, 0)


def test_first_connects_of_used_sockets_are_counted_where_they_went(mixed: Mixed) -> None:
    reused = KINDS["used_before"].count
    at_closed = {e: r.outcomes for e, r in mixed.results.endpoints.items() if e.endswith(f":{CLOSED}")}
    assert at_closed == {endpoint_text(address, CLOSED): {"refused": reused} for address in WAYS.values()}


def test_blocking_connects_that_succeed_have_lifetimes_too(lab: Lab) -> None:
    lab.host("inventory", 6).service("inventory_service").upstream({4010: Behaviour.HOLD})
    step = Step("10.0.0.6", 4010, 20, give_up=5, give_up_by="sndtimeo")
    result = lab.host("client", 16).service("shop").generate(Plan((step,))).endpoints["10.0.0.6:4010"]
    assert (result.outcomes, result.closed, len(result.lifetimes)) == ({"ok": 20}, {"client": 20}, 20)


@pytest.mark.parametrize(("upstream", "ways"), [("inventory", 2), ("auth", 1)])
def test_upstreams_count_what_they_accepted_and_reset(mixed: Mixed, upstream: str, ways: int) -> None:
    service = mixed.upstreams[upstream]
    expected = {k.port: ways * k.count for k in KINDS.values() if k.v4 in ESTABLISHED}
    assert service.accepted() == expected
    assert service.resets() == {KINDS["reset"].port: ways * KINDS["reset"].count}


@pytest.mark.parametrize("address", ["10.0.0.6", "fd00::6"])
def test_no_limit_swallows_the_icmp_errors_of_a_burst(lab: Lab, address: str) -> None:
    lab.host("inventory", 6).service("inventory_service").upstream({4004: Behaviour.UNREACHABLE})
    results = lab.host("client", 16).service("shop").generate(Plan((Step(address, 4004, 300),), parallel=300))
    assert results.endpoints[endpoint_text(address, 4004)].outcomes == {"unreachable": 300}


@pytest.mark.parametrize("address", ["10.0.0.6", "fd00::6"])
def test_a_namespace_of_four_ports_is_exhausted_for_fresh_and_used_sockets(lab: Lab, address: str) -> None:
    lab.host("inventory", 6).service("inventory_service").upstream({4010: Behaviour.HOLD})
    small = lab.host("small", 16, {"net.ipv4.ip_local_port_range": "40000 40003"}).service("shop")
    held = small.generate(Plan((Step(address, 4010, 4, hold=True),)))
    fresh = small.generate(Plan((Step(address, 4010, 30),)))
    used = small.generate(Plan((Step(address, 4010, 20, reuse=(address, CLOSED)),)))
    endpoint = endpoint_text(address, 4010)
    assert held.endpoints[endpoint].outcomes == {"ok": 4}
    assert fresh.endpoints[endpoint].outcomes == {"ports_exhausted": 30}
    assert used.endpoints[endpoint].outcomes == {"ports_exhausted": 20}
    assert used.endpoints[endpoint_text(address, CLOSED)].outcomes == {"refused": 20}
    small.release()  # who closes first keeps the port, in TIME_WAIT
    again = small.generate(Plan((Step(address, 4010, 4),)))
    assert again.endpoints[endpoint].outcomes == {"ports_exhausted": 4}


@pytest.mark.parametrize("address", ["10.9.0.6", "fd09::6"])
@pytest.mark.parametrize(("low", "high"), [(0.02, 0.02), (0.004, 0.04)], ids=["constant", "spread"])
def test_the_slow_path_delays_within_its_bounds(lab: Lab, address: str, low: float, high: float) -> None:
    inventory, client = lab.host("inventory", 6), lab.host("client", 16)
    inventory.service("inventory_service").upstream({4000: Behaviour.ACCEPT})
    lab.slow_path(inventory, client, low, high)
    results = client.service("shop").generate(Plan((Step(address, 4000, 200),), parallel=8))
    result = results.endpoints[endpoint_text(address, 4000)]
    assert result.outcomes == {"ok": 200}
    handshakes = sorted(result.handshakes)
    assert handshakes[0] >= 2 * low
    # A handshake is two packets, so the mean is low + high; single ones may be late on a busy machine.
    assert statistics.mean(handshakes) == pytest.approx(low + high, rel=0.1)
    assert handshakes[len(handshakes) * 9 // 10] <= 2 * high + 0.01


def test_sockets_belong_to_the_cgroup_of_their_service(lab: Lab) -> None:
    host = lab.host("gateway", 16)
    services = [host.service("shop"), host.service("billing")]
    for number, service in enumerate(services):
        service.upstream({7000 + number: Behaviour.ACCEPT})
    listing = ["ss", "-Htlne", "--cgroup"]
    with host.popen(listing, stdout=subprocess.PIPE) as ss:
        listeners = ss.communicate()[0].splitlines()
    found = {line.split()[3].rpartition(":")[2]: line.rpartition("cgroup:")[2].split()[0] for line in listeners}
    below = {str(7000 + n): f"/{s.cgroup.relative_to(cgroup_root())}" for n, s in enumerate(services)}
    assert found == below


def test_programs_run_inside_a_service_and_end_with_the_lab() -> None:
    with Lab() as lab:
        host = lab.host("gateway", 16)
        shop = host.service("shop")
        program = shop.popen(["sleep", "1000"])
        wait_until(lambda: comm(program.pid) == "sleep", "running sleep")
        assert str(program.pid) in (shop.cgroup / "cgroup.procs").read_text().split()
        inside = Path(f"/proc/{program.pid}/ns/net").stat().st_ino
        assert inside == Path("/run/netns", host.namespace).stat().st_ino
    assert program.returncode == -signal.SIGKILL


def test_two_labs_at_once_don_t_see_each_other() -> None:
    with Lab() as one, Lab() as other:
        for lab, behaviour in ((one, Behaviour.ACCEPT), (other, Behaviour.REFUSE)):
            lab.host("inventory", 6).service("inventory_service").upstream({4000: behaviour})
        clients = [lab.host("client", 16).service("shop") for lab in (one, other)]
        results = [client.generate(Plan((Step("10.0.0.6", 4000, 10),))) for client in clients]
    assert [r.endpoints["10.0.0.6:4000"].outcomes for r in results] == [{"ok": 10}, {"refused": 10}]


def comm(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None


def fill(lab: Lab) -> None:
    host, other = lab.host("gateway", 16), lab.host("inventory", 6)
    host.service("shop").popen(["sleep", "1000"])
    host.popen(["sleep", "1000"])
    lab.slow_path(host, other, 0.01, 0.01)


def fail_in(lab: Lab) -> None:
    with lab:
        fill(lab)
        raise RuntimeError("on purpose")


def test_nothing_is_left_when_the_lab_closes() -> None:
    with Lab() as lab:
        fill(lab)
        assert len(remains(lab.name)) > 8
    assert remains(lab.name) == []


def test_nothing_is_left_when_what_runs_in_the_lab_fails() -> None:
    lab = Lab()
    with pytest.raises(RuntimeError, match="on purpose"):
        fail_in(lab)
    assert remains(lab.name) == []


VICTIM = """
import json, time
from lab.lab import Lab
from lab.results import Plan, Step
from lab.upstream import Behaviour
lab = Lab().__enter__()
one, other = lab.host("one", 5), lab.host("other", 6)
other.service("inventory_service").upstream({4003: Behaviour.HANG})
service = one.service("shop")
service.begin(Plan((Step("10.0.0.6", 4003, 1, syn_retries=6),)))  # busy, so it doesn't look at its stdin
lab.slow_path(one, other, 0.01, 0.01)
sleep = service.popen(["sleep", "1000"])
print(json.dumps([lab.name, sleep.pid]), flush=True)
time.sleep(1000)
"""


def test_a_sweep_removes_what_a_killed_lab_left_and_spares_the_living() -> None:
    with Lab() as living:
        living.host("gateway", 16).service("shop")
        before = remains(living.name)
        argv = [sys.executable, "-c", VICTIM]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT) as victim:
            assert victim.stdout is not None
            name, sleep = json.loads(victim.stdout.readline())
            victim.kill()
        # Its own processes end with it; a program that it ran stays, as do namespaces and cgroups.
        wait_until(lambda: not any("-m lab." in what for what in remains(name)), "without workers")
        wait_until(lambda: comm(sleep) == "sleep", "running sleep")
        assert remains(name) != []
        sweep()
        assert remains(name) == []
        wait_until(lambda: comm(sleep) in (None, ""), "ended")
        assert remains(living.name) == before


def test_a_child_that_unwinds_the_inherited_stack_leaves_the_lab_alone() -> None:
    with Lab() as lab:
        lab.host("gateway", 16)
        before = remains(lab.name)
        child = os.fork()
        if child == 0:
            lab.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert remains(lab.name) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_live_lab_ends_in_order_at_a_signal(number: int) -> None:
    argv = [sys.executable, "-m", "lab", "--every", "0"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as live:
        assert live.stdout is not None
        first = live.stdout.readline()
        name = first.split()[-1].removesuffix("-auth")
        while "after" not in live.stdout.readline():
            assert live.poll() is None, live.communicate()
        live.send_signal(number)
        _, errors = live.communicate(timeout=20)
        assert (live.returncode, errors) == (0, "")
    assert first.split()[:3] == ["auth", "10.0.0.5", "fd00::5"]
    assert remains(name) == []
