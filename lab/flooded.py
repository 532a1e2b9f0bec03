# SPDX-License-Identifier: Apache-2.0
"""A gateway under a flood: a real nginx, clients whom it knows, and a router for what it answers to the flood."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from lab.flood import Flooding, Kind, Plan, into
from lab.gateway import Nginx, Visitors
from lab.lab import Lab
from lab.network import enter, set_sysctls
from tidegate.ratelimit.running import remove_leftovers

PORT = 80
GOOD = 8
#: With it the 1,024 cells that all sources share who aren't known let through 5,120 SYNs a second, which the
#: listener's queue can take.
RATE_LIMIT = (
    "interfaces: [eth0], max_sources: 4096, sketch_cells: 1024, allow: [10.0.0.40], "
    "default: {syn: {rate: 5/s, burst: 10}, packets: {rate: 2000/s, burst: 4000}}"
)
#: Half-open connections that the listener keeps, each for three seconds.
BACKLOG = 49_152
SERVERS = f"server {{ listen {PORT} backlog={BACKLOG}; location / {{ return 204; }} }}"
#: SYNs a second: a core has time for four times as many.
FLOOD = 200_000
_TIDEGATE = str(Path(sys.executable).with_name("tidegate"))
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


@contextmanager
def agent(gateway: FloodedGateway, directory: Path) -> Iterator[Path]:
    """Run the agent at the gateway, in monitor mode to begin with; yields its control socket."""
    socket, config = directory / "control.sock", directory / "tidegate.yaml"
    config.write_text(
        f"control: {{socket: '{socket}'}}\n"
        f"rate_limit: {{{RATE_LIMIT}}}\n"
        f"audit: {{file: {directory}/audit.jsonl}}\n",
        encoding="utf-8",
    )
    process = gateway.host.popen([_TIDEGATE, "run", "-c", str(config)], start_new_session=True)
    try:
        yield socket
    finally:
        process.terminate()
        process.wait()
        remove_leftovers()


def story(lab: Lab, rounds: int | None, every: float) -> None:
    """Flood the gateway, and tell each few seconds who has been served and what the limiter has counted."""
    gateway = FloodedGateway(lab)
    with TemporaryDirectory(prefix="tglab-") as directory, agent(gateway, Path(directory)) as socket:
        options = f"--socket {socket}"
        print(
            f"{GOOD} clients and the friend 10.0.0.40, who is on the allow list, call {gateway.host.v4}:{PORT}; "
            f"{FLOOD:,} SYNs a second of 1,000,000 spoofed sources. In another terminal:\n"
            f"  tidegate ratelimit mode enforce --for 30s --yes {options}\n"
            f"  tidegate ratelimit mode monitor {options}\n  tidegate ratelimit top {options}\nend with Ctrl-C\n",
            flush=True,
        )
        with gateway.flooded(FLOOD):
            for n in itertools.count(1) if rounds is None else range(1, rounds + 1):
                count = max(round(every * 4), 1)
                *clients, friend = (
                    visitor.results()["/"].get("204", 0) for visitor in gateway.visit(count, patience=0.9)
                )
                print(
                    f"\nround {n}: clients {sum(clients)} of {count * GOOD} requests, friend {friend} of {count}"
                )
                subprocess.run([_TIDEGATE, "ratelimit", "status", *options.split()], check=False)


def _run(command: list[str], text: str | None = None) -> str:
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
