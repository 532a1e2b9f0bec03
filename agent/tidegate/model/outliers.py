# SPDX-License-Identifier: Apache-2.0
"""When an endpoint is an outlier, for how long, and when this node is in no state to judge: keys of the config.

The first part has the names, defaults and meanings of Envoy's outlier detection. Durations are seconds,
percentages 0 to 100, shares 0 to 1; the notations are those of :mod:`tidegate.config.units`, by name.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

Duration = Annotated[float, Meta(ge=0.001, le=31_536_000, extra={"notation": "duration"})]
OptionalDuration = Annotated[float | None, Meta(ge=0.001, le=31_536_000, extra={"notation": "duration_or_off"})]
Percent = Annotated[int, Meta(ge=0, le=100)]
Count = Annotated[int, Meta(ge=0, le=4_294_967_295)]
_Some = Annotated[int, Meta(ge=1, le=1_000_000_000)]
_Share = Annotated[float, Meta(gt=0, le=1)]
_Factor = Annotated[float, Meta(ge=1, le=1_000_000)]

#: What max_ejection_time is where it isn't set and the base isn't longer.
LONGEST_EJECTION = 300.0

Mode = Literal["off", "disabled", "metrics_only", "monitor", "enforce", "forced_open"]


class OutlierDetection(msgspec.Struct, frozen=True, kw_only=True):
    """Envoy's outlier detection; only ``split_external_local_origin_errors`` has another default."""

    consecutive_5xx: Count = 5
    consecutive_gateway_failure: Count = 5
    consecutive_local_origin_failure: Count = 5
    split_external_local_origin_errors: bool = True
    interval: Duration = 10.0
    base_ejection_time: Duration = 30.0
    max_ejection_time: Duration | None = None
    max_ejection_time_jitter: Annotated[float, Meta(ge=0, le=31_536_000, extra={"notation": "duration"})] = 0.0
    max_ejection_percent: Percent = 10
    always_eject_one_host: bool = False
    success_rate_minimum_hosts: Count = 5
    success_rate_request_volume: Count = 100
    success_rate_stdev_factor: Count = 1900
    failure_percentage_threshold: Percent = 85
    failure_percentage_minimum_hosts: Count = 5
    failure_percentage_request_volume: Count = 50
    enforcing_consecutive_5xx: Percent = 100
    enforcing_consecutive_gateway_failure: Percent = 0
    enforcing_consecutive_local_origin_failure: Percent = 100
    enforcing_success_rate: Percent = 100
    enforcing_local_origin_success_rate: Percent = 100
    enforcing_failure_percentage: Percent = 0
    enforcing_failure_percentage_local_origin: Percent = 0

    def __post_init__(self) -> None:
        if self.max_ejection_time is not None and self.max_ejection_time < self.base_ejection_time:
            raise ValueError(
                f"max_ejection_time: expected at least base_ejection_time, {self.base_ejection_time:g}s, "
                f"found {self.max_ejection_time:g}s"
            )

    @property
    def longest(self) -> float:
        """How long an ejection lasts at most, without jitter."""
        if self.max_ejection_time is not None:
            return self.max_ejection_time
        return max(LONGEST_EJECTION, self.base_ejection_time)


class ConnectionPool(msgspec.Struct, frozen=True, kw_only=True):
    """Limits that the proxy keeps; what the node really does is compared with them. None: no limit."""

    max_connections: Annotated[int, Meta(ge=1, le=4_294_967_295)] | None = None
    max_requests_per_connection: Annotated[int, Meta(ge=1, le=4_294_967_295)] | None = None


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """How an ejected endpoint is tried before it is let back, with ``recovery: probe``."""

    permits: Annotated[int, Meta(ge=1, le=1000)] = 1
    wait: Duration = 10.0


class Peers(msgspec.Struct, frozen=True, kw_only=True):
    """When the way to one endpoint is an outlier among those to its peers in the pool."""

    minimum_hosts: Annotated[int, Meta(ge=2, le=100_000)] = 3
    segments: _Some = 500
    rtt_factor: _Factor = 5.0
    rtt_excess: Duration = 0.01
    enforcing_rtt: Percent = 0
    retransmit_ratio: _Share = 0.05
    retransmit_factor: _Factor = 5.0
    enforcing_retransmits: Percent = 0


class Handling(msgspec.Struct, frozen=True, kw_only=True):
    """What a pool is judged by besides outlier detection, and what comes of it.

    ``mode`` is off (or disabled), metrics_only, monitor, enforce or forced_open. ``response_timeout`` and
    ``slow_response_threshold`` are None where they aren't asked for.
    """

    mode: Mode = "monitor"
    recovery: Literal["time", "probe"] = "time"
    probe: Probe = Probe()
    response_timeout: OptionalDuration = None
    slow_response_threshold: OptionalDuration = None
    slow_response_percent: Annotated[int, Meta(ge=1, le=100)] = 100
    slow_response_request_volume: _Some = 50
    peers: Peers = Peers()


class Policy(Handling, frozen=True, kw_only=True):
    """All that a pool is judged by."""

    outlier_detection: OutlierDetection = OutlierDetection()
    min_healthy: int = 1
    healthy_panic_threshold: int = 0
    connect_timeout: Duration = 1.0


class Member(NamedTuple):
    """A pool of the config: its policy, its endpoints, and the limits that its proxy keeps."""

    policy: Policy
    endpoints: tuple[str, ...]
    connection_pool: ConnectionPool | None = None


class Freeze(msgspec.Struct, frozen=True, kw_only=True):
    """From when on this node is in no state to judge others."""

    steal: _Share = 0.2
    cpu_pressure: _Share = 0.7
    memory_pressure: _Share = 0.2
    io_pressure: _Share = 0.5
    lost_events: _Some = 1
    ports_exhausted: _Some = 1
    retransmits: _Share = 0.1
    pools: Annotated[int, Meta(ge=2, le=100_000)] = 2
    pools_share: _Share = 0.5
    window: Duration = 10.0
    hold: Duration = 10.0
