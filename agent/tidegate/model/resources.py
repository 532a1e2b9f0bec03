# SPDX-License-Identifier: Apache-2.0
"""What the node and each service have of CPU and memory, and what they lack.

No part refers back to what holds it, so the garbage collector need not look at any (``gc=False``).
"""

from __future__ import annotations

import msgspec


class Pressure(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Stalls for want of one resource (PSI): of some tasks, and of all of them at once.

    Seconds since the start of the node (or cgroup), shares of the last interval.
    """

    some_seconds: float
    some: float | None
    full_seconds: float | None
    full: float | None


def by_resource_and_kind(pressure: dict[str, Pressure] | None) -> dict[tuple[str, str], float] | None:
    """Return the seconds of stalls by (resource, kind); None where the kernel keeps none."""
    if pressure is None:
        return None
    kinds = {
        (resource, kind): seconds
        for resource, stalls in pressure.items()
        for kind, seconds in (("some", stalls.some_seconds), ("full", stalls.full_seconds))
    }
    return {key: seconds for key, seconds in kinds.items() if seconds is not None}


class Executable(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A program that a service runs: what it is called (nginx, haproxy, envoy, python, java, node, go ...).

    ``version`` is None where the file doesn't tell.
    """

    name: str
    version: str | None
    path: str


class ResourceRow(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """CPU and memory of one service.

    ``cpu`` is how many CPUs it took in the last interval, ``cpu_limit`` how many it may take. ``throttled`` is the
    share of the limit's periods of the last interval in which it was stopped. ``memory_working_set`` is memory
    without what the kernel can take back at once. ``oom_kills`` counts its processes that the kernel has killed
    since the agent's start. What a host doesn't count is None; a limit that isn't set is None too.
    """

    service: str
    container: str
    cgroup: str
    cpu_seconds: float | None
    cpu: float | None
    cpu_limit: float | None
    throttled_seconds: float | None
    throttled: float | None
    memory: int | None
    memory_working_set: int | None
    memory_limit: int | None
    oom_kills: int | None
    pressure: dict[str, Pressure] | None
    executables: tuple[Executable, ...]

    @property
    def pressure_seconds(self) -> dict[tuple[str, str], float] | None:
        """Seconds of stalls by (resource, kind)."""
        return by_resource_and_kind(self.pressure)


class NodeResources(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The same of the whole node.

    ``steal`` is the share of its CPU time that the hypervisor gave to others in the last interval; None on bare
    metal. ``pressure`` is by resource: cpu, memory, io; None where the kernel keeps none.
    """

    cpu: float | None
    steal: float | None
    steal_seconds: float | None
    memory_total: int | None
    memory_available: int | None
    oom_kills: int
    pressure: dict[str, Pressure] | None

    @property
    def pressure_seconds(self) -> dict[tuple[str, str], float] | None:
        """Seconds of stalls by (resource, kind)."""
        return by_resource_and_kind(self.pressure)
