# SPDX-License-Identifier: Apache-2.0
"""Whose a connection is: services by the thousand, gone ones, containers; all of it against the kernel's sums."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import time
import uuid
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lab.lab import Host, Lab, Service
from lab.network import enter
from lab.results import Plan, Step
from lab.upstream import Behaviour
from tests.lab.agent import RunningAgent
from tests.lab.agreement import LabMeasurement, measure_until, rows, settled
from tests.lab.test_tcp import ACCEPT, HANG, HOLD, PORTS, mixed
from tidegate.control.client import ControlClient
from tidegate.identity.cgroups import CgroupWatch, decode_event
from tidegate.measurement import Bounds, Measurement
from tidegate.model.fields import Role
from tidegate.model.snapshot import EndpointRow, View

pytestmark = pytest.mark.lab
ADDRESS = "10.0.0.6"
ENDPOINT = f"{ADDRESS}:{ACCEPT}"
MIB = 1 << 20


def inventory(lab: Lab) -> Service:
    upstream = lab.host("inventory", 6).service("inventory_service")
    upstream.upstream(PORTS)
    return upstream


def plan(lab: Lab, name: str, numbers: Iterable[int]) -> dict[str, int]:
    """Name services, each with a number of connects that tells it from its neighbours."""
    return {f"{name}-{n}{lab.tag}.service": 1 + n % 5 for n in numbers}


def connects(found: Iterable[EndpointRow]) -> int:
    return sum(row.connects or 0 for row in found)


def by_service(view: View, names: Iterable[str]) -> dict[str, int | None]:
    """Return what each of these services connected to the upstream."""
    wanted = set(names)
    return {row.service: row.connects for row in view.endpoints if row.service in wanted}


def resident(pid: int) -> int:
    """Return the memory of a process in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_thousand_services_come_and_go_and_each_has_its_own_connects(lab: Lab) -> None:
    upstream = inventory(lab)
    client = lab.host("client", 16)
    shop = client.service("shop")
    plans = [plan(lab, "fleeting", range(first, first + 500)) for first in (0, 500)]
    made = {name.replace(lab.tag, ""): n for each in plans for name, n in each.items()}
    with LabMeasurement(lab, Bounds()) as measurement:
        measurement.measure()
        before = resident(os.getpid())
        load = shop.begin(Plan((Step(ADDRESS, ACCEPT, 4000),)))
        fleeting = [client.come_and_go(each, ADDRESS, ACCEPT) for each in plans]
        while any(each.running() for each in fleeting):
            measurement.measure()
        for each in fleeting:
            each.wait()
        load()
        view = measure_until(measurement, settled)
        assert resident(os.getpid()) - before < 24 * MIB
    assert by_service(view, made) == made
    assert rows(view, "shop.service", Role.CLIENT)[ENDPOINT].connects == 4000
    assert {row.service for row in view.endpoints} == {*made, "shop.service", "inventory_service.service"}
    assert rows(view, "inventory_service.service", Role.SERVER)[f":{ACCEPT}"].accepts == 4000 + sum(made.values())
    assert upstream.accepted()[ACCEPT] == 4000 + sum(made.values())
    assert not any(view.health.events_lost.values())


def fresh(agent: RunningAgent) -> View:
    """Return a view whose measurement began after this call."""
    now = time.time()
    with ControlClient(agent.socket) as client:
        return next(islice((view for view in client.watch() if view.time > now), 1, None))


def test_rows_series_and_memory_are_bounded_and_the_sum_is_whole(lab: Lab, tmp_path: Path) -> None:
    inventory(lab)
    client = lab.host("client", 16)
    made = plan(lab, "fleeting", range(1000))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    agent = RunningAgent(tmp_path, port, extra="services: {max_rows: 100}\n", tag=lab.tag)
    # The second measurement has a place for every row. It knows what else goes on on the machine meanwhile, and
    # takes its sum before and after the agent's: without other traffic the two are the same.
    with Measurement(Bounds()) as all_rows, agent:
        began = connects(all_rows.measure().endpoints), connects(fresh(agent).endpoints)
        began_late = connects(all_rows.measure().endpoints)
        memory = resident(agent.process.pid)
        fleeting = client.come_and_go(made, ADDRESS, ACCEPT)
        while fleeting.running():
            all_rows.measure()
        fleeting.wait()
        ended_early = all_rows.measure()
        view = fresh(agent)
        ended = connects(all_rows.measure().endpoints)
        assert by_service(ended_early, made) == made
        grown = connects(view.endpoints) - began[1]
        assert connects(ended_early.endpoints) - began_late <= grown <= ended - began[0]
        assert resident(agent.process.pid) - memory < 8 * MIB

        shown = by_service(view, made)
        assert shown.items() <= made.items()
        assert 0 < len(shown) <= 100
        assert sum(made.values()) - sum(n or 0 for n in shown.values()) <= sum(
            row.connects or 0 for row in view.endpoints if row.service == "other"
        )
        assert view.health.rows == len(view.endpoints) <= 100 + len(Role)
        assert not any(view.health.events_lost.values())
        assert series(agent.metrics()) <= 100 + len(Role)


def series(metrics: str) -> int:
    """Return how many (service, container, role, endpoint) an exposition has."""
    labels = ("service", "container", "role", "endpoint")
    samples = (sample for family in text_string_to_metric_families(metrics) for sample in family.samples)
    return len({tuple(s.labels[n] for n in labels) for s in samples if s.name.startswith("tidegate_tcp_")})


def fill_the_ring(directory: Path, count: int) -> int:
    """Make and remove cgroups with paths of containers of a pod; return how many events that is."""
    burstable = directory / "kubepods.slice/kubepods-burstable.slice"
    parent = burstable / f"kubepods-burstable-pod{str(uuid.uuid4()).replace('-', '_')}.slice"
    parent.mkdir(parents=True)
    for n in range(count):
        container = parent / f"cri-containerd-{n:064x}.scope"
        container.mkdir()
        container.rmdir()
    for made in (parent, burstable, burstable.parent):
        made.rmdir()
    return 2 * (3 + count)


def test_events_of_a_thousand_containers_find_place_and_beyond_that_are_counted(lab: Lab) -> None:
    watch = CgroupWatch.start()
    own = f"/{lab.cgroup.name}/"

    def read() -> int:
        return sum(event.path.startswith(own) for event in map(decode_event, watch.read()))

    try:
        assert (read(), watch.losses()) == (0, {"cgroup_events": 0})
        assert (fill_the_ring(lab.cgroup, 1000), watch.losses()) == (2006, {"cgroup_events": 0})
        assert read() == 2006
        # Others on the machine may have lost some too.
        assert fill_the_ring(lab.cgroup, 3000) - read() <= watch.losses()["cgroup_events"]
        assert watch.losses()["cgroup_events"] > 0
    finally:
        watch.close()


def test_what_was_lost_is_walked_for_or_has_one_name(lab: Lab) -> None:
    port = 5717
    lab.host("inventory", 6).service("inventory_service").upstream({port: Behaviour.ACCEPT})
    client = lab.host("client", 16)
    # With paths at least as long as those that fill the ring, or the first ones find place in what is left of it.
    names = plan(lab, f"unseen{'x' * 200}", range(50))
    made = {f"{'u' * 200}.slice/{name}": n for name, n in names.items()}
    with Measurement(Bounds()) as measurement:
        measurement.measure()
        fill_the_ring(lab.cgroup, 3000)
        client.come_and_go(made, ADDRESS, port).wait()
        late = client.service("late")
        late.generate(Plan((Step(ADDRESS, port, 7),)))
        view = measurement.measure()
        found = {row.service: row.connects for row in view.endpoints if row.endpoint == f"{ADDRESS}:{port}"}
        assert found == {"unknown": sum(made.values()), late.unit: 7}
        assert view.health.events_lost["cgroup_events"] > 0


def test_a_service_that_is_gone_keeps_its_open_connections(lab: Lab) -> None:
    inventory(lab)
    mover = lab.host("client", 16).service("mover")
    with LabMeasurement(lab, Bounds()) as measurement:
        mover.generate(Plan((Step(ADDRESS, HOLD, 3, hold=True),)))
        moved = mover.cgroup.with_name(f"moved{lab.tag}.service")
        moved.mkdir()
        pid = (mover.cgroup / "cgroup.procs").read_text(encoding="ascii")
        (moved / "cgroup.procs").write_text(pid, encoding="ascii")
        mover.cgroup.rmdir()
        mover.generate(Plan((Step(ADDRESS, HOLD, 2, hold=True),)))
        view = measure_until(measurement, lambda v: sum(row.open for row in v.endpoints) == 10)
        opened = {row.service: row.open for row in view.endpoints if row.role is Role.CLIENT}
        assert opened == {"mover.service": 3, "moved.service": 2}
        mover.release()
        view = measure_until(measurement, settled)
        ended = {row.service: row.established for row in view.endpoints if row.role is Role.CLIENT}
        assert ended == {"mover.service": 3, "moved.service": 2}


def test_containers_pods_and_units_have_their_names(lab: Lab, tmp_path: Path) -> None:
    inventory(lab)
    client = lab.host("client", 16)
    ids = [secrets.token_hex(32) for _ in range(6)]
    pods = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod"
    user = "user.slice/user-1000.slice/user@1000.service"
    uids = [str(uuid.uuid4()) for _ in range(3)]
    flat = [uid.replace("-", "_") for uid in uids]
    tag = lab.tag
    places = {
        f"{pods}{flat[0]}.slice/cri-containerd-{ids[0]}.scope": (
            f"pod/{uids[0]}",
            ids[0][:12],
        ),
        f"kubepods.slice/kubepods-pod{flat[1]}.slice/crio-{ids[1]}.scope/container": (
            f"pod/{uids[1]}",
            ids[1][:12],
        ),
        f"kubepods/besteffort/pod{uids[2]}/{ids[2]}": (f"pod/{uids[2]}", ids[2][:12]),
        f"system.slice/docker-{ids[3]}.scope": (f"web{tag}", ""),
        f"machine.slice/libpod-{ids[4]}.scope/container": (f"podman/{ids[4][:12]}", ""),
        f"{user}/user.slice/nerdctl-{ids[5]}.scope": (
            f"containerd/{ids[5][:12]}",
            "",
        ),
        f"{user}/app.slice/tool{tag}.service": (f"tool{tag}.service", ""),
        f"user.slice/user-1000.slice/session-3{tag}.scope": (f"session-3{tag}.scope", ""),
        f"system.slice/system-db.slice/db@15{tag}.service": (f"db@15{tag}.service", ""),
    }
    config = tmp_path / f"var/lib/docker/containers/{ids[3]}/config.v2.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"ID": ids[3], "Name": f"/web{tag}"}), encoding="utf-8")
    made = {path: n for n, path in enumerate(places, 1)}
    with Measurement(Bounds(), host_root=tmp_path) as measurement:
        client.come_and_go(made, ADDRESS, ACCEPT).wait()
        view = measurement.measure()
    wanted = set(places.values())
    found = {
        (row.service, row.container): row.connects
        for row in view.endpoints
        if (row.service, row.container) in wanted
    }
    assert found == {places[path]: n for path, n in made.items()}


def kernel_counts(host: Host) -> dict[str, int]:
    """Return the kernel's own TCP counters of a host's namespace."""
    argv = enter(host.namespace, ["cat", "/proc/net/snmp"])
    lines = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    names, values = (line.split()[1:] for line in lines if line.startswith("Tcp:"))
    return dict(zip(names, map(int, values), strict=True))


def test_the_sums_over_all_rows_are_the_kernels(lab: Lab) -> None:
    upstream = inventory(lab)
    gateway = lab.host("gateway", 16)
    small = lab.host("small", 17, {"net.ipv4.ip_local_port_range": "40000 40003"})
    shop, billing, few = gateway.service("shop"), gateway.service("billing"), small.service("few")
    mixed_steps = (step for address in (ADDRESS, "fd00::6") for step in mixed(address, 300))
    # All but those that take the kernel's whole patience.
    steps = tuple(step for step in mixed_steps if step.port != HANG or step.give_up is not None)
    with LabMeasurement(lab, Bounds()) as measurement:
        waiting = [service.begin(Plan(steps, seed=seed)) for seed, service in enumerate((shop, billing))]
        waiting.append(few.begin(Plan((Step(ADDRESS, HOLD, 4, hold=True),))))
        for wait in waiting:
            wait()
        few.generate(Plan((Step(ADDRESS, HOLD, 20),)))
        held = 2 * 2 * 10 + 4
        view = measure_until(measurement, lambda v: sum(row.open for row in v.endpoints) == 2 * held)
        kernel = {host.name: kernel_counts(host) for host in (upstream.host, gateway, small)}

    def total(role: Role, *services: str) -> tuple[int, int, int]:
        found = [row for row in view.endpoints if row.role is role and row.service in services]
        exhausted = sum((row.failures or {}).get("ports_exhausted", 0) for row in found)
        return connects(found) - exhausted, sum(row.accepts or 0 for row in found), sum(row.open for row in found)

    # A connect without a free port ends before its SYN, so it is none of ActiveOpens.
    counted = {
        "gateway": total(Role.CLIENT, "shop.service", "billing.service"),
        "small": total(Role.CLIENT, "few.service"),
        "inventory": total(Role.SERVER, "inventory_service.service"),
    }
    assert counted == {
        name: (of["ActiveOpens"], of["PassiveOpens"], of["CurrEstab"]) for name, of in kernel.items()
    }
    assert counted["small"] == (4, 0, 4)
