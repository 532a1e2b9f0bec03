# SPDX-License-Identifier: Apache-2.0
"""Fail-fast before the real kernel, with a client on a host of the lab."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import Any

from lab.gateway import Nginx
from lab.lab import Lab
from lab.network import enter
from tests.lab.rigs.rig import ENDPOINTS
from tidegate.pools.driver import Driver
from tidegate.pools.failfast import FailfastDriver, Refusals, endpoint_of, load
from tidegate.pools.journal import Journal

_ANSWERS = 'server { listen 5000; location / { return 200 "$server_addr:$server_port"; } }'
#: One connect after the other, to each endpoint in turn, as a proxy does that goes on to the next.
_CLIENT = """
import socket, sys
endpoints = sys.argv[2:]
for number in range(int(sys.argv[1])):
    for endpoint in endpoints[number % len(endpoints):] + endpoints[:number % len(endpoints)]:
        host, _, port = endpoint.rpartition(":")
        try:
            with socket.create_connection((host, int(port)), 5) as client:
                client.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
                answer = b"".join(iter(lambda: client.recv(4096), b""))
        except ConnectionRefusedError:
            continue
        print(answer.rpartition(b"\\r\\n\\r\\n")[2].decode())
        break
"""


class FailfastRig:
    """The kernel, which forgets nothing and is never away."""

    name = "failfast"
    has_operator = False
    can_be_away = False

    def __init__(self, lab: Lab) -> None:
        for number in (6, 7, 8):
            Nginx(lab.host(f"inventory{number}", number), f"inventory{number}", _ANSWERS)
        self._gateway = lab.host("gateway", 16)
        bpf, _ = load()
        for name in ("failfast_4", "failfast_6"):
            bpf.links.append(bpf.programs[name].attach_cgroup(lab.cgroup))
        self._refusals = Refusals(bpf)
        lab.stack.callback(self._refusals.close)

    def driver(self, journal: Journal) -> Driver:  # noqa: ARG002
        self._refusals.renew()
        return FailfastDriver(self._refusals, {name: endpoint_of(name) for name in ENDPOINTS})

    def state(self) -> Any:
        return self._refusals.refused()

    def reached(self, requests: int) -> Counter[str]:
        self._refusals.renew()
        argv = [sys.executable, "-c", _CLIENT, str(requests), *ENDPOINTS]
        done = subprocess.run(
            enter(self._gateway.namespace, argv, self._gateway.lab.cgroup),
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return Counter(done.stdout.split())

    def hold(self, endpoint: str) -> None:
        raise NotImplementedError

    release = hold

    def restart(self) -> None:
        return

    stop = start = restart
