# SPDX-License-Identifier: Apache-2.0
"""From when on something is a finding: the thresholds of each kind, as keys of the config.

A section is named after its finding. Durations are seconds, rates events a second, sizes bytes, shares 0 to 1;
the notations are those of :mod:`tidegate.config.units`, by name.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

_Duration = Annotated[float, Meta(gt=0, extra={"notation": "duration"})]
_Rate = Annotated[float, Meta(gt=0, extra={"notation": "rate"})]
_Size = Annotated[int, Meta(ge=1, extra={"notation": "size"})]
_Share = Annotated[float, Meta(gt=0, le=1)]
_Count = Annotated[int, Meta(ge=1)]
_Factor = Annotated[float, Meta(ge=1)]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What every section of thresholds is."""


class MissingKeepalive(Limits, frozen=True, kw_only=True):
    """Connections that carry one exchange each."""

    connect_rate: _Rate = 10.0
    connects: _Count = 20
    exchanges: _Factor = 1.2


class PortsRunningOut(Limits, frozen=True, kw_only=True):
    """Ephemeral ports that will soon be used up, or are."""

    time_left: _Duration = 600.0
    used: _Share = 0.9


class Retransmits(Limits, frozen=True, kw_only=True):
    """Segments to one endpoint that are sent again, against all endpoints."""

    ratio: _Share = 0.01
    retransmits: _Count = 20
    segments: _Count = 500
    factor: _Factor = 5.0


class ConnectFailures(Limits, frozen=True, kw_only=True):
    """Connects that an endpoint or the path to it refuses."""

    failures: _Count = 5
    share: _Share = 0.05


class HangingUpstream(Limits, frozen=True, kw_only=True):
    """Connects, or requests, that nobody answers."""

    failures: _Count = 5
    share: _Share = 0.05
    patience: _Duration = 0.5


class AcceptQueueOverflow(Limits, frozen=True, kw_only=True):
    """Connections that are dropped because the application accepts too slowly."""

    drops: _Count = 5


class ConntrackNearLimit(Limits, frozen=True, kw_only=True):
    """A table of tracked connections that is nearly full."""

    used: _Share = 0.8


class StarvedSidecar(Limits, frozen=True, kw_only=True):
    """A container at its limits whose sibling in the pod suffers."""

    throttled: _Share = 0.1
    memory: _Share = 0.9
    pressure: _Share = 0.2
    slower: _Factor = 2.0
    longer: _Duration = 0.005
    connections: _Count = 20
    writes: _Size = 10_000_000


class SlowDevice(Limits, frozen=True, kw_only=True):
    """A device that takes long for each request although little is asked of it."""

    requests: _Count = 20
    flash: _Duration = 0.02
    rotational: _Duration = 0.05
    healthy_flash: _Rate = 500.0
    healthy_rotational: _Rate = 60.0
    healthy_bytes: _Size = 20_000_000


class NoisyNeighbour(Limits, frozen=True, kw_only=True):
    """One service that has a healthy device to itself while others wait."""

    requests: _Count = 20
    depth: _Factor = 4.0
    share: _Share = 0.7
    slower: _Factor = 2.0
    io: _Duration = 0.005


class CpuSteal(Limits, frozen=True, kw_only=True):
    """CPU time that the hypervisor gives to others."""

    share: _Share = 0.1
    observed: _Duration = 5.0


class CpuThrottled(Limits, frozen=True, kw_only=True):
    """A container that is stopped by its CPU limit."""

    share: _Share = 0.1
    seconds: _Duration = 0.5


class MemoryNearLimit(Limits, frozen=True, kw_only=True):
    """A container that has nearly as much memory as it may have."""

    used: _Share = 0.9


class OomKilled(Limits, frozen=True, kw_only=True):
    """Processes that the kernel has killed for want of memory."""

    kills: _Count = 1
    hold: _Duration = 600.0


class DistantUpstream(Limits, frozen=True, kw_only=True):
    """An upstream far away that is called often."""

    rtt: _Duration = 0.01
    exchanges: _Count = 20
    added: _Duration = 0.1
    waiting: Annotated[float, Meta(gt=0)] = 1.0


class AgentLosses(Limits, frozen=True, kw_only=True):
    """What the agent itself could not measure."""

    lost: _Count = 1
    ticks: _Share = 0.1


class Advice(Limits, frozen=True, kw_only=True):
    """Over which time findings are made, how long they stay, which are left out, and the thresholds of each."""

    window: Annotated[float, Meta(ge=4, le=3600, extra={"notation": "duration"})] = 60.0
    interval: Annotated[float, Meta(ge=0.1, le=60, extra={"notation": "duration"})] = 2.0
    hold: Annotated[float, Meta(ge=0, extra={"notation": "duration"})] = 10.0
    ignore: tuple[str, ...] = ()
    missing_keepalive: MissingKeepalive = MissingKeepalive()
    ports_running_out: PortsRunningOut = PortsRunningOut()
    retransmits: Retransmits = Retransmits()
    connect_failures: ConnectFailures = ConnectFailures()
    hanging_upstream: HangingUpstream = HangingUpstream()
    accept_queue_overflow: AcceptQueueOverflow = AcceptQueueOverflow()
    conntrack_near_limit: ConntrackNearLimit = ConntrackNearLimit()
    starved_sidecar: StarvedSidecar = StarvedSidecar()
    slow_device: SlowDevice = SlowDevice()
    noisy_neighbour: NoisyNeighbour = NoisyNeighbour()
    cpu_steal: CpuSteal = CpuSteal()
    cpu_throttled: CpuThrottled = CpuThrottled()
    memory_near_limit: MemoryNearLimit = MemoryNearLimit()
    oom_killed: OomKilled = OomKilled()
    distant_upstream: DistantUpstream = DistantUpstream()
    agent_losses: AgentLosses = AgentLosses()

    def __post_init__(self) -> None:
        if self.interval > self.window / 2:
            raise ValueError("expected an interval of at most half the window")
        known = [name for name in self.__struct_fields__ if isinstance(getattr(self, name), Limits)]
        known[-1:-1] = ["residency", "connection_pool"]
        for name in self.ignore:
            if name not in known:
                raise ValueError(
                    f"expected ignore to name findings, found {name!r}; known here: {', '.join(known)}"
                )


class Residency(Limits, frozen=True, kw_only=True):
    """Where data may go: names of configured locations; none means that it isn't watched."""

    allowed: tuple[str, ...] = ()
