# SPDX-License-Identifier: Apache-2.0
"""What an interval's counts say of each endpoint beside its peers; only what is decided of it is elsewhere."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tidegate.breaker.endpoint import Endpoint
from tidegate.model.breaker import Number, Reason, Way
from tidegate.model.outliers import OutlierDetection, Peers, Policy


class Outlier(NamedTuple):
    """One endpoint, the detection that it fell to, the percentage that is enforced, and the numbers."""

    endpoint: Endpoint
    reason: Reason
    enforcing: int
    evidence: dict[str, Number]


class Rate(NamedTuple):
    """An endpoint's successes of an interval, in percent."""

    endpoint: Endpoint
    percent: float
    volume: int


class Origin(NamedTuple):
    """Of errors of one origin: the reasons, and the percentages that are enforced."""

    success_rate: Reason
    enforcing_success_rate: int
    failure_percentage: Reason
    enforcing_failure_percentage: int


def external(detection: OutlierDetection) -> Origin:
    """Errors that the endpoint has answered with, or all where they aren't split."""
    return Origin(
        Reason.SUCCESS_RATE,
        detection.enforcing_success_rate,
        Reason.FAILURE_PERCENTAGE,
        detection.enforcing_failure_percentage,
    )


def local(detection: OutlierDetection) -> Origin:
    """Errors of connecting and waiting."""
    return Origin(
        Reason.SUCCESS_RATE_LOCAL_ORIGIN,
        detection.enforcing_local_origin_success_rate,
        Reason.FAILURE_PERCENTAGE_LOCAL_ORIGIN,
        detection.enforcing_failure_percentage_local_origin,
    )


class Spread(NamedTuple):
    """The mean success rate of a pool's endpoints, and below which one is an outlier; None: not judged."""

    average: float | None = None
    threshold: float | None = None


def spread(rates: Sequence[float], stdev_factor: int) -> Spread:
    """Return the mean, and the mean less so many thousandths of the population's standard deviation."""
    mean = math.fsum(rates) / len(rates)
    variance = math.fsum((rate - mean) ** 2 for rate in rates) / len(rates)
    return Spread(mean, mean - stdev_factor / 1000 * math.sqrt(variance))


def by_success_rate(
    rates: Sequence[Rate], detection: OutlierDetection, origin: Origin
) -> tuple[Spread, list[Outlier]]:
    """Find those whose success rate is far below the mean."""
    valid = [rate for rate in rates if rate.volume >= detection.success_rate_request_volume]
    if not valid or len(valid) < detection.success_rate_minimum_hosts:
        return Spread(), []
    found = spread([rate.percent for rate in valid], detection.success_rate_stdev_factor)
    average, threshold = found
    return found, [
        Outlier(
            rate.endpoint,
            origin.success_rate,
            origin.enforcing_success_rate,
            {
                "success_rate": rate.percent,
                "requests": rate.volume,
                "success_rate_average": average or 0.0,
                "success_rate_threshold": threshold,
            },
        )
        for rate in valid
        if threshold is not None and rate.percent < threshold
    ]


def by_failure_percentage(rates: Sequence[Rate], detection: OutlierDetection, origin: Origin) -> Iterator[Outlier]:
    """Find those who fail too often, whatever the others do."""
    valid = [rate for rate in rates if rate.volume >= detection.failure_percentage_request_volume]
    if len(valid) < detection.failure_percentage_minimum_hosts:
        return
    for rate in valid:
        if 100.0 - rate.percent >= detection.failure_percentage_threshold:
            evidence: dict[str, Number] = {
                "failure_percentage": 100.0 - rate.percent,
                "requests": rate.volume,
                "failure_percentage_threshold": detection.failure_percentage_threshold,
            }
            enforcing = origin.enforcing_failure_percentage
            yield Outlier(rate.endpoint, origin.failure_percentage, enforcing, evidence)


class Timed(NamedTuple):
    """An endpoint's answers of an interval whose time is known, and those among them that were slow."""

    endpoint: Endpoint
    answers: int
    slow: int


def by_slow_responses(timed: Sequence[Timed], policy: Policy) -> Iterator[Outlier]:
    """Find those of whose answers too many are slow."""
    if policy.slow_response_threshold is None:
        return
    for ep, answers, slow in timed:
        if answers >= policy.slow_response_request_volume and 100 * slow >= policy.slow_response_percent * answers:
            evidence: dict[str, Number] = {
                "slow_response_percentage": 100 * slow / answers,
                "responses": answers,
                "slow_response_threshold_seconds": policy.slow_response_threshold,
            }
            yield Outlier(ep, Reason.SLOW_RESPONSE, 100, evidence)


def by_way(ways: Sequence[tuple[Endpoint, Way]], peers: Peers) -> Iterator[Outlier]:
    """Find those to whom the way is much longer, or loses much more, than to the others of the pool."""
    measured = [(ep, way) for ep, way in ways if way.segments >= peers.segments]
    if len(measured) < peers.minimum_hosts:
        return
    for ep, way in measured:
        others = [other for at, other in measured if at is not ep]
        rtts = [other.rtt for other in others if other.rtt is not None]
        if way.rtt is not None and len(rtts) >= peers.minimum_hosts - 1:
            usual = statistics.median(rtts)
            if way.rtt > peers.rtt_factor * usual and way.rtt - usual > peers.rtt_excess:
                numbers: dict[str, Number] = {"rtt_seconds": way.rtt, "rtt_seconds_of_peers": usual}
                yield Outlier(ep, Reason.RTT, peers.enforcing_rtt, numbers | {"segments": way.segments})
        share = way.retransmits / way.segments
        usual = statistics.median(other.retransmits / other.segments for other in others)
        if share >= peers.retransmit_ratio and share > peers.retransmit_factor * usual:
            numbers = {"retransmit_ratio": share, "retransmit_ratio_of_peers": usual}
            yield Outlier(
                ep, Reason.RETRANSMITS, peers.enforcing_retransmits, numbers | {"segments": way.segments}
            )
