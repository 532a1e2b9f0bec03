# SPDX-License-Identifier: Apache-2.0
"""Faults by hand, each with the one finding that it makes, and near misses that make none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tests.unit.picture import (
    UPSTREAM,
    disk,
    endpoint,
    listener,
    namespace,
    node,
    ports,
    pressure,
    resource,
    service_disk,
    view,
)
from tidegate.model.fields import Role
from tidegate.model.snapshot import View

POD = {"service": "pod/1", "cgroup": "/kubepods/pod1/x"}


def pod(container: str, **fields: Any) -> Any:
    return resource(**(POD | {"container": container} | fields))


def home(*args: Any, **fields: Any) -> Any:
    """A row whose endpoint may be called."""
    return endpoint(*args, **({"location": "home"} | fields))


SILENT = {"exchanges": 0, "sent_bytes": 900, "lifetime": 0.9}
LOSSY = {"segments_sent": 10_000, "retransmits": 300, "sent_bytes": 1}
CLEAN = {"segments_sent": 50_000, "retransmits": 2, "sent_bytes": 1}
FAR = {"exchanges": 400, "established": 1, "ended": 0, "rtt": 0.025}
SERVED = endpoint(":80", role=Role.SERVER, established=1, ended=0, exchanges=20)
FULL = {"used": 28_232, "time_wait": 28_200}
BEFORE = (pod("app"), pod("shipper", cpu_limit=0.1, throttled_seconds=50.0))
SHIPPER = pod("shipper", cpu_limit=0.1, throttled_seconds=58.0, cpu_seconds=1.0)


DATABASE = service_disk("db.service", requests=200, io=0.001)


def answers(ended: int, seconds: float) -> Any:
    row = endpoint(":8080", service="pod/1", container="app", role=Role.SERVER, established=ended)
    duration = msgspec.structs.replace(row.duration, sum=seconds)
    return msgspec.structs.replace(row, duration=duration)


FAULTS: dict[str, tuple[str, str, Sequence[View]]] = {
    "one exchange each": ("missing_keepalive", f"shop.service -> {UPSTREAM}", [view([home(connects=200)])]),
    "a pool of two": (
        "missing_keepalive",
        "shop.service -> 10.0.0.6:80, 10.0.0.7:80",
        [view([home("10.0.0.6:80", connects=12), home("10.0.0.7:80", connects=12)])],
    ),
    "a minute left": (
        "ports_running_out",
        f"shop.service -> {UPSTREAM}",
        [view(ports=[ports(used=9000, will_exhaust=True, time_to_exhaustion=61.0)])],
    ),
    "nearly full, forecast unknown": (
        "ports_running_out",
        f"shop.service -> {UPSTREAM}",
        [view(ports=[ports(**FULL)])],
    ),
    "no port, no count of ports": (
        "ports_running_out",
        f"shop.service -> {UPSTREAM}",
        [view([home(connects=3, failures={"ports_exhausted": 2})])],
    ),
    "no ports for want of keep-alive": (
        "ports_running_out",
        f"shop.service -> {UPSTREAM}",
        [view([home(connects=900, failures={"ports_exhausted": 9})], ports=[ports(**FULL, exhausted=9)])],
    ),
    "two services share one upstream's ports": (
        "ports_running_out",
        f"shop.service -> {UPSTREAM}",
        [
            view(
                ports=[
                    ports(used=20_000, shared=27_000, will_exhaust=True, time_to_exhaustion=30.0),
                    ports(service="b", used=7000, shared=27_000, will_exhaust=True, time_to_exhaustion=31.0),
                ]
            )
        ],
    ),
    "loss to one": (
        "retransmits",
        f"shop.service -> {UPSTREAM}",
        [view([home(**LOSSY), home("10.0.0.7:1", **CLEAN)])],
    ),
    "loss to all": ("retransmits", "node", [view([home(**LOSSY), home("10.0.0.7:1", **LOSSY)])]),
    "refused": (
        "connect_failures",
        f"shop.service -> {UPSTREAM}",
        [view([home(connects=30, failures={"refused": 6}, exchanges=60)])],
    ),
    "refused to two services": (
        "connect_failures",
        f"a, shop.service -> {UPSTREAM}",
        [
            view(
                [
                    home(connects=6, failures={"refused": 6}),
                    home(service="a", connects=6, failures={"refused": 6}),
                ]
            )
        ],
    ),
    "no answer to SYNs": (
        "hanging_upstream",
        f"shop.service -> {UPSTREAM}",
        [view([home(connects=30, failures={"timeout": 3, "aborted": 3})])],
    ),
    "no answer to requests": (
        "hanging_upstream",
        f"shop.service -> {UPSTREAM}",
        [view([home(connects=30, local=30, **SILENT)])],
    ),
    "hangs and refuses": (
        "hanging_upstream",
        f"shop.service -> {UPSTREAM}",
        [view([home(connects=30, failures={"timeout": 6, "refused": 6})])],
    ),
    "queue full": (
        "accept_queue_overflow",
        "shop.service :80",
        [view(listeners=[listener()]), view(listeners=[listener(drops=9, backlog=129)])],
    ),
    "queue was full": (
        "accept_queue_overflow",
        "shop.service :80",
        [
            view(listeners=[listener()], namespaces=[namespace(listen_overflows=100)]),
            view(listeners=[listener(drops=9)], namespaces=[namespace(listen_overflows=109)]),
        ],
    ),
    "queue full, seen from a client too": (
        "accept_queue_overflow",
        "shop.service :5000",
        [
            view(listeners=[listener(endpoint=":5000")]),
            view(
                [home(service="a", connects=30, failures={"aborted": 9})],
                listeners=[listener(endpoint=":5000", drops=9, backlog=129)],
            ),
        ],
    ),
    "conntrack": (
        "conntrack_near_limit",
        "netns 7",
        [view(namespaces=[namespace(conntrack_entries=215_000, conntrack_limit=262_144)])],
    ),
    "conntrack full": (
        "conntrack_near_limit",
        "netns 7",
        [
            view(
                [home(connects=9, failures={"timeout": 9})],
                namespaces=[namespace(conntrack_entries=262_144, conntrack_limit=262_144)],
            )
        ],
    ),
    "log shipper throttled, app slower": (
        "starved_sidecar",
        "pod/1/shipper starves pod/1/app",
        [
            *[view([answers(100, 1.0)], resources=BEFORE, interval=s) for s in (600.0, 10.0)],
            view([answers(150, 6.0)], resources=(pod("app"), SHIPPER)),
        ],
    ),
    "log shipper throttled, app waits": (
        "starved_sidecar",
        "pod/1/shipper starves pod/1/app",
        [
            view(resources=BEFORE),
            view(resources=(pod("app", pressure={"io": pressure(0.4)}), SHIPPER)),
        ],
    ),
    "app killed, sidecar waits": (
        "starved_sidecar",
        "pod/1/app starves pod/1/proxy",
        [
            view(resources=(pod("app"), pod("proxy"))),
            view(
                resources=(
                    pod("app", oom_kills=1, memory_limit=64 << 20),
                    pod("proxy", pressure={"io": pressure(0.5)}),
                )
            ),
        ],
    ),
    "throttled, and the whole node is short of CPU": (
        "cpu_throttled",
        "pod/1/shipper",
        [view(resources=BEFORE), view(resources=(pod("app", pressure={"cpu": pressure(0.9)}), SHIPPER))],
    ),
    "slow device": ("slow_device", "sda", [view(disks=[disk(requests=100, io=0.08)])]),
    "slow device below a partition": (
        "slow_device",
        "sda",
        [view(disks=[disk("sda1", requests=100, io=0.08, parent="sda"), disk(requests=100, io=0.08)])],
    ),
    "noisy service": (
        "noisy_neighbour",
        "backup.service on sda",
        [
            *[view(disks=[disk()], service_disks=[DATABASE], interval=s) for s in (600.0, 10.0)],
            view(
                disks=[disk(requests=20_000, io=0.02, bytes=2_000_000_000)],
                service_disks=[
                    service_disk("backup.service", requests=19_000, io=0.02, bytes=1_900_000_000),
                    service_disk("db.service", requests=500, io=0.02),
                ],
            ),
        ],
    ),
    "steal": ("cpu_steal", "node", [view(node=node(5.0)), view(node=node(9.0))]),
    "throttled": (
        "cpu_throttled",
        "shop.service",
        [
            view(resources=[resource(cpu_limit=0.5, throttled_seconds=100.0)]),
            view(resources=[resource(cpu_limit=0.5, throttled_seconds=103.0, cpu_seconds=5.0)]),
        ],
    ),
    "throttled, so its queue is full": (
        "cpu_throttled",
        "shop.service",
        [
            view(resources=[resource(cpu_limit=0.5)], listeners=[listener()]),
            view(
                resources=[resource(cpu_limit=0.5, throttled_seconds=3.0)],
                listeners=[listener(drops=9, backlog=129)],
            ),
        ],
    ),
    "memory": (
        "memory_near_limit",
        "shop.service",
        [view(resources=[resource(memory_working_set=125 << 20, memory_limit=128 << 20)])],
    ),
    "killed": (
        "oom_killed",
        "shop.service",
        [
            view(resources=[resource(memory_limit=128 << 20)]),
            view(resources=[resource(memory_limit=128 << 20, oom_kills=1, memory_working_set=127 << 20)]),
        ],
    ),
    "20 calls at 25 ms": ("distant_upstream", "shop.service -> home", [view([home(**FAR), SERVED])]),
    "always waiting": (
        "distant_upstream",
        "shop.service -> home",
        [view([home(**{**FAR, "exchanges": 401})])],
    ),
    "abroad": ("residency", "shop.service -> abroad", [view([endpoint(sent_bytes=1, location="abroad")])]),
    "nowhere": (
        "residency",
        "shop.service -> no configured location",
        [view([endpoint("[2001:db8::1]:443", sent_bytes=1), endpoint("198.51.100.1:443", sent_bytes=1)])],
    ),
    "lost": ("agent_losses", "tidegate", [view(health={"losses": {"tcp_untracked": 3}})]),
    "ticks": ("agent_losses", "tidegate", [view(health={"ticks_skipped": 3})]),
    "ticks, as the CPU is stolen": (
        "cpu_steal",
        "node",
        [view(node=node(5.0)), view(node=node(9.0), health={"ticks_skipped": 3})],
    ),
}  # fmt: skip

NEAR_MISSES: dict[str, Sequence[View]] = {
    "nothing": [view()],
    "few connects": [view([home(connects=9)])],
    "two exchanges each": [view([home(connects=200, exchanges=400)])],
    "a pool that fills": [view([home(connects=200, ended=0)])],
    "unanswered connections": [view([home(connects=200, exchanges=0)])],
    "connects of long ago": [view([home(connects=200, connect_rate=0.0)])],
    "a server with short connections": [view([endpoint(":80", role=Role.SERVER, established=900)])],
    "the sum of the rest": [view([home("other", connects=900), home(service="other", connects=900)])],
    "an hour left": [view(ports=[ports(used=9000, will_exhaust=True, time_to_exhaustion=3600.0)])],
    "full of ports that can be used again": [
        view(ports=[ports(**FULL, reusable=28_000), ports(endpoint="a:1", **FULL, will_exhaust=False)])
    ],
    "little loss": [view([home(segments_sent=10_000, retransmits=90, sent_bytes=1)])],
    "few segments": [view([home(segments_sent=400, retransmits=30, sent_bytes=1)])],
    "all lose a little, one more": [
        view([home(**LOSSY), home("10.0.0.7:1", segments_sent=50_000, retransmits=400, sent_bytes=1)])
    ],
    "few refused": [view([home(connects=300, failures={"refused": 4}, exchanges=600)])],
    "a small share is refused": [view([home(connects=300, failures={"refused": 14}, exchanges=600)])],
    "few time out": [view([home(connects=300, failures={"timeout": 4}, exchanges=600)])],
    "slow but answered": [view([home(connects=9, local=9, lifetime=0.9, sent_bytes=9)])],
    "silent but quick": [view([home(connects=9, local=9, **{**SILENT, "lifetime": 0.1})])],
    "the upstream ends it": [view([home(connects=9, local=0, **SILENT)])],
    "drops of before the start": [view(listeners=[listener(drops=9000, backlog=129)])],
    "dropped though not full": [
        view(listeners=[listener()], namespaces=[namespace(listen_overflows=5)]),
        view(listeners=[listener(drops=9)], namespaces=[namespace(listen_overflows=5)]),
    ],
    "a burst that fits": [view(listeners=[listener()]), view(listeners=[listener(backlog=120)])],
    "conntrack half full": [view(namespaces=[namespace(conntrack_entries=131_000, conntrack_limit=262_144)])],
    "conntrack not there": [view(namespaces=[namespace()])],
    "sibling as before": [
        view(resources=(pod("app"), pod("shipper", memory_limit=128 << 20))),
        view(resources=(pod("app", pressure={"io": pressure(0.1)}), pod("shipper", memory_limit=128 << 20))),
    ],
    "sibling waits, nobody at its limits": [
        view(resources=(pod("app", pressure={"io": pressure(0.5)}), pod("shipper")))
    ],
    "a busy device": [view(disks=[disk(requests=9000, io=0.05)])],
    "a device that moves much": [view(disks=[disk(requests=300, io=0.05, bytes=300_000_000)])],
    "a disk that turns": [view(disks=[disk(requests=100, io=0.03, rotational=True)])],
    "few slow requests": [view(disks=[disk(requests=9, io=2.0)])],
    "noisy without a victim": [
        view(
            disks=[disk(requests=20_000, io=0.01)],
            service_disks=[
                service_disk("backup", requests=19_000, io=0.01),
                service_disk("db", requests=9, io=0.01),
            ],
        )
    ],
    "all share alike": [
        view(
            disks=[disk(requests=20_000, io=0.01)],
            service_disks=[service_disk(name, requests=5000, io=0.01) for name in "abcd"],
        )
    ],
    "little steal": [view(node=node(5.0)), view(node=node(6.9))],
    "steal of before the start": [view(node=node(9000.0))],
    "steal, too short to tell": [view(node=node(5.0), interval=1.0), view(node=node(6.0), interval=1.0)],
    "bare metal": [view(node=node(None))],
    "throttled a little": [
        view(resources=[resource(cpu_limit=0.5)]),
        view(resources=[resource(cpu_limit=0.5, throttled_seconds=1.9)]),
    ],
    "throttled before the start": [view(resources=[resource(cpu_limit=0.5, throttled_seconds=900.0)])],
    "what isn't measured": [
        view(resources=[resource(cpu_limit=0.5, throttled_seconds=None, memory_working_set=None)] * 2)
    ],
    "memory without a limit": [view(resources=[resource(memory_working_set=9 << 30)])],
    "memory below the limit": [view(resources=[resource(memory_working_set=100 << 20, memory_limit=128 << 20)])],
    "one distant call a request": [view([home(**{**FAR, "exchanges": 60}), SERVED])],
    "many near calls": [view([home(exchanges=9000, established=1, ended=0, rtt=0.0002), SERVED])],
    "nothing sent": [view([endpoint(connects=3, location="abroad")])],
    "on this node": [view([endpoint("127.0.0.1:80", sent_bytes=9), endpoint("[::1]:80", sent_bytes=9)])],
    "losses that were made up for": [
        view(health={"losses": {"tcp_late": 5, "tcp_end_unseen": 1, "rows_folded": 9, "control_clients_slow": 2}})
    ],
    "losses of before the window": [
        view(health={"losses": {"tcp_untracked": 3}}, interval=600.0),
        view(health={"losses": {"tcp_untracked": 3}}, interval=600.0),
        view(health={"losses": {"tcp_untracked": 3}}, interval=1.0),
    ],
    "one tick": [view(health={"ticks_skipped": 1})],
}  # fmt: skip
