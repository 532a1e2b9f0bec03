# SPDX-License-Identifier: Apache-2.0
"""The whole story: a gateway by any of the three proxies, two upstreams with spares, and the agent beside it."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from lab.envoy import Cluster, Envoy
from lab.gateway import CURRENT_NGINX, Nginx
from lab.haproxy import Haproxy
from lab.lab import Host, Lab

PROXIES = ("nginx", "haproxy", "envoy")
AUTH = ("10.0.0.5:4000", "10.0.0.9:4000")
INVENTORY = ("10.0.0.6:5000", "10.0.0.7:5000", "10.0.0.8:5000")
PORT = 80

#: Says who it is; answers 503 while there is a file.
_UPSTREAM = """\
log_format times '$msec $status';
server {{
    listen {port}{tls};
    root ./;
    keepalive_timeout 60s;
    keepalive_requests 1000000;
    access_log access.log times;
    location / {{
        if (-f $document_root/failing) {{ return 503; }}
        return 200 "$server_addr:$server_port\\n";
    }}
}}
"""
_NGINX = """\
limit_req_zone $binary_remote_addr zone=auth:1m rate=10r/s;
log_format tidegate_upstream '$upstream_addr $upstream_status $upstream_connect_time $upstream_header_time';
keepalive_min_timeout 300ms;
upstream auth_service {{ include {directory}/auth.conf; keepalive 32; }}
upstream inventory_service {{ include {directory}/inventory.conf; keepalive 32; }}
server {{
    listen 80;
    {log}
    keepalive_timeout 60s;
    keepalive_requests 1000000;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    location /auth/ {{
        limit_req zone=auth burst=20 nodelay;
        limit_req_status 429;
        proxy_pass {scheme}://auth_service;
    }}
    location / {{ proxy_pass {scheme}://inventory_service; }}
}}
"""
_HAPROXY = """\
defaults
    mode http
    timeout connect 1s
    timeout client 60s
    timeout server 10s
    timeout queue 5s
frontend gateway
    bind :80
    use_backend auth_service if { path_beg /auth/ }
    default_backend inventory_service
"""
RULE = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}}}
spec:
  host: {name}
  trafficPolicy:
    connectionPool: {{tcp: {{maxConnections: 100}}, http: {{maxRequestsPerConnection: 10}}}}
    outlierDetection:
      {{consecutive5xxErrors: 3, interval: 1s, baseEjectionTime: {ejection}, maxEjectionPercent: 100}}
"""


_TLS_OF_ENVOY = {
    "transport_socket": {
        "name": "tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
        },
    }
}


class Way(NamedTuple):
    """How the gateway is reached: from a host, by an address and a port."""

    host: Host
    address: str
    port: int


class Story:
    """Visitors at 10.0.0.4, the gateway at 10.0.0.16, and behind it the upstreams, each an nginx.

    ``config`` is what Tidegate is told of it, as YAML; ``rate_limit`` limits the SYNs of a source at the gateway.
    With ``tls`` the gateway speaks it to the upstreams; nginx then tells of them at the socket ``feed``.
    """

    def __init__(self, lab: Lab, proxy: str, ejection: str = "30s", *, tls: bool = False) -> None:
        self.directory = Path(lab.stack.enter_context(tempfile.TemporaryDirectory(prefix="tglab-")))
        self.feed = self.directory / "upstreams.sock"
        self._tls = tls
        if tls:
            _certify(self.directory)
        self.upstreams: dict[str, Nginx] = {}
        for endpoint in (*AUTH, *INVENTORY):
            address, _, port = endpoint.partition(":")
            number = int(address.rpartition(".")[2])
            name = f"{'auth' if endpoint in AUTH else 'inventory'}{number}"
            self.upstreams[endpoint] = Nginx(
                lab.host(name, number), name, _UPSTREAM.format(port=port, tls=self._certificate())
            )
        self.visitors = lab.host("visitors", 4)
        self.gateway = lab.host("gateway", 16)
        self.way = Way(self.visitors, self.gateway.v4, PORT)
        begin: dict[str, Callable[[], tuple[str, str]]] = {
            "nginx": self._nginx, "haproxy": self._haproxy, "envoy": self._envoy,
        }  # fmt: skip
        self.proxy: Nginx | Haproxy | Envoy
        auth, inventory = begin[proxy]()
        self.config = f"pools:\n{self._pool('auth', AUTH, auth, ejection)}"
        self.config += self._pool("inventory", INVENTORY, inventory, ejection)
        self.rate_limit = 'interfaces: [eth0], mode: enforce, ports: {"80": {syn: {rate: 50/s, burst: 100}}}'

    def fail(self, endpoint: str) -> None:
        """Have an endpoint answer 503 from now on."""
        (self.upstreams[endpoint].directory / "failing").touch()

    def mend(self, endpoint: str) -> None:
        """Have it answer 200 again."""
        (self.upstreams[endpoint].directory / "failing").unlink()

    def statuses(self, endpoint: str) -> list[tuple[float, int]]:
        """Return the time (Unix, ms) and status of each answer of an endpoint, by its own log."""
        log = self.upstreams[endpoint].directory / "access.log"
        lines = log.read_text(encoding="ascii").splitlines() if log.exists() else []
        return [(float(time), int(status)) for time, status in (line.split(" ") for line in lines)]

    def _certificate(self) -> str:
        """Return what stands behind the port of an upstream that speaks TLS."""
        if not self._tls:
            return ""
        return (
            f" ssl; ssl_certificate {self.directory}/server.pem; ssl_certificate_key {self.directory}/server.key"
        )

    def _pool(self, name: str, endpoints: tuple[str, ...], driver: str, ejection: str) -> str:
        rule = self.directory / f"{name}-rule.yaml"
        rule.write_text(RULE.format(name=name, ejection=ejection), encoding="utf-8")
        return (
            f"  {name}:\n    endpoints: {json.dumps(endpoints)}\n    mode: enforce\n    min_healthy: 1\n"
            f"    destination_rule: {rule}\n    drivers: [{driver}]\n"
        )

    def _nginx(self) -> tuple[str, str]:
        for name, endpoints in (("auth", AUTH), ("inventory", INVENTORY)):
            lines = "".join(f"server {endpoint} max_fails=0;\n" for endpoint in endpoints)
            (self.directory / f"{name}.conf").write_text(lines, encoding="ascii")
        log = f"access_log syslog:server=unix:{self.feed},nohostname tidegate_upstream;" if self._tls else ""
        servers = _NGINX.format(directory=self.directory, scheme="https" if self._tls else "http", log=log)
        nginx = self.proxy = Nginx(self.gateway, "gateway", servers, CURRENT_NGINX)
        nginx.write(servers, "worker_shutdown_timeout 10s;\n")
        nginx.reload()
        where = (
            f"config: {self.proxy.directory}/nginx.conf, prefix: {self.proxy.directory}, program: {CURRENT_NGINX}"
        )
        auth, inventory = (
            f"{{nginx: {{include: {self.directory}/{name}.conf, {where}}}}}" for name in ("auth", "inventory")
        )
        return auth, inventory

    def _haproxy(self) -> tuple[str, str]:
        config = _HAPROXY
        for name, endpoints in (("auth_service", AUTH), ("inventory_service", INVENTORY)):
            config += f"backend {name}\n"
            tls = " ssl verify none" if self._tls else ""
            config += "".join(f"    server s{number} {at}{tls}\n" for number, at in enumerate(endpoints))
        self.proxy = Haproxy(self.gateway, "gateway", config)
        auth, inventory = (
            f"{{haproxy: {{socket: {self.proxy.socket}, backend: {name}}}}}"
            for name in ("auth_service", "inventory_service")
        )
        return auth, inventory

    def _envoy(self) -> tuple[str, str]:
        """Envoy listens on the gateway's loopback, each cluster on a port of its own."""
        clusters, port = [], PORT
        for name, endpoints in (("inventory", INVENTORY), ("auth", AUTH)):
            path = self.directory / f"{name}.json"
            path.write_text(json.dumps(_assignment(name, endpoints)), encoding="ascii")
            clusters.append(Cluster(name, port, eds={"path": str(path)}, more=_TLS_OF_ENVOY if self._tls else {}))
            port += 1
        self.proxy = Envoy(self.gateway, clusters)
        self.way = Way(self.gateway, "127.0.0.1", PORT)
        auth, inventory = (
            f"{{envoy: {{eds: {self.directory}/{name}.json, admin: {self.proxy.admin}}}}}"
            for name in ("auth", "inventory")
        )
        return auth, inventory


def _certify(directory: Path) -> None:
    """Make a key, and a certificate that nobody checks."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-keyout", f"{directory}/server.key", "-out", f"{directory}/server.pem", "-subj", "/CN=upstream"]
    subprocess.run(command, check=True, capture_output=True)


def _assignment(name: str, endpoints: tuple[str, ...]) -> dict[str, object]:
    parts = (endpoint.partition(":") for endpoint in endpoints)
    hosts = [
        {"endpoint": {"address": {"socket_address": {"address": address, "port_value": int(port)}}}}
        for address, _, port in parts
    ]
    kind = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
    return {"resources": [{"@type": kind, "cluster_name": name, "endpoints": [{"lb_endpoints": hosts}]}]}
