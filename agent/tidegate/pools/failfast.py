# SPDX-License-Identifier: Apache-2.0
"""Has the kernel refuse connects to endpoints at once: for all pools together, and as the driver of one."""

from __future__ import annotations

import errno
import logging
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from ipaddress import ip_address
from itertools import takewhile
from pathlib import Path
from typing import Self

from tidegate.config.units import listen
from tidegate.errors import KernelError
from tidegate.kernel.endpoints import Endpoint, Failfast
from tidegate.kernel.maps import Map
from tidegate.kernel.namespaces import network_namespaces, run_in_each
from tidegate.kernel.objects import BpfObject, Program
from tidegate.model.driver import Use
from tidegate.pools.driver import Discovery, Exchange, Wanted

log = logging.getLogger("tidegate")

#: Without word from the agent nothing is refused after so many seconds.
LEASE = 5.0
_SHARED = ("pool_endpoints", "pool_counts", "http_sockets")
_CONNECTS, _END_IDLE = ("failfast_4", "failfast_6"), "failfast_end_idle"


class Refusals:
    """Refuses connects of all services, or of those that a pool names (patterns as in the shell).

    ``shared`` are maps of another object, of which it takes the endpoints, to count in them what was refused.
    """

    def __init__(self, bpf: BpfObject, clock: Callable[[], float] = time.monotonic) -> None:
        self._bpf, self._clock = bpf, clock
        self._kernel = Failfast(bpf.maps)
        ends = bpf.programs[_END_IDLE]
        self._end_idle = ends.attach_iterator() if ends.is_loaded else None
        if self._end_idle is not None:
            bpf.links.append(self._end_idle)
        self._granted: dict[Endpoint, int] = {}
        self._used: dict[Endpoint, int] = {}
        self._scopes: dict[Endpoint, int] = {}
        self._may_be_open = False
        self._chosen: list[tuple[str, ...]] = []

    @classmethod
    def start(cls, shared: Mapping[str, Map], cgroup2: Path) -> Self:
        """Load, and attach to all processes below ``cgroup2``; raises KernelError where that is refused."""
        bpf, refusal = load(shared)
        if refusal:
            log.warning("pools: failfast: %s", refusal)
        try:
            for name in _CONNECTS:
                bpf.links.append(bpf.programs[name].attach_cgroup(cgroup2))
            return cls(bpf)
        except BaseException:
            bpf.close()
            raise

    def end_idle(self) -> None:
        """End connections to refused endpoints that have been idle since the call before.

        Of all network namespaces that may be entered; nothing where the kernel can't (before Linux 6.5).
        """
        if not self._may_be_open or self._end_idle is None:
            return
        found = 0
        iterator = self._end_idle
        # Before the walk: an endpoint that goes out meanwhile sets it again.
        self._may_be_open = False

        def visit() -> None:
            nonlocal found
            found += len(iterator.read())

        run_in_each(list(network_namespaces().values()), visit)
        # No new ones come about, but for trials.
        if found or any(self._granted.values()):
            self._may_be_open = True

    def renew(self) -> None:
        """Have what is refused stay refused until the lease is over."""
        self._kernel.renew(self._clock() + LEASE)

    def apply(self, refused: Mapping[Endpoint, int], among: Iterable[Endpoint]) -> list[Endpoint]:
        """Refuse connects to these, all but so many to each, and no others ``among`` these; return the changed."""
        changed = [endpoint for endpoint in among if endpoint in self._granted and endpoint not in refused]
        for endpoint in changed:
            self._kernel.allow(endpoint)
            del self._granted[endpoint]
            self._used.pop(endpoint, None)
        for endpoint, permits in refused.items():
            left = self._granted.get(endpoint, -1) - self._used.get(endpoint, 0)
            if endpoint not in self._granted or permits != left:
                self._kernel.refuse(endpoint, permits=permits, scope=self._scopes.get(endpoint, 0))
                self._granted[endpoint], self._used[endpoint] = permits, 0
                self._may_be_open = True
                changed.append(endpoint)
        return changed

    def refused(self) -> dict[Endpoint, int]:
        """Return to whom the kernel refuses connects, and how many trials it was told to let through."""
        return {endpoint: entry.permits for endpoint, entry in self._kernel.entries().items()}

    def begun(self) -> dict[Endpoint, int]:
        """Return how many trials have begun since the last call, by endpoint."""
        if not any(self._granted.values()):
            return {}
        found = {}
        for endpoint, entry in self._kernel.entries().items():
            used = min(entry.tried, self._granted.get(endpoint, 0))
            if more := used - self._used.get(endpoint, 0):
                found[endpoint] = more
                self._used[endpoint] = used
        return found

    def choose(self, services: Mapping[Endpoint, Iterable[str]]) -> None:
        """Say whose connects are refused, by endpoint; no patterns: everybody's."""
        wanted = {endpoint: tuple(patterns) for endpoint, patterns in services.items()}
        self._chosen = sorted({patterns for patterns in wanted.values() if patterns})
        before, self._scopes = (
            self._scopes,
            {endpoint: self._chosen.index(patterns) + 1 for endpoint, patterns in wanted.items() if patterns},
        )
        for endpoint, permits in self._granted.items():
            if before.get(endpoint) != self._scopes.get(endpoint):
                left = permits - self._used.pop(endpoint, 0)
                self._granted[endpoint] = left
                self._kernel.refuse(endpoint, permits=left, scope=self._scopes.get(endpoint, 0))

    def follow(self, cgroups: Mapping[int, str]) -> None:
        """Take the cgroups that there are now, with the names of their services."""
        for scope, patterns in enumerate(self._chosen, 1):
            self._kernel.choose(
                scope,
                [
                    cgroup
                    for cgroup, service in cgroups.items()
                    if any(fnmatchcase(service, pattern) for pattern in patterns)
                ],
            )

    @property
    def programs(self) -> list[Program]:
        """Its programs."""
        return [program for program in self._bpf.programs.values() if program.is_loaded]

    def close(self) -> None:
        """Refuse nothing any more."""
        self._bpf.close()


class FailfastDriver:
    """One pool in the kernel; its endpoints by how the config writes them. It is quick, and needs no journal."""

    target = "the kernel's connect()"
    #: The kernel refuses nothing any more once the lease isn't renewed.
    sticks = False
    period = 1.0

    def __init__(self, refusals: Refusals, endpoints: Mapping[str, Endpoint]) -> None:
        self._refusals, self._endpoints = refusals, dict(endpoints)

    def discover(self) -> Discovery:
        """Return the kernel's release."""
        release = platform.release()
        warnings = ("callers see EPERM instead of ECONNREFUSED (Linux 5.18)",) if says_eperm(release) else ()
        return Discovery(release, warnings)

    def read(self) -> dict[str, Use]:
        """Read the kernel's table."""
        refused = self._refusals.refused()
        found = {}
        for name, endpoint in self._endpoints.items():
            permits = refused.get(endpoint)
            found[name] = Use.ACTIVE if permits is None else Use.TRIAL if permits else Use.EJECTED
        return found

    def apply(self, out: Wanted) -> list[Exchange]:
        """Write the difference into the kernel's table."""
        refused = {self._endpoints[name]: permits for name, permits in out.items() if name in self._endpoints}
        changed = self._refusals.apply(refused, self._endpoints.values())
        return [
            Exchange(
                f"{endpoint} {'allow' if endpoint not in refused else f'refuse, {refused[endpoint]} permits'}",
                "written",
            )
            for endpoint in changed
        ]

    def restore(self) -> list[Exchange]:
        """Refuse nothing any more."""
        return self.apply({})

    def close(self) -> None:
        """Hold nothing: the programs are for all pools."""


def endpoint_of(text: str) -> Endpoint:
    """Return an endpoint of the config as the kernel has it."""
    found = listen(text)
    return Endpoint(ip_address(found.host), found.port)


def says_eperm(release: str) -> bool:
    """Tell whether a kernel of this release has refused connects fail with EPERM, as it knows no other way."""
    major, minor = (int("".join(takewhile(str.isdigit, part)) or 0) for part in f"{release}.0".split(".")[:2])
    return (major, minor) < (5, 18)


def load(shared: Mapping[str, Map] | None = None) -> tuple[BpfObject, str]:
    """Load the programs, not yet attached; with maps of another object where given.

    Without what ends idle connections, where the kernel refuses that; the second value is the reason then, else
    empty.
    """
    try:
        return _load(shared, ends_idle=True), ""
    except KernelError as error:
        if error.errno != errno.EINVAL:
            raise
    bpf = _load(shared, ends_idle=False)
    return (
        bpf,
        "no program may end a connection (Linux 6.5), so kept ones to an endpoint that is out go on",
    )


def _load(shared: Mapping[str, Map] | None, *, ends_idle: bool) -> BpfObject:
    bpf = BpfObject.named("failfast")
    try:
        if shared is not None:
            bpf.share({name: shared[name] for name in _SHARED if name in shared})
            bpf.set_max_entries("failfast_entries", shared["pool_endpoints"].max_entries)
        if not ends_idle:
            bpf.programs[_END_IDLE].skip()
        return bpf.load()
    except BaseException:
        bpf.close()
        raise
