# SPDX-License-Identifier: Apache-2.0
"""Who of a pool is out, who may be, for how long, and who comes back."""

from __future__ import annotations

from random import Random

from tidegate.breaker.endpoint import Endpoint
from tidegate.breaker.permits import Permits
from tidegate.model.breaker import Action, Decision, Number, Reason, State
from tidegate.model.outliers import Policy

NONE: tuple[Decision, ...] = ()
#: Times are sums of floats: an ejection is over if not more than this is left of it.
TOLERANCE = 1e-6
#: These leave a pool's endpoints as they are.
OFF = ("off", "disabled")
_CONNECTING = (Reason.CONSECUTIVE_LOCAL_ORIGIN_FAILURE, Reason.SUCCESS_RATE_LOCAL_ORIGIN,
               Reason.FAILURE_PERCENTAGE_LOCAL_ORIGIN)  # fmt: skip


class Ejections:
    """The endpoints of one pool and their circuits; every change is a decision."""

    def __init__(self, pool: str, policy: Policy, random: Random) -> None:
        self.pool, self.policy = pool, policy
        self.endpoints: dict[str, Endpoint] = {}
        self.active = self.overflow = 0
        self.panic = False
        self._random = random

    @property
    def acts(self) -> bool:
        """Whether what is decided is also done."""
        return self.policy.mode in ("enforce", "forced_open")

    def until(self, ep: Endpoint) -> float | None:
        """When its ejection is over; it is looked at only at sweeps."""
        if ep.state is not State.OPEN or ep.held or ep.ejected_at is None:
            return None
        detection = self.policy.outlier_detection
        lasts = min(detection.base_ejection_time * ep.backoff, detection.longest)
        return ep.ejected_at + lasts + ep.jitter

    def detected(
        self, ep: Endpoint, reason: Reason, enforcing: int, now: float, evidence: dict[str, Number]
    ) -> tuple[Decision, ...]:
        """Eject an outlier, unless too many would be out or its detection isn't enforced."""
        if ep.state is not State.CLOSED:
            return NONE
        limit = self._limit()
        if limit is not None:
            self.overflow += 1
            return (self._noted(ep, Action.OVERFLOW, reason, now, evidence | {"limit": limit}),)
        if self.policy.mode == "metrics_only" or not self._enforced(enforcing):
            return (self._noted(ep, Action.LOG_ONLY, reason, now, evidence | {"enforcing": enforcing}),)
        return self._eject(ep, reason, now, evidence)

    def _limit(self) -> str | None:
        """Return what forbids one more ejection."""
        hosts, detection = len(self.endpoints), self.policy.outlier_detection
        if hosts - self.active - 1 < self.policy.min_healthy:
            return "min_healthy"
        if detection.always_eject_one_host and self.active == 0:
            return None
        return "max_ejection_percent" if 100 * (self.active + 1) > detection.max_ejection_percent * hosts else None

    def _enforced(self, percent: int) -> bool:
        return percent >= 100 or (percent > 0 and self._random.randrange(100) < percent)

    def _noted(
        self, ep: Endpoint, action: Action, reason: Reason, now: float, evidence: dict[str, Number]
    ) -> Decision:
        ep.detections[reason, action, False] += 1
        since_back = {} if ep.unejected_at is None else {"seconds_since_unejection": now - ep.unejected_at}
        return Decision(
            t=now,
            pool=self.pool,
            endpoint=ep.address,
            action=action,
            reason=reason,
            ejections=ep.backoff,
            enforced=False,
            evidence=evidence | since_back | self._counts(ep),
        )

    def _counts(self, ep: Endpoint) -> dict[str, Number]:
        return {"active": self.active, "hosts": len(self.endpoints), "ejected_total": ep.ejected_total}

    def _eject(
        self, ep: Endpoint, reason: Reason, now: float, evidence: dict[str, Number]
    ) -> tuple[Decision, ...]:
        ep.needs_answer = reason not in _CONNECTING or ep.run_connected > 0
        self.active += 1
        return (self._open(ep, reason, now, evidence), *self.judge_panic(now))

    def _open(self, ep: Endpoint, reason: Reason, now: float, evidence: dict[str, Number]) -> Decision:
        """Eject for longer than the last time, as far as the longest ejection allows."""
        detection = self.policy.outlier_detection
        ep.state, ep.reason, ep.permits, ep.held = State.OPEN, reason, None, False
        ep.ejected_at, since_back = now, ep.unejected_at
        ep.ejected_total += 1
        if ep.backoff * detection.base_ejection_time < detection.longest + detection.base_ejection_time:
            ep.backoff += 1
        most = round(detection.max_ejection_time_jitter * 1000)
        ep.jitter = self._random.randrange(most + 1) / 1000 if most else 0.0
        ep.detections[reason, Action.EJECT, self.acts] += 1
        if since_back is not None:
            evidence = evidence | {"seconds_since_unejection": now - since_back}
        return self._decision(ep, Action.EJECT, reason, now, evidence | self._counts(ep))

    def _decision(
        self, ep: Endpoint, action: Action, reason: Reason, now: float, evidence: dict[str, Number]
    ) -> Decision:
        return Decision(
            t=now,
            pool=self.pool,
            endpoint=ep.address,
            action=action,
            reason=reason,
            until=self.until(ep),
            ejections=ep.backoff,
            enforced=self.acts,
            evidence=evidence,
        )

    def hold(self, ep: Endpoint, reason: Reason, now: float) -> tuple[Decision, ...]:
        """Keep it out until somebody says otherwise, whatever the limits; it doesn't count as a failure."""
        if ep.state is State.CLOSED:
            self.active += 1
        ep.state, ep.reason, ep.permits, ep.held, ep.ejected_at = State.OPEN, reason, None, True, now
        return (self._decision(ep, Action.EJECT, reason, now, self._counts(ep)), *self.judge_panic(now))

    def reopen(self, ep: Endpoint, now: float, evidence: dict[str, Number]) -> tuple[Decision, ...]:
        """Eject it again, as a trial has failed."""
        return (self._open(ep, Reason.PROBE_FAILED, now, evidence),)

    def halve(self, ep: Endpoint, reason: Reason, now: float) -> tuple[Decision, ...]:
        """Let trials through."""
        ep.state, ep.permits = State.HALF_OPEN, Permits(self.policy.probe, now)
        ep.since = now
        evidence: dict[str, Number] = {"permits": ep.permits.left}
        return (self._decision(ep, Action.HALF_OPEN, reason, now, evidence | self._counts(ep)),)

    def uneject(self, ep: Endpoint, reason: Reason, now: float) -> tuple[Decision, ...]:
        """Let it back; failures before now are no longer charged."""
        if ep.state is State.CLOSED:
            return NONE
        was = ep.ejected_at
        self.active -= 1
        ep.state, ep.reason, ep.permits, ep.held = State.CLOSED, None, None, False
        ep.unejected_at = ep.since = now
        ep.clear_runs()
        ep.clear_counts()
        evidence: dict[str, Number] = {} if was is None else {"seconds_since_ejection": now - was}
        return (
            self._decision(ep, Action.UNEJECT, reason, now, evidence | self._counts(ep)),
            *self.judge_panic(now),
        )

    def settle(self, ep: Endpoint, now: float, *, frozen: bool) -> tuple[Decision, ...]:
        """Do what time alone leads to: an ejection that is over, trials that nobody has settled."""
        if ep.state is State.OPEN:
            until = self.until(ep)
            if until is None or until > now + TOLERANCE:
                return NONE
            if self.policy.recovery == "probe":
                return self.halve(ep, Reason.ELAPSED, now)
            return self.uneject(ep, Reason.ELAPSED, now)
        if ep.permits is None:
            return NONE
        overdue = ep.permits.overdue(now + TOLERANCE)
        if overdue and frozen:
            ep.permits.return_all()
        elif overdue:
            return self.reopen(ep, now, {"unanswered": overdue})
        return NONE

    def remove(self, address: str, now: float) -> tuple[Decision, ...]:
        """Forget an endpoint that has left; what was done about it is undone."""
        decisions = self.uneject(self.endpoints[address], Reason.REMOVED, now)
        del self.endpoints[address]
        return (*decisions, *self.keep_minimum(now), *self.judge_panic(now))

    def keep_minimum(self, now: float) -> tuple[Decision, ...]:
        """Let back who was ejected first where fewer are left than ``min_healthy``."""
        decisions = NONE
        while len(self.endpoints) - self.active < self.policy.min_healthy:
            out = [ep for ep in self.endpoints.values() if ep.state is not State.CLOSED and not ep.held]
            if not out:
                break
            decisions += self.uneject(min(out, key=lambda ep: ep.ejected_at or 0.0), Reason.MIN_HEALTHY, now)
        return decisions

    def add(self, address: str, now: float) -> tuple[Decision, ...]:
        """Take a new endpoint in."""
        self.endpoints[address] = Endpoint(address, now)
        if self.policy.mode == "forced_open":
            return self.hold(self.endpoints[address], Reason.FORCED_OPEN, now)
        return self.judge_panic(now)

    def judge_panic(self, now: float) -> tuple[Decision, ...]:
        """Say where from now on all endpoints are used, or no longer."""
        hosts, threshold = len(self.endpoints), self.policy.healthy_panic_threshold
        panic = self.policy.mode != "forced_open" and 100 * (hosts - self.active) < threshold * hosts
        if panic is self.panic:
            return NONE
        self.panic = panic
        return (
            Decision(
                t=now,
                pool=self.pool,
                endpoint="",
                action=Action.PANIC if panic else Action.CALM,
                reason=Reason.HEALTHY_PANIC_THRESHOLD,
                enforced=self.acts,
                evidence={"active": self.active, "hosts": hosts, "healthy_panic_threshold": threshold},
            ),
        )
