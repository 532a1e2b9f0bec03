# SPDX-License-Identifier: Apache-2.0
"""Views by hand for the advice: rows that say only what a test is about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tidegate.history import History
from tidegate.model.disk import DiskRow, ServiceDiskRow
from tidegate.model.fields import Role
from tidegate.model.histogram import Distribution
from tidegate.model.ports import ListenerRow, Method, NamespaceRow, PortsRow
from tidegate.model.resources import Executable, NodeResources, Pressure, ResourceRow
from tidegate.model.snapshot import EndpointRow, Health, Node, View
from tidegate.model.window import REASONS, Window

UPSTREAM = "10.0.0.6:5000"


def distribution(count: int = 0, seconds: float = 0.0) -> Distribution:
    return Distribution(p50=None, p90=None, p99=None, count=count, sum=seconds, buckets=(count,))


def endpoint(
    endpoint: str = UPSTREAM,
    *,
    service: str = "shop.service",
    role: Role = Role.CLIENT,
    connects: int = 0,
    ended: int | None = None,
    lifetime: float = 0.001,
    local: int = 0,
    failures: dict[str, int] | None = None,
    retransmits: int = 0,
    rtt: float | None = None,
    **fields: Any,
) -> EndpointRow:
    """Return a row whose connections are all established and have ended, unless it is said otherwise."""
    client = role is Role.CLIENT
    failed = dict.fromkeys(REASONS, 0) | (failures or {})
    established = fields.pop("established", connects - sum(failed.values()))
    ended = established if ended is None else ended
    values: dict[str, Any] = {
        "container": "",
        "name": "",
        "connects": connects if client else None,
        "connect_rate": float(connects) if client else None,
        "established": established,
        "accepts": None if client else established,
        "accept_rate": None if client else float(established),
        "failures": failed if client else None,
        "failure_rate": float(sum(failed.values())) if client else None,
        "handshake": distribution() if client else None,
        "open": established - ended,
        "closes": {"local": local, "remote": ended - local, "timeout": 0},
        "duration": distribution(ended, ended * lifetime),
        "rtt": distribution(10, 10 * rtt) if rtt is not None else distribution(),
        "sent_bytes": 0,
        "sent_rate": 0.0,
        "received_bytes": 0,
        "received_rate": 0.0,
        "segments_sent": 0,
        "segments_received": 0,
        "exchanges": established,
        "exchange_rate": 0.0,
        "retransmits": {"syn": 0, "synack": 0, "fast": retransmits, "timeout": 0, "probe": 0},
        "retransmit_rate": 0.0,
        "retransmit_ratio": None,
        "resets_sent": 0,
        "resets_received": 0,
        "rtt_min": rtt,
        "location": "",
    }
    return EndpointRow(service=service, role=role, endpoint=endpoint, **(values | fields))


def resource(service: str = "shop.service", container: str = "", **fields: Any) -> ResourceRow:
    values: dict[str, Any] = {
        "cgroup": f"/system.slice/{service}",
        "cpu_seconds": 0.0,
        "cpu": 0.0,
        "cpu_limit": None,
        "throttled_seconds": 0.0,
        "throttled": 0.0,
        "memory": 10 << 20,
        "memory_working_set": 10 << 20,
        "memory_limit": None,
        "oom_kills": 0,
        "pressure": None,
        "executables": (),
    }
    return ResourceRow(service=service, container=container, **(values | fields))


def program(name: str, version: str | None = None, service: str = "shop.service") -> ResourceRow:
    """Return a service that runs a program."""
    shell = Executable(name="sh", version=None, path="/bin/sh")
    return resource(service, executables=(shell, Executable(name=name, version=version, path=f"/usr/bin/{name}")))


def pressure(some: float) -> Pressure:
    return Pressure(some_seconds=1.0, some=some, full_seconds=None, full=None)


def ports(**fields: Any) -> PortsRow:
    values: dict[str, Any] = {
        "netns": 7,
        "service": "shop.service",
        "container": "",
        "source": "10.0.0.16",
        "endpoint": UPSTREAM,
        "name": "",
        "used": 0,
        "shared": fields.get("used", 0),
        "time_wait": 0,
        "reusable": 0,
        "limit": 28_232,
        "exhausted": 0,
        "connect_rate": 100.0,
        "closes": {},
        "will_exhaust": None,
        "time_to_exhaustion": None,
        "method": Method.SOCKETS,
    }
    return PortsRow(**(values | fields))


def namespace(**fields: Any) -> NamespaceRow:
    values: dict[str, Any] = {"netns": 7, "services": ("shop.service",)}
    rest: dict[str, Any] = dict.fromkeys(NamespaceRow.__struct_fields__)
    return NamespaceRow(**(rest | values | fields))


def listener(**fields: Any) -> ListenerRow:
    values: dict[str, Any] = {
        "netns": 7,
        "service": "shop.service",
        "container": "",
        "endpoint": ":80",
        "backlog": 0,
        "limit": 128,
        "somaxconn": 4096,
        "drops": 0,
    }
    return ListenerRow(**(values | fields))


def disk(
    device: str = "sda", operation: str = "write", *, requests: int = 0, io: float = 0.0, **fields: Any
) -> DiskRow:
    values: dict[str, Any] = {
        "queue": None,
        "request_rate": 0.0,
        "bytes": 0,
        "byte_rate": 0.0,
        "in_flight": 0,
        "errors": 0,
        "rotational": False,
        "parent": "",
    }
    taken = distribution(requests, requests * io)
    return DiskRow(device=device, operation=operation, io=taken, requests=requests, **(values | fields))


def service_disk(service: str, *, requests: int = 0, io: float = 0.0, **fields: Any) -> ServiceDiskRow:
    values: dict[str, Any] = {
        "container": "",
        "device": "sda",
        "operation": "write",
        "request_rate": 0.0,
        "bytes": 0,
        "byte_rate": 0.0,
    }
    return ServiceDiskRow(
        service=service, io=distribution(requests, requests * io), requests=requests, **(values | fields)
    )


def node(steal_seconds: float | None = 0.0) -> Node:
    resources = NodeResources(
        cpu=1.0,
        steal=None,
        steal_seconds=steal_seconds,
        memory_total=None,
        memory_available=None,
        oom_kills=0,
        pressure=None,
    )
    return Node(name="n1", kernel="6.1", cpus=2, uptime=1.0, resources=resources)


HEALTH = Health(
    version="0",
    pid=1,
    loader="libbpf",
    maps={},
    programs={},
    statistics_refused=None,
    events_lost={},
    losses={},
    rows=0,
    rows_limit=2000,
    ticks=10,
    ticks_late=0,
    ticks_skipped=0,
    late_seconds=0.0,
    tick_seconds=0.01,
    cpu=None,
    cpu_seconds=0.0,
    program_cpu=None,
    rss_bytes=None,
)


def view(endpoints: Sequence[EndpointRow] = (), *, interval: float = 10.0, **parts: Any) -> View:
    """Return a view; ``health`` are changes to a healthy agent's."""
    health = msgspec.structs.replace(HEALTH, **parts.pop("health", {}))
    shown = {"time": 0.0, "node": node(), "services": (), **parts}
    return View(endpoints=tuple(endpoints), interval=interval, health=health, **shown)


def window(*views: View) -> Window:
    """Return the window that ends with the last of some views: of 20 s, or since the start."""
    history = History(20.0)
    for earlier in views[:-1]:
        history.add(earlier)
    return history.add(views[-1])
