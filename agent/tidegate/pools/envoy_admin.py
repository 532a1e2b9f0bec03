# SPDX-License-Identifier: Apache-2.0
"""Asks Envoy's admin interface, over TCP or a Unix socket: its version, its clusters, their hosts' health."""

from __future__ import annotations

import http.client
import re
import socket
from collections.abc import Iterable
from typing import NamedTuple, TypeVar
from urllib.parse import quote

import msgspec

from tidegate.config import units
from tidegate.errors import DriverError
from tidegate.pools.envoy_assignment import OUT

T = TypeVar("T")
_PATIENCE = 2.0
_LARGEST = 64 << 20
#: Names that mean themselves in a regular expression of any dialect, but for the dot.
_SIMPLE = re.compile(r"[\w.:/-]+", re.ASCII)


class Host(NamedTuple):
    """What Envoy says of an endpoint: out by its EDS file, failed by Envoy's own checks."""

    is_out: bool
    has_failed: bool


class Cluster(NamedTuple):
    """A cluster as Envoy has it; ``file`` and ``watched`` are of its EDS, None where there is none such.

    ``panic`` is the share of healthy hosts in percent below which Envoy uses all.
    """

    name: str
    assignment: str
    file: str | None
    watched: str | None
    panic: float


class _Version(msgspec.Struct):
    version: str = ""


class _Socket(msgspec.Struct):
    address: str = ""
    port_value: int = 0


class _Address(msgspec.Struct):
    socket_address: _Socket | None = None


class _Health(msgspec.Struct):
    eds_health_status: str = "HEALTHY"
    failed_active_health_check: bool = False
    failed_outlier_check: bool = False


class _Host(msgspec.Struct):
    address: _Address = msgspec.field(default_factory=_Address)
    health_status: _Health = msgspec.field(default_factory=_Health)


class _Status(msgspec.Struct):
    name: str = ""
    host_statuses: list[_Host] = msgspec.field(default_factory=list)


class _Clusters(msgspec.Struct):
    cluster_statuses: list[_Status] = msgspec.field(default_factory=list)


class _Directory(msgspec.Struct):
    path: str = ""


class _File(msgspec.Struct):
    path: str = ""
    watched_directory: _Directory | None = None


class _Source(msgspec.Struct):
    path: str = ""
    path_config_source: _File | None = None


class _Eds(msgspec.Struct):
    service_name: str = ""
    eds_config: _Source = msgspec.field(default_factory=_Source)


class _Percent(msgspec.Struct):
    value: float = 0.0


class _Balancing(msgspec.Struct):
    # What is not there is the default (envoy/config/cluster/v3/cluster.proto, CommonLbConfig).
    healthy_panic_threshold: _Percent = msgspec.field(default_factory=lambda: _Percent(50.0))


class _Config(msgspec.Struct):
    name: str = ""
    type: str = ""
    eds_cluster_config: _Eds = msgspec.field(default_factory=_Eds)
    common_lb_config: _Balancing = msgspec.field(default_factory=_Balancing)


class _Entry(msgspec.Struct):
    cluster: _Config = msgspec.field(default_factory=_Config)


class _Dump(msgspec.Struct):
    configs: list[_Entry] = msgspec.field(default_factory=list)


class Admin:
    """The admin interface at ``address``: the path of a Unix socket, or HOST:PORT.

    Raises DriverError, ``away`` where nobody answers.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def version(self) -> str:
        """Return Envoy's version."""
        # COMMIT/VERSION/STATUS/BUILD/TLS
        words = self._ask("/server_info", _Version).version.split("/")
        return words[1] if len(words) > 1 else words[0]

    def hosts(self, cluster: str) -> dict[str, Host] | None:
        """Return the hosts of a cluster by ADDRESS:PORT; None where Envoy has no such cluster."""
        # Before its filter there was none, and what isn't known is passed over.
        found = self._ask(f"/clusters?format=json{_only('filter', cluster)}", _Clusters)
        for status in found.cluster_statuses:
            if status.name == cluster:
                return _hosts(status.host_statuses)
        return None

    def statistics(self) -> bytes:
        """Return what Envoy counts of the hosts of all clusters, as tidegate.feeds.envoy reads it."""
        return bytes(self._ask("/clusters?format=json", msgspec.Raw))

    def cluster(self, assignment: str, file: str) -> Cluster | None:
        """Return the cluster that has these endpoints: of several one that reads the file, if any does."""
        for only in (_only("name_regex", assignment), ""):  # most clusters are called as their endpoints are
            found = [cluster for cluster in self._clusters(only) if cluster.assignment == assignment]
            if found:
                return next((cluster for cluster in found if cluster.file == file), found[0])
        return None

    def _clusters(self, only: str) -> list[Cluster]:
        found = []
        for kind in ("static_clusters", "dynamic_active_clusters"):
            dump = self._ask(f"/config_dump?resource={kind}{only}", _Dump)
            found += [_cluster(entry.cluster) for entry in dump.configs]
        return found

    def _ask(self, path: str, kind: type[T]) -> T:
        connection = _Connection(self.address)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read(_LARGEST)
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "strerror", None) or error or type(error).__name__)
            raise DriverError(
                f"envoy's admin interface at {self.address}: expected an answer, found: {reason}; start Envoy, or "
                "set 'admin' of the driver to what 'admin.address' of Envoy's config says",
                away=True,
                exchanges=((f"GET {path}", reason),),
            ) from error
        finally:
            connection.close()
        try:
            if response.status != http.client.OK:
                raise ValueError(f"status {response.status}")
            return msgspec.json.decode(body, type=kind)
        except ValueError as error:  # msgspec's own are such
            raise DriverError(
                f"envoy's admin interface at {self.address}: expected Envoy's answer to {path}, found: {error}; "
                "check that 'admin' of the driver is Envoy's",
                exchanges=((f"GET {path}", f"{response.status} {body[:200]!r}"),),
            ) from error


class _Connection(http.client.HTTPConnection):
    """A connection for one question."""

    def __init__(self, address: str) -> None:
        self._path = address if address.startswith("/") else None
        host, _, port = address.rpartition(":")
        if self._path is None:
            super().__init__(host.strip("[]"), int(port), timeout=_PATIENCE)
        else:
            super().__init__("admin", timeout=_PATIENCE)

    def connect(self) -> None:
        """Connect."""
        if self._path is None:
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _only(parameter: str, name: str) -> str:
    pattern = f"^{name.replace('.', '[.]')}$"
    return f"&{parameter}={quote(pattern, safe='')}" if _SIMPLE.fullmatch(name) else ""


def _hosts(statuses: Iterable[_Host]) -> dict[str, Host]:
    found: dict[str, Host] = {}
    for status in statuses:
        at, health = status.address.socket_address, status.health_status
        if at is None:
            continue
        try:
            host = f"[{at.address}]" if ":" in at.address else at.address
            endpoint = units.endpoint(f"{host}:{at.port_value}")
        except ValueError:
            continue
        has_failed = health.failed_active_health_check or health.failed_outlier_check
        now = Host(health.eds_health_status in OUT, has_failed)
        other = found.get(endpoint, now)  # in two priorities: out where it is out in both
        found[endpoint] = Host(now.is_out and other.is_out, now.has_failed and other.has_failed)
    return found


def _cluster(config: _Config) -> Cluster:
    eds = config.eds_cluster_config
    source = eds.eds_config.path_config_source or _File(eds.eds_config.path)
    directory = source.watched_directory
    is_file = config.type == "EDS" and source.path != ""
    return Cluster(
        name=config.name,
        assignment=eds.service_name or config.name,
        file=source.path if is_file else None,
        watched=directory.path if is_file and directory else None,
        panic=config.common_lb_config.healthy_panic_threshold.value,
    )


def allowed(total: int, panic: float) -> int:
    """Return how many of so many hosts may be out before Envoy uses all of them, in panic."""
    # LoadBalancerBase::isHostSetInPanic: the percentage of healthy hosts is less than the threshold.
    return max((out for out in range(total + 1) if 100 * (total - out) >= panic * total), default=0)


def worth_a_look(cluster: Cluster, total: int) -> list[str]:
    """Return what keeps ejections in a cluster of so many endpoints from coming true.

    Its ``update_merge_window`` does not: what comes by EDS is applied at once (Envoy 1.40,
    tests/lab/test_pools_envoy.py).
    """
    found = []
    most = allowed(total, cluster.panic)
    if cluster.panic > 0 and total:
        found.append(
            f"cluster {cluster.name}: healthy_panic_threshold is {cluster.panic:g} %: of {total} endpoints at "
            f"most {most} may be out; with {most + 1} out Envoy panics and sends to all {total}, the ejected "
            "too; set in the cluster: common_lb_config: {healthy_panic_threshold: {value: 0}}"
        )
    return found
