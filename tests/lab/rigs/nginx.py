# SPDX-License-Identifier: Apache-2.0
"""A real nginx whose upstream includes a file of servers, before three endpoints, and its driver."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.closedloop import ClosedLoop
from lab.gateway import CURRENT_NGINX, Nginx
from lab.lab import Lab
from lab.network import enter
from tests.lab.rigs.rig import ENDPOINTS
from tidegate.config import pools as config_of
from tidegate.pools.journal import Journal
from tidegate.pools.nginx import NginxDriver
from tidegate.pools.nginx_process import RESOLUTION

PORT = 80
_ECHO = """\
server {
    listen 5000;
    keepalive_timeout 60s;
    keepalive_requests 1000000;
    location / { return 200 "$server_addr:$server_port\\n"; }
}
"""
#: What an operator may have written: his own spacing, notes and parameters.
SERVERS = """\
# the inventory's servers
server 10.0.0.6:5000 weight=1;   # rack 1

server 10.0.0.7:5000;server   10.0.0.8:5000  max_fails=0 ;
"""
_POOL = """\
upstream {name} {{
    include {include};
    keepalive 32;
}}
server {{
    listen {port};
    keepalive_requests 1000000;
    location / {{
        proxy_pass http://{name};
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_next_upstream off;
    }}
}}
"""
MINIMUM = "keepalive_min_timeout 300ms;\n"
SHUTDOWN = "worker_shutdown_timeout 10s;\n"


class NginxRig:
    """nginx on the host ``gateway``, others on those of the endpoints, a client besides.

    ``pools`` are served at port 80 and those behind it, each with a file of its own; the first is the rig's.
    """

    name = "nginx"
    has_operator = True
    can_be_away = True

    def __init__(
        self,
        lab: Lab,
        program: str = CURRENT_NGINX,
        http: str = MINIMUM,
        pools: int = 1,
        servers: str = SERVERS,
        directory: Path | None = None,
    ) -> None:
        if directory is None:
            directory = Path(lab.stack.enter_context(tempfile.TemporaryDirectory(prefix="tglab-")))
        self.includes = [directory / f"inventory{number}.conf" for number in range(pools)]
        self.include = self.includes[0]
        blocks = [http]
        for number, include in enumerate(self.includes):
            include.write_text(servers, encoding="ascii")
            blocks.append(_POOL.format(name=f"inventory{number}", include=include, port=PORT + number))
        for number in (6, 7, 8):
            Nginx(lab.host(f"inventory{number}", number), f"inventory{number}", _ECHO)
        self.client = lab.host("client", 4)
        self.http = "".join(blocks)
        self.program = program
        self.host = lab.host("gateway", 16)
        self.proxy = Nginx(self.host, "gateway", self.http, program)
        self.proxy.write(self.http, SHUTDOWN)

    def driver(self, journal: Journal) -> NginxDriver:
        return self.driver_of(self.include, journal)

    def driver_of(self, include: Path, journal: Journal) -> NginxDriver:
        config = config_of.NginxDriver(
            include=str(include),
            config=str(self.proxy.directory / "nginx.conf"),
            prefix=str(self.proxy.directory),
            program=self.program,
        )
        return NginxDriver(ENDPOINTS, config, journal)

    def state(self) -> Any:
        return [include.read_bytes() for include in self.includes]

    def reached(self, requests: int) -> Counter[str]:
        results = ClosedLoop(self.client, "10.0.0.16", PORT, workers=3, count=requests).results()
        return Counter(result.body if result.status == 200 else str(result.status) for result in results)

    def hold(self, endpoint: str) -> None:
        self.edit(lambda text: text.replace(f"server {endpoint}", f"server {endpoint} down", 1))

    def release(self, endpoint: str) -> None:
        self.edit(lambda text: text.replace(f"server {endpoint} down", f"server {endpoint}", 1))

    def edit(self, change: Callable[[str], str]) -> None:
        """Do as an operator with an editor does: write the file, test it, reload."""
        before = self.include.read_text(encoding="ascii")
        after = change(before)
        assert after != before
        self.include.write_text(after, encoding="ascii")
        written = self.include.stat().st_ctime
        argv = [self.program, "-t", "-q", "-p", f"{self.proxy.directory}/", "-c", "nginx.conf"]
        subprocess.run(enter(self.host.namespace, argv), check=True)
        while time.time() < written + RESOLUTION:  # as fast as a script, or none could tell what came first
            time.sleep(0.001)
        self.proxy.reload()

    def restart(self) -> None:
        self.stop()
        self.start()

    def stop(self) -> None:
        self.proxy.end()

    def start(self) -> None:
        self.proxy.start()
