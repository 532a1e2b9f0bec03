# SPDX-License-Identifier: Apache-2.0
"""A real HAProxy before three endpoints, and its driver."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from lab.closedloop import ClosedLoop
from lab.gateway import Nginx
from lab.haproxy import HAPROXY, Haproxy
from lab.lab import Lab
from tests.lab.rigs.rig import ENDPOINTS
from tidegate.config import pools as config_of
from tidegate.pools.driver import Driver
from tidegate.pools.haproxy import HaproxyDriver
from tidegate.pools.haproxy_runtime import rows
from tidegate.pools.journal import Journal

BACKEND = "inventory"
DEADLINE = 10.0
PORT = 80
#: Says who it is, and when the request came to it, in seconds since 1970.
_ECHO = """\
server {
    listen 5000;
    listen [::]:5000;
    keepalive_timeout 60s;
    keepalive_requests 1000000;
    location / { return 200 "$server_addr:$server_port $msec\\n"; }
}
"""
_CONFIG = """\
defaults
    mode http
    timeout connect 1s
    timeout client 30s
    timeout server 10s
    timeout queue 5s
frontend gateway
    bind :80
    default_backend inventory
"""
SERVERS = "".join(f"    server s{number} 10.0.0.{number}:5000\n" for number in (6, 7, 8))


class HaproxyRig:
    """HAProxy on the host ``gateway``, nginx on those of the endpoints, a client besides.

    ``backend`` is what stands in the pool's backend; ``others`` what stands behind it.
    """

    name = "haproxy"
    has_operator = True
    can_be_away = True

    def __init__(
        self, lab: Lab, backend: str = SERVERS, others: str = "", level: str = "admin", program: str = HAPROXY
    ) -> None:
        for number in (6, 7, 8):
            Nginx(lab.host(f"inventory{number}", number), f"inventory{number}", _ECHO)
        self.client = lab.host("client", 4)
        config = f"{_CONFIG}backend {BACKEND}\n{backend}{others}"
        self.proxy = Haproxy(lab.host("gateway", 16), "gateway", config, level, program)

    def driver(self, journal: Journal, **config: Any) -> Driver:
        made = config_of.HaproxyDriver(socket=str(self.proxy.socket), backend=BACKEND, **config)
        return HaproxyDriver(ENDPOINTS, made, journal)

    def state(self) -> Any:
        """Return the state of each server of all backends: admin state, weights, maxconn."""
        text = self.proxy.ask("show servers state")
        states = [line.split(" ") for line in text.splitlines()[2:] if line]
        statistics = rows(self.proxy.ask("show stat -1 4 -1"))
        limits = {(row["pxname"], row["svname"]): row["slim"] for row in statistics}
        return {
            (line[1], line[3]): (line[4], line[6], line[7], line[8], limits[line[1], line[3]]) for line in states
        }

    def reached(self, requests: int) -> Counter[str]:
        results = ClosedLoop(self.client, "10.0.0.16", PORT, workers=3, count=requests).results()
        return Counter(
            result.body.split(" ")[0] if result.status == 200 else str(result.status) for result in results
        )

    def hold(self, endpoint: str) -> None:
        self.tell(f"set server {_server(endpoint)} state maint")

    def release(self, endpoint: str) -> None:
        self.tell(f"set server {_server(endpoint)} state ready")

    def tell(self, command: str) -> None:
        """Do as an operator with the socket does."""
        said = self.proxy.ask(command).strip()
        assert not said, said

    def restart(self) -> None:
        self.stop()
        self.start()

    def stop(self) -> None:
        self.proxy.stop()

    def start(self) -> None:
        self.proxy.start()


def _server(endpoint: str) -> str:
    return f"{BACKEND}/s{endpoint.partition(':')[0].rpartition('.')[2]}"


def until(done: Callable[[], bool], what: str, seconds: float = DEADLINE) -> float:
    """Wait for a condition, and return after how many seconds it held."""
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < seconds, what
        time.sleep(0.005)
    return time.monotonic() - began
