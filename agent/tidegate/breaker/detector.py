# SPDX-License-Identifier: Apache-2.0
"""What happens to a pool's endpoints: failures in a row are judged at once, all else at sweeps."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from random import Random

from tidegate.breaker import sweeps
from tidegate.breaker.ejections import NONE, OFF, TOLERANCE, Ejections
from tidegate.breaker.endpoint import Endpoint
from tidegate.breaker.permits import Permits
from tidegate.model.breaker import Decision, Event, Kind, Number, Reason, State, Way
from tidegate.model.outliers import Policy

_CLOSED, _HTTP, _CONNECT_OK = State.CLOSED, Kind.HTTP, Kind.CONNECT_OK
_LOCAL_SUCCESSES = frozenset((Kind.CONNECT_OK, Kind.ANSWERED, Kind.HTTP))
#: Failures of connections that were there: that there is a connection again doesn't refute them, an answer does.
_CONNECTED = frozenset((Kind.HTTP_TIMEOUT, Kind.RESET))
_NEUTRAL = frozenset((Kind.LOCAL_FAULT, Kind.TICK))
#: What is one failure of a connection, however often it is seen.
CONNECTION_FAILURES = frozenset(
    (
        Kind.CONNECT_REFUSED, Kind.CONNECT_TIMEOUT, Kind.CONNECT_UNREACHABLE, Kind.RESET, Kind.HTTP_TIMEOUT,
    )
)  # fmt: skip
_GATEWAY = frozenset((502, 503, 504))
#: What stands for a status where errors aren't split and none was seen.
_STATUS = {
    Kind.ANSWERED: 200,
    Kind.CONNECT_REFUSED: 503,
    Kind.CONNECT_UNREACHABLE: 503,
    Kind.RESET: 503,
    Kind.CONNECT_TIMEOUT: 504,
    Kind.HTTP_TIMEOUT: 504,
}
#: Failed connections that are remembered, so that none is charged twice.
_REMEMBERED = 4096
#: Where detection takes no notice of what happens.
_DEAF = frozenset((*OFF, "forced_open"))


class Detector:
    """Counts and judges under one policy. Times are CLOCK_MONOTONIC in seconds and never go back."""

    def __init__(
        self, name: str, policy: Policy, endpoints: Collection[str], now: float, random: Random | None = None
    ) -> None:
        self.name = name
        self.policy = policy
        self.frozen: tuple[str, ...] = ()
        self.next_sweep = now + policy.outlier_detection.interval
        self.seen = -math.inf  # when it last had an event
        self.uncharged = self.unknown = self.duplicates = 0
        self._start = now
        self._spreads = (sweeps.Spread(), sweeps.Spread())
        self._failed: dict[int, None] = {}
        self._out = Ejections(name, policy, random or Random(0))
        self._endpoints = self._out.endpoints
        self._set_policy(policy)
        for address in endpoints:
            self._out.add(address, now)

    def _set_policy(self, policy: Policy) -> None:
        self.policy = self._out.policy = policy
        self._detection = policy.outlier_detection
        self._split = self._detection.split_external_local_origin_errors
        self._deaf = policy.mode in _DEAF

    def __len__(self) -> int:
        return len(self._endpoints)

    @property
    def at_rest(self) -> bool:
        """Whether a sweep would change nothing, however much time has passed."""
        return not any(
            ep.state is not _CLOSED or ep.backoff or ep.requests or ep.local_total or ep.timed or ep.way
            for ep in self._endpoints.values()
        )

    @property
    def addresses(self) -> tuple[str, ...]:
        """Its endpoints."""
        return tuple(self._endpoints)

    def has(self, endpoint: str) -> bool:
        """Whether it is an endpoint of this pool."""
        return endpoint in self._endpoints

    # What happens.

    def observe(self, event: Event, now: float) -> tuple[Decision, ...]:
        """Count an event; return what follows from it at once."""
        ep = self._endpoints.get(event.endpoint)
        if ep is None:
            self.unknown += 1
            return NONE
        self.seen = now
        kind, code = event.kind, event.code
        if ep.state is not _CLOSED or self._deaf or kind in _NEUTRAL:
            return NONE if ep.permits is None else self._try(ep, event, now)
        if event.attempt is not None and self._is_known(kind, event.attempt):
            return NONE
        if event.seconds is not None:
            self._time(ep, event.seconds, event.count)
        if not self._split:
            if code is None:
                code = _STATUS.get(kind)
            return NONE if code is None else self._external(ep, code, event, now)
        if kind is _HTTP and code is not None:
            if ep.run_connected:
                ep.run_local -= ep.run_connected
                ep.run_connected = 0
            return self._external(ep, code, event, now)
        return self._local(ep, kind, event, now)

    def _external(self, ep: Endpoint, code: int, event: Event, now: float) -> tuple[Decision, ...]:
        if not 500 <= code < 600:
            if not self.frozen:
                ep.requests += event.count
                ep.successes += event.count
                ep.run_5xx = ep.run_gateway = 0
            return NONE
        if not self._charged(ep, event):
            return NONE
        detection, decisions = self._detection, NONE
        if event.run is not None and event.run <= ep.run_5xx:
            ep.run_5xx = event.run - 1
            ep.run_gateway = min(ep.run_gateway, ep.run_5xx)
        for _ in range(event.count):
            ep.requests += 1
            if code not in _GATEWAY:
                ep.run_gateway = 0
            else:
                ep.run_gateway += 1
                if ep.run_gateway == detection.consecutive_gateway_failure:
                    decisions += self._run(ep, Reason.CONSECUTIVE_GATEWAY_FAILURE, code, event, now)
            ep.run_5xx += 1
            if ep.run_5xx == detection.consecutive_5xx:
                decisions += self._run(ep, Reason.CONSECUTIVE_5XX, code, event, now)
        return decisions

    def _local(self, ep: Endpoint, kind: Kind, event: Event, now: float) -> tuple[Decision, ...]:
        if kind in _LOCAL_SUCCESSES:
            if not self.frozen:
                self._well(ep, kind, event)
            return NONE
        if not self._charged(ep, event):
            return NONE
        decisions = NONE
        if event.run is not None and event.run <= ep.run_local:
            ep.run_local = event.run - 1
            ep.run_connected = min(ep.run_connected, ep.run_local)
        for _ in range(event.count):
            ep.local_total += 1
            ep.run_local += 1
            ep.run_connected += kind in _CONNECTED
            if ep.run_local == self._detection.consecutive_local_origin_failure:
                decisions += self._run(ep, Reason.CONSECUTIVE_LOCAL_ORIGIN_FAILURE, None, event, now)
        return decisions

    def _well(self, ep: Endpoint, kind: Kind, event: Event) -> None:
        ep.local_total += event.count
        ep.local_successes += event.count
        if kind is not _CONNECT_OK:
            ep.run_5xx = ep.run_gateway = 0
            ep.requests += event.count
            ep.successes += event.count
        if kind is not _CONNECT_OK or event.code is not None:
            ep.run_connected = 0
        ep.run_local = ep.run_connected

    def _charged(self, ep: Endpoint, event: Event) -> bool:
        """Whether a failure counts: not while this node is frozen, nor where it began before ``since``."""
        if self.frozen:
            self.uncharged += event.count
            return False
        return event.started is None or event.started >= ep.since

    def _time(self, ep: Endpoint, seconds: float, count: int) -> None:
        threshold = self.policy.slow_response_threshold
        if threshold is not None and not self.frozen:
            ep.timed += count
            ep.slow += count * (seconds >= threshold)

    def _is_known(self, kind: Kind, attempt: int) -> bool:
        """Whether this connection has failed already, in another way of seeing it; what is well may fail again."""
        if kind not in CONNECTION_FAILURES:
            self._failed.pop(attempt, None)
            return False
        if attempt in self._failed:
            self.duplicates += 1
            return True
        self._failed[attempt] = None
        if len(self._failed) > _REMEMBERED:
            del self._failed[next(iter(self._failed))]
        return False

    def _run(
        self, ep: Endpoint, reason: Reason, code: int | None, event: Event, now: float
    ) -> tuple[Decision, ...]:
        """Judge failures in a row: the count begins anew, whatever comes of it."""
        if ep.state is not _CLOSED:
            return NONE
        detection = self._detection
        evidence: dict[str, Number] = {"last": str(event.kind)}
        if code is not None:
            evidence["code"] = code
        if reason is Reason.CONSECUTIVE_5XX:
            evidence["consecutive"], enforcing = ep.run_5xx, detection.enforcing_consecutive_5xx
        elif reason is Reason.CONSECUTIVE_GATEWAY_FAILURE:
            evidence["consecutive"], enforcing = ep.run_gateway, detection.enforcing_consecutive_gateway_failure
        else:
            evidence["consecutive"], enforcing = ep.run_local, detection.enforcing_consecutive_local_origin_failure
        decisions = self._out.detected(ep, reason, enforcing, now, evidence)
        if reason is Reason.CONSECUTIVE_5XX:
            ep.run_5xx = 0
        elif reason is Reason.CONSECUTIVE_GATEWAY_FAILURE:
            ep.run_gateway = 0
        else:
            ep.run_local = ep.run_connected = 0
        return decisions

    # Trials.

    def acquire(self, endpoint: str, now: float, attempt: int | None = None) -> bool:
        """Ask whether a connection may be made now; where the endpoint is half open it takes a permit."""
        ep = self._endpoints.get(endpoint)
        if ep is None or ep.state is _CLOSED:
            return True
        taken = ep.permits is not None and ep.permits.take(attempt, now)
        return taken or self._out.panic or not self._out.acts

    def timed(self, endpoint: str, answers: int, slow: int) -> None:
        """Take how many answers there were, and how many of them were slow, where that comes apart from events."""
        ep = self._endpoints.get(endpoint)
        if ep is not None and ep.state is _CLOSED and not self._deaf and not self.frozen:
            ep.timed += answers
            ep.slow += slow

    def release(self, endpoint: str, attempt: int | None = None, *, began: float | None = None) -> None:
        """Give a permit back: the trial, that ``began`` then, was cancelled or says nothing."""
        ep = self._endpoints.get(endpoint)
        if ep is not None and ep.permits is not None and (began is None or began >= ep.permits.since):
            ep.permits.settle(attempt, success=False)

    def _try(self, ep: Endpoint, event: Event, now: float) -> tuple[Decision, ...]:
        """Judge what happened to an endpoint that is half open."""
        permits, attempt, kind = ep.permits, event.attempt, event.kind
        if permits is None or not self._is_trial(permits, event, now):
            return NONE
        status = event.code if kind is _HTTP or not self._split else None
        failed = kind in CONNECTION_FAILURES if status is None else 500 <= status < 600
        if failed and self.frozen:
            self.uncharged += 1
            permits.settle(attempt, success=False)
        elif failed:
            evidence: dict[str, Number] = {"last": str(kind), "succeeded": permits.succeeded}
            return self._out.reopen(ep, now, evidence if status is None else evidence | {"code": status})
        elif kind is not _CONNECT_OK or not ep.needs_answer or event.code is not None:
            permits.settle(attempt, success=True)
            for _ in range(event.count - 1):
                if not permits.holds(None) and not permits.take(None, now):
                    break
                permits.settle(None, success=True)
            if permits.complete:
                return self._out.uneject(ep, Reason.PROBED, now)
        return NONE

    def _is_trial(self, permits: Permits, event: Event, now: float) -> bool:
        """Whether this came of a trial: what began before didn't, and a fault of our own gives it back."""
        attempt, kind = event.attempt, event.kind
        if kind is Kind.LOCAL_FAULT:
            permits.settle(attempt, success=False)
        if kind in _NEUTRAL or (event.started is not None and event.started < permits.since):
            return False
        if attempt is not None and self._is_known(kind, attempt):
            return False
        return permits.holds(attempt) or permits.take(attempt, now)

    # What time leads to.

    def measure(self, ways: Mapping[str, Way]) -> None:
        """Take how the ways to endpoints were; they are judged at the next sweep."""
        for address, way in ways.items():
            if address in self._endpoints:
                self._endpoints[address].way = way

    def sweep(self, now: float) -> tuple[Decision, ...]:
        """Un-eject, judge the interval that ends now, and shorten the ejections of those who stay well."""
        self._reckon(now)
        if self.policy.mode in OFF:
            return NONE
        decisions = NONE
        external: list[sweeps.Rate] = []
        local: list[sweeps.Rate] = []
        timed: list[sweeps.Timed] = []
        ways: list[tuple[Endpoint, Way]] = []
        for ep in self._endpoints.values():
            if ep.state is not _CLOSED:
                decisions += self._out.settle(ep, now, frozen=bool(self.frozen))
            if ep.requests and ep.state is _CLOSED:
                external.append(sweeps.Rate(ep, 100.0 * ep.successes / ep.requests, ep.requests))
            if ep.local_total and ep.state is _CLOSED:
                local.append(sweeps.Rate(ep, 100.0 * ep.local_successes / ep.local_total, ep.local_total))
            if ep.timed and ep.state is _CLOSED:
                timed.append(sweeps.Timed(ep, ep.timed, ep.slow))
            if ep.way is not None and ep.state is _CLOSED:
                ways.append((ep, ep.way))
            ep.success_rate = ep.local_success_rate = None
            ep.clear_counts()
        if not self.frozen:
            decisions += self._judge(external, local, timed, ways, now)
        self._decay(now)
        return decisions

    def _reckon(self, now: float) -> None:
        interval = self._detection.interval
        passed = math.floor((now - self._start + TOLERANCE) / interval)
        self.next_sweep = self._start + (passed + 1) * interval

    def _judge(
        self,
        external: list[sweeps.Rate],
        local: list[sweeps.Rate],
        timed: list[sweeps.Timed],
        ways: list[tuple[Endpoint, Way]],
        now: float,
    ) -> tuple[Decision, ...]:
        detection, decisions = self._detection, NONE
        origins = ((external, sweeps.external(detection)), (local, sweeps.local(detection)))
        volume = min(detection.success_rate_request_volume, detection.failure_percentage_request_volume)
        spreads = []
        for rates, origin in origins:
            for rate in rates:
                if rate.volume >= volume and rates is external:
                    rate.endpoint.success_rate = rate.percent
                elif rate.volume >= volume:
                    rate.endpoint.local_success_rate = rate.percent
            found, outliers = sweeps.by_success_rate(rates, detection, origin)
            spreads.append(found)
            for outlier in (*outliers, *sweeps.by_failure_percentage(rates, detection, origin)):
                decisions += self._out.detected(*outlier[:3], now, outlier.evidence)
        self._spreads = (spreads[0], spreads[1])
        for outlier in (*sweeps.by_slow_responses(timed, self.policy), *sweeps.by_way(ways, self.policy.peers)):
            decisions += self._out.detected(*outlier[:3], now, outlier.evidence)
        return decisions

    def _decay(self, now: float) -> None:
        well = now + TOLERANCE - self._detection.interval
        for ep in self._endpoints.values():
            if ep.backoff and ep.state is _CLOSED and ep.unejected_at is not None and ep.unejected_at <= well:
                ep.backoff -= 1
