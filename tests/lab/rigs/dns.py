# SPDX-License-Identifier: Apache-2.0
"""A real nginx that asks for a name, and the driver that answers it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from lab.closedloop import ClosedLoop
from lab.gateway import CURRENT_NGINX, PORT, Nginx
from lab.lab import Host, Lab
from lab.network import RUN
from tests.lab.rigs.rig import ENDPOINTS
from tidegate.config import pools as config_of
from tidegate.config.units import Listen
from tidegate.errors import DriverError
from tidegate.kernel.namespaces import run_in
from tidegate.pools.dns import DnsDriver
from tidegate.pools.dns_responder import Sockets, bind
from tidegate.pools.journal import Journal, Kept

NAME = "inventory.tidegate.internal"
LISTEN = Listen("127.0.0.1", 5300)
PATIENCE = 20.0
#: Says who it is.
ECHO = """\
server {
    listen 5000;
    listen 5001;
    listen [::]:5000;
    keepalive_timeout 60s;
    keepalive_requests 1000000;
    location / { return 200 "$server_addr:$server_port\\n"; }
}
"""
#: What the driver tells to write, in full.
GATEWAY = """\
upstream inventory {{
    zone inventory 256k;
    server {server} resolve;
    resolver 127.0.0.1:5300{family};
    resolver_timeout 1s;
    keepalive 32;
}}
server {{
    listen 80;
    location / {{
        proxy_pass http://inventory;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
    }}
}}
"""


def within(host: Host) -> Callable[[Listen], Sockets]:
    """Return what opens a responder's sockets on a host of the lab."""

    def opened(listen: Listen) -> Sockets:
        made: list[Sockets] = []
        refused = run_in([RUN / host.namespace], lambda: made.append(bind(listen)))
        assert not refused, refused
        return made[0]

    return opened


def memory() -> Journal:
    """Return a journal that is of no file."""
    return Journal(None, Kept(pool="inventory", driver="dns", endpoints=ENDPOINTS, config={}))


class DnsRig:
    """nginx on the host ``gateway``, which an agent has answered before; three endpoints, and a client.

    ``server`` is how nginx asks for the pool, ``family`` what it leaves out.
    """

    name = "dns"
    has_operator = False
    can_be_away = True

    def __init__(
        self,
        lab: Lab,
        server: str = f"{NAME}:5000",
        family: str = " ipv6=off",
        endpoints: Sequence[str] = ENDPOINTS,
    ) -> None:
        self.endpoints = endpoints
        for number in (6, 7, 8):
            Nginx(lab.host(f"inventory{number}", number), f"inventory{number}", ECHO)
        self.client, self.gateway = lab.host("client", 4), lab.host("gateway", 16)
        Nginx(self.gateway, "local", ECHO)  # at all addresses of 127.0.0.0/8
        self.opener = within(self.gateway)
        first = self.driver(memory())
        self.proxy = Nginx(self.gateway, "gateway", GATEWAY.format(server=server, family=family), CURRENT_NGINX)
        self._wait()
        first.close()

    def driver(self, journal: Journal) -> DnsDriver:
        made = DnsDriver(
            self.endpoints, config_of.DnsDriver(name=NAME, listen=LISTEN), journal, opener=self.opener
        )
        made.discover()
        self._latest = made
        return made

    def state(self) -> Any:
        """Return whom nginx uses: of all that it has been answered, nothing else can be asked of it."""
        return set(self.reached(30))

    def reached(self, requests: int) -> Counter[str]:
        results = ClosedLoop(self.client, "10.0.0.16", PORT, workers=3, count=requests).results()
        return Counter(
            _endpoint(result.body) if result.status == 200 else str(result.status) for result in results
        )

    def hold(self, endpoint: str) -> None:
        raise NotImplementedError

    release = hold

    def restart(self) -> None:
        self.proxy.end()
        self.start()

    def stop(self) -> None:
        """End nginx, and wait until it must have asked again if it were still there."""
        self.proxy.end()
        end = time.monotonic() + PATIENCE
        while not _is_away(self._latest):
            assert time.monotonic() < end
            time.sleep(0.05)

    def start(self) -> None:
        self.proxy.start()
        self._wait()

    def _wait(self) -> None:
        end = time.monotonic() + PATIENCE
        while (found := self.reached(1)).keys() & {"502", "0"}:
            assert time.monotonic() < end, found


def _endpoint(text: str) -> str:
    host, _, port = text.rpartition(":")
    return str(Listen(host, int(port)))


def _is_away(driver: DnsDriver) -> bool:
    try:
        driver.read()
    except DriverError as error:
        return error.away
    return False
