# SPDX-License-Identifier: Apache-2.0
"""A real Envoy with an EDS file, before three endpoints, and its driver."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from lab.closedloop import ClosedLoop, Request
from lab.envoy import PROMPT, Cluster, Envoy
from lab.gateway import Nginx
from lab.lab import Lab
from tests.lab.remains import wait_until
from tests.lab.rigs.rig import ENDPOINTS
from tidegate.config import pools as config
from tidegate.model.driver import Use
from tidegate.pools.driver import Driver, Wanted
from tidegate.pools.envoy import EnvoyDriver
from tidegate.pools.envoy_admin import Admin, Host
from tidegate.pools.journal import Journal
from tidegate.pools.plan import is_done

PORT = 9001
_ECHO = """\
server {
    listen 5000;
    listen [::]:5000;
    keepalive_timeout 60s;
    keepalive_requests 1000000;
    location / { return 200 "$server_addr:$server_port"; }
}
"""
#: As people write it: with comments, weights and several layouts.
YAML = """\
# The inventory, by hand.
version_info: "7"
resources:
- "@type": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: inventory
  endpoints:
  - locality: {zone: a}
    load_balancing_weight: 1
    lb_endpoints:
    - endpoint:
        address:
          socket_address: {address: 10.0.0.6, port_value: 5000}
      load_balancing_weight: 1  # an old machine
    - {endpoint: {address: {socket_address: {address: 10.0.0.7, port_value: 5000}}}, health_status: HEALTHY}
    # moved here in spring
    - endpoint: {address: {socket_address: {address: 10.0.0.8, port_value: 5000}}}
      health_status: "HEALTHY"
"""


class EnvoyRig:
    """Envoy and its clients on the host ``gateway``, nginx on those of the endpoints.

    ``eds`` is the file below ``directory``, with ``links`` on the way to it; ``watched`` is what Envoy watches for
    it, below ``directory`` too. ``keys`` are further ones of the cluster, ``more`` other clusters.
    """

    name = "envoy"
    has_operator = True
    can_be_away = True

    def __init__(
        self,
        lab: Lab,
        text: str = YAML,
        eds: str = "inventory.yaml",
        *,
        directory: Path | None = None,
        links: Mapping[str, str] | None = None,
        watched: str | None = None,
        common: Mapping[str, Any] = PROMPT,
        keys: Mapping[str, Any] | None = None,
        more: Iterable[Cluster] = (),
    ) -> None:
        self.host = lab.host("gateway", 16)
        self.upstreams = {
            endpoint: Nginx(lab.host(f"inventory{number}", number), f"inventory{number}", _ECHO)
            for number, endpoint in zip((6, 7, 8), ENDPOINTS, strict=True)
        }
        if directory is None:
            directory = Path(lab.stack.enter_context(tempfile.TemporaryDirectory(prefix="tglab-")))
        self.directory, self.eds = directory, directory / eds
        for link, target in (links or {}).items():
            (self.directory / link).parent.mkdir(parents=True, exist_ok=True)
            (self.directory / link).symlink_to(target)
        real = Path(os.path.realpath(self.eds))
        real.parent.mkdir(parents=True, exist_ok=True)
        real.write_text(text, encoding="utf-8")
        self.watched = None if watched is None else str(self.directory / watched)
        source: dict[str, Any] = {"path": str(self.eds)}
        if self.watched is not None:
            source["watched_directory"] = {"path": self.watched}
        cluster = Cluster("inventory", PORT, eds=source, common_lb_config=common, more=keys or {})
        self.proxy = Envoy(self.host, [cluster, *more])

    def section(self, **config_of: Any) -> config.EnvoyDriver:
        found = {
            "eds": str(self.eds),
            "cluster": "inventory",
            "admin": str(self.proxy.admin),
            "watched_directory": self.watched,
        }
        return config.EnvoyDriver(**{**found, **config_of})

    def driver(self, journal: Journal, **config_of: Any) -> EnvoyDriver:
        return EnvoyDriver(ENDPOINTS, self.section(**config_of), journal)

    def state(self) -> Any:
        """Return each file and link below the directory."""
        found: dict[str, bytes | str] = {}
        for path in sorted(self.directory.rglob("*")):
            name = str(path.relative_to(self.directory))
            if path.is_symlink():
                found[name] = f"-> {os.readlink(path)}"
            elif path.is_file():
                found[name] = path.read_bytes()
        return found

    def hosts(self) -> Mapping[str, Host]:
        """Return what Envoy says."""
        return Admin(str(self.proxy.admin)).hosts("inventory") or {}

    def reached(self, requests: int) -> Counter[str]:
        return answered(ClosedLoop(self.host, "127.0.0.1", PORT, workers=3, count=requests).results())

    def hold(self, endpoint: str) -> None:
        self.mark(endpoint, "DRAINING")

    def release(self, endpoint: str) -> None:
        self.mark(endpoint, "HEALTHY")

    def mark(self, endpoint: str, status: str) -> None:
        """Write a status as an operator with an editor does, and wait until Envoy has it."""
        self.exchange(marked(self.eds.read_text(encoding="utf-8"), endpoint, status))
        is_out = status not in ("HEALTHY", "UNKNOWN")
        wait_until(lambda: self.hosts()[endpoint].is_out is is_out, f"{endpoint} {status}")

    def exchange(self, text: str) -> None:
        """Replace the file as an editor does, by a rename."""
        new = self.eds.with_name("edited")
        new.write_text(text, encoding="utf-8")
        new.rename(self.eds)

    def restart(self) -> None:
        self.stop()
        self.start()

    def stop(self) -> None:
        self.proxy.stop()

    def start(self) -> None:
        self.proxy.start()


def settle(driver: Driver, out: Wanted) -> dict[str, Use]:
    """Have a driver do it, and wait until Envoy says so."""
    driver.apply(out)
    wait_until(lambda: is_done(out, driver.read()), f"{driver.target}: {out}")
    return driver.read()


def answered(requests: Iterable[Request]) -> Counter[str]:
    """Count requests by who answered, failures by status."""
    return Counter(each.body if each.status == 200 else str(each.status) for each in requests)


def marked(text: str, endpoint: str, status: str, cluster: str = "inventory") -> str:
    """Return a text in which an endpoint has a status, laid out as programs do."""
    tree = yaml.safe_load(text)  # which JSON is, too
    for resource in tree["resources"]:
        for locality in resource["endpoints"] if resource["cluster_name"] == cluster else ():
            for member in locality["lb_endpoints"]:
                address = member["endpoint"]["address"]["socket_address"]
                if f"{address['address']}:{address['port_value']}" == endpoint:
                    member["health_status"] = status
    return json.dumps(tree) if text.startswith("{") else str(yaml.safe_dump(tree))
