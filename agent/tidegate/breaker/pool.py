# SPDX-License-Identifier: Apache-2.0
"""One pool: its detector, what people and the config change about it, and what is shown of it."""

from __future__ import annotations

from collections.abc import Collection
from random import Random

from tidegate.breaker.detector import Detector
from tidegate.breaker.ejections import NONE, OFF
from tidegate.breaker.endpoint import Endpoint
from tidegate.errors import UsageError
from tidegate.model.breaker import Decision, PoolRow, Reason, State
from tidegate.model.outliers import Policy

#: Ejections that this node's own illness may have led to.
_DOUBTFUL = (
    Reason.CONSECUTIVE_LOCAL_ORIGIN_FAILURE,
    Reason.SUCCESS_RATE_LOCAL_ORIGIN,
    Reason.FAILURE_PERCENTAGE_LOCAL_ORIGIN,
    Reason.PROBE_FAILED,
)


class Pool(Detector):
    """A pool. Times are CLOCK_MONOTONIC in seconds and never go back; addresses are ``ip:port``."""

    def __init__(
        self, name: str, policy: Policy, endpoints: Collection[str], now: float, random: Random | None = None
    ) -> None:
        super().__init__(name, policy, endpoints, now, random)
        if policy.mode == "forced_open":
            for ep in self._endpoints.values():
                self._out.hold(ep, Reason.FORCED_OPEN, now)

    # What the config changes.

    def configure(self, policy: Policy, now: float) -> tuple[Decision, ...]:
        """Judge by another policy from now on; runs, ejections and their history stay.

        Where that turns detection off, or forced_open on or off, endpoints go back or out.
        """
        before = self.policy
        if policy.outlier_detection.interval != before.outlier_detection.interval:
            self._start, self.next_sweep = now, now + policy.outlier_detection.interval
        if policy.mode == before.mode:
            self._set_policy(policy)
            return (*self._out.keep_minimum(now), *self._out.judge_panic(now))
        decisions = NONE
        if policy.mode in (*OFF, "metrics_only") or before.mode == "forced_open":
            # By the old policy still, whose drivers have to take it back.
            for ep in self._endpoints.values():
                decisions += self._out.uneject(ep, Reason.OFF, now)
        self._set_policy(policy)
        for ep in self._endpoints.values():
            if policy.mode in OFF:
                ep.clear_runs()
                ep.clear_counts()
            elif policy.mode == "forced_open":
                decisions += self._out.hold(ep, Reason.FORCED_OPEN, now)
        return (*decisions, *self._out.keep_minimum(now), *self._out.judge_panic(now))

    def set_endpoints(self, endpoints: Collection[str], now: float) -> tuple[Decision, ...]:
        """Take the endpoints of a changed pool; who was out and leaves is let back first."""
        decisions, wanted = NONE, dict.fromkeys(endpoints)
        for address in [address for address in wanted if address not in self._endpoints]:
            decisions += self._out.add(address, now)
        for address in [address for address in self._endpoints if address not in wanted]:
            decisions += self._out.remove(address, now)
        return decisions

    # What people change.

    def open(self, endpoint: str, now: float, *, force: bool = False) -> tuple[Decision, ...]:
        """Eject an endpoint until :meth:`close`; raises UsageError where too few would be left, unless forced."""
        ep = self._endpoint(endpoint)
        left = len(self._endpoints) - self._out.active - (ep.state is State.CLOSED)
        if left < self.policy.min_healthy and not force:
            raise UsageError(
                f"breaker open {self.name} {endpoint}: expected at least min_healthy, {self.policy.min_healthy}, "
                f"endpoints to be left, found {left}; --force opens it all the same"
            )
        return self._out.hold(ep, Reason.MANUAL, now)

    def close(self, endpoint: str, now: float) -> tuple[Decision, ...]:
        """Let an endpoint back, whoever ejected it; how long it is ejected the next time stays."""
        return self._out.uneject(self._endpoint(endpoint), Reason.MANUAL, now)

    def reset(self, endpoint: str, now: float) -> tuple[Decision, ...]:
        """Let an endpoint back and forget all about it."""
        ep = self._endpoint(endpoint)
        decisions = self._out.uneject(ep, Reason.RESET, now)
        ep.forget()
        ep.since = now
        return decisions

    def _endpoint(self, endpoint: str) -> Endpoint:
        ep = self._endpoints.get(endpoint)
        if ep is None:
            known = ", ".join(self._endpoints) or "none"
            raise UsageError(f"pool {self.name}: expected one of its endpoints ({known}), found {endpoint!r}")
        return ep

    # What this node's health changes.

    def freeze(self, reasons: tuple[str, ...], now: float, window: float) -> tuple[Decision, ...]:
        """Charge nothing from now on; take back what failures to connect have led to in the last ``window``."""
        if self.frozen:
            self.frozen = reasons
            return NONE
        self.frozen, decisions = reasons, NONE
        for ep in self._endpoints.values():
            recent = ep.ejected_at is not None and ep.ejected_at >= now - window
            if ep.state is State.OPEN and ep.reason in _DOUBTFUL and recent:
                probing = ep.reason is Reason.PROBE_FAILED
                undo = self._out.halve if probing else self._out.uneject
                decisions += undo(ep, Reason.FROZEN, now)
                ep.backoff = max(0, ep.backoff - 1)
            ep.clear_runs()
            ep.clear_counts()
        return decisions

    def thaw(self, now: float) -> None:
        """Charge again; what began before doesn't count."""
        self.frozen = ()
        for ep in self._endpoints.values():
            ep.since = now

    # What is shown, and done.

    def refused(self) -> dict[str, int]:
        """Return to whom connects are refused now, with how many trials may still begin."""
        if not self._out.acts or self._out.panic:
            return {}
        return {
            address: ep.permits.left if ep.permits else 0
            for address, ep in self._endpoints.items()
            if ep.state is not State.CLOSED
        }

    def out(self) -> dict[str, int]:
        """Return whom proxies are to take out now, with how many trial requests may be under way to each."""
        trials = self.policy.probe.permits
        return {
            address: trials if self._endpoints[address].state is State.HALF_OPEN else 0
            for address in self.refused()
        }

    def row(self) -> PoolRow:
        """Return what is shown of the pool."""
        return PoolRow(
            pool=self.name,
            mode=self.policy.mode,
            active=self._out.active,
            panic=self._out.panic,
            frozen=self.frozen,
            overflow=self._out.overflow,
            uncharged=self.uncharged,
            success_rate_average=self._spreads[0].average,
            success_rate_threshold=self._spreads[0].threshold,
            endpoints=tuple(ep.row(self._out.until(ep)) for ep in self._endpoints.values()),
        )
