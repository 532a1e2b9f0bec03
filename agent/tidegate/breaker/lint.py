# SPDX-License-Identifier: Apache-2.0
"""What a policy does to a pool by itself, whatever happens: ejections that can't be, outages by rule, churn."""

from __future__ import annotations

from collections.abc import Iterator

from tidegate.model.outliers import ConnectionPool, Policy

#: Below so many requests a connection, the limit itself makes the connections that keep-alive was to save.
_CHURN = 100


def most_out(policy: Policy, hosts: int) -> int:
    """Return how many of so many endpoints may be ejected at a time."""
    detection = policy.outlier_detection
    most = detection.max_ejection_percent * hosts // 100
    if detection.always_eject_one_host:
        most = max(most, 1)
    return max(0, min(most, hosts - policy.min_healthy))


def warnings(
    policy: Policy, endpoints: int | None, connection_pool: ConnectionPool | None = None
) -> Iterator[str]:
    """Yield what is worth a second look; ``endpoints`` is None where nobody knows their number yet."""
    detection = policy.outlier_detection
    if endpoints == 0:
        yield "no endpoints: nothing is watched"
    if policy.mode == "forced_open":
        yield "forced_open: all endpoints are refused until the mode is another"
    elif policy.mode not in ("off", "disabled"):
        yield from _capacity(policy, endpoints)
    gateway, fives = detection.consecutive_gateway_failure, detection.consecutive_5xx
    both = detection.enforcing_consecutive_gateway_failure and detection.enforcing_consecutive_5xx == 100
    if both and gateway >= fives > 0:
        yield (
            f"consecutive_gateway_failure of {gateway} has no effect: what it counts is counted by "
            f"consecutive_5xx of {fives} too"
        )
    if detection.base_ejection_time < detection.interval:
        yield (
            f"base_ejection_time of {detection.base_ejection_time:g}s is less than the interval: who comes back "
            f"is looked at only every {detection.interval:g}s"
        )
    requests = connection_pool.max_requests_per_connection if connection_pool else None
    if requests is not None and requests <= _CHURN:
        yield (
            f"max_requests_per_connection of {requests} is churn of its own: 1,000 requests a second open "
            f"{1000 / requests:g} connections a second, each of which holds a local port for a minute after it is "
            "closed"
        )


def _capacity(policy: Policy, endpoints: int | None) -> Iterator[str]:
    percent = policy.outlier_detection.max_ejection_percent
    empties = percent == 100 and policy.min_healthy == 0
    if endpoints is None:
        if empties:
            yield "max_ejection_percent of 100 with min_healthy of 0: a pool of one endpoint is an outage by rule"
        elif percent and not policy.outlier_detection.always_eject_one_host:
            least = -(-100 // percent)
            if least > 1:
                yield f"max_ejection_percent of {percent} ejects none of fewer than {least} endpoints"
        return
    if endpoints and not most_out(policy, endpoints):
        if endpoints <= policy.min_healthy:
            yield f"nothing is ever ejected: min_healthy is {policy.min_healthy}, of {_endpoints(endpoints)}"
        else:
            yield (
                f"nothing is ever ejected: max_ejection_percent of {percent} is less than one of "
                f"{_endpoints(endpoints)}; one of them is {-(-100 // endpoints)}"
            )
    if endpoints == 1 and most_out(policy, 1):
        yield "a pool of one endpoint that may be ejected: each ejection is an outage by rule"


def _endpoints(count: int) -> str:
    return f"{count} endpoint{'s' if count != 1 else ''}"
