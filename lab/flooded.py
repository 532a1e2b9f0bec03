# SPDX-License-Identifier: Apache-2.0
"""A gateway under a flood: a real nginx, clients whom it knows, and a router for what it answers to the flood."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from lab.flood import Flooding, Kind, Plan, into
from lab.gateway import Nginx, Visitors
from lab.lab import Lab
from lab.network import enter, set_sysctls

PORT = 80
GOOD = 8
#: Half-open connections that the listener keeps, each for three seconds.
BACKLOG = 49_152
SERVERS = f"server {{ listen {PORT} backlog={BACKLOG}; location / {{ return 204; }} }}"
_SYSCTLS = {
    "net.core.somaxconn": str(BACKLOG),
    "net.ipv4.tcp_max_syn_backlog": str(BACKLOG),
    "net.ipv4.tcp_synack_retries": "1",
    # The kernel's own means against a flood: it answers without keeping anything, and keeps a quarter of the room
    # for those it knows.
    "net.ipv4.tcp_syncookies": "0",
    "net.ipv4.tcp_no_metrics_save": "1",
}
#: Bridged to the gateway; what is redirected by XDP goes past it.
_BRIDGED = """\
table bridge lab {{
  chain to_gateway {{
    type filter hook postrouting priority 0
    oifname "{port}" counter
  }}
}}
"""


class FloodedGateway:
    """The gateway 10.0.0.16, clients from 10.0.0.21 on, a friend at 10.0.0.40 and the default route's 10.0.0.1.

    The gateway's CPU, on which it receives and nginx runs, is the last one; the clients have the first. SYN
    cookies are off, so that the listener has only its queue against a flood; :meth:`cookies` turns them on.
    """

    def __init__(self, lab: Lab, servers: str = SERVERS) -> None:
        cpus = os.sched_getaffinity(0)
        self.cpu, self._elsewhere = max(cpus), min(cpus)
        lab.host("router", 1)
        self.host = lab.host("gateway", 16, _SYSCTLS)
        self._port = f"port{self.host.number}"
        _run(enter(self.host.namespace, ["ip", "route", "add", "default", "via", "10.0.0.1"]))
        # Of itself the port sends nothing, so that what other hosts send is all but the flood.
        set_sysctls(lab.switch.name, {f"net.ipv6.conf.{self._port}.disable_ipv6": "1"})
        rules = _BRIDGED.format(port=self._port)
        _run(enter(lab.switch.name, ["nft", "-f", "-"]), rules)
        self.clients = [lab.host(f"client{n}", 21 + n) for n in range(GOOD)]
        self.friend = lab.host("friend", 40)
        self.nginx = Nginx(self.host, "gateway", servers)
        self.nginx.pin(self.cpu)

    def cookies(self, on: bool) -> None:
        """Let the kernel answer SYNs by cookies where the listener's queue is full."""
        _run(enter(self.host.namespace, ["sysctl", "-qw", f"net.ipv4.tcp_syncookies={int(on)}"]))

    def visit(self, count: int, rate: float = 4.0, patience: float = 5.0) -> list[Visitors]:
        """Let all clients, and the friend as the last one, call at once, each call by a connection of its own."""
        return [
            Visitors(
                host,
                f"{self.host.v4}:{PORT}",
                ["/"],
                rate,
                count,
                anew=True,
                patience=patience,
                cpu=self._elsewhere,
            )
            for host in (*self.clients, self.friend)
        ]

    @contextmanager
    def flooded(self, rate: float, kind: Kind = Kind.SYN, count: int = 100_000_000) -> Iterator[Flooding]:
        """Flood it until the end of the block; comes before nginx on its CPU, as an interrupt does."""
        plan: Plan = into(self.host, PORT, kind=kind, rate=rate, count=count, cpu=self.cpu, preempts=True)
        flooding = Flooding(self.host, plan)
        try:
            yield flooding
        finally:
            flooding.stop()

    def bridged(self) -> int:
        """Return how many packets other hosts have sent to the gateway."""
        command = ["nft", "--json", "list", "chain", "bridge", "lab", "to_gateway"]
        listing = _run(enter(self.host.lab.switch.name, command))
        rules = [part["rule"] for part in json.loads(listing)["nftables"] if "rule" in part]
        return int(next(e["counter"]["packets"] for rule in rules for e in rule["expr"] if "counter" in e))

    def lost(self) -> int:
        """Return how many packets found no room in the ring of the gateway's interface."""
        return int(self._link(self.host.lab.switch.name, self._port)["tx"]["dropped"])

    def received(self) -> int:
        """Return how many packets came to the XDP program of the gateway's interface, or to its stack."""
        return int(self._link(self.host.namespace, "eth0")["rx"]["packets"])

    def _link(self, namespace: str, interface: str) -> dict[str, dict[str, int]]:
        shown = _run(enter(namespace, ["ip", "-statistics", "-json", "link", "show", interface]))
        found: dict[str, dict[str, int]] = json.loads(shown)[0]["stats64"]
        return found


def _run(command: list[str], text: str | None = None) -> str:
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
