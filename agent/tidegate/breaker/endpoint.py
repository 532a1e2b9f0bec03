# SPDX-License-Identifier: Apache-2.0
"""What is known of one endpoint: its runs of failures, its counts of this interval, its circuit."""

from __future__ import annotations

from collections import Counter

from tidegate.breaker.permits import Permits
from tidegate.model.breaker import Action, Detections, EndpointRow, Reason, State, Way


class Endpoint:
    """Mutable and without rules of its own; :mod:`tidegate.breaker.pool` and its neighbours have them."""

    __slots__ = (
        "address",
        "backoff",
        "detections",
        "ejected_at",
        "ejected_total",
        "held",
        "jitter",
        "local_success_rate",
        "local_successes",
        "local_total",
        "needs_answer",
        "permits",
        "reason",
        "requests",
        "run_5xx",
        "run_connected",
        "run_gateway",
        "run_local",
        "since",
        "slow",
        "state",
        "success_rate",
        "successes",
        "timed",
        "unejected_at",
        "way",
    )  # fmt: skip

    def __init__(self, address: str, now: float) -> None:
        self.address = address
        self.since = now  # what began earlier isn't charged
        self.detections: Counter[tuple[str, Action, bool]] = Counter()
        self.forget()

    def forget(self) -> None:
        """Take it as new."""
        self.state = State.CLOSED
        self.reason: Reason | None = None
        self.held = False  # out until somebody says otherwise
        self.backoff = self.ejected_total = 0
        self.ejected_at: float | None = None
        self.unejected_at: float | None = None
        self.jitter = 0.0
        self.needs_answer = False
        self.permits: Permits | None = None
        self.success_rate: float | None = None
        self.local_success_rate: float | None = None
        self.clear_runs()
        self.clear_counts()

    def clear_runs(self) -> None:
        """Forget failures in a row; ``run_connected`` are those in ``run_local`` that no connect refutes."""
        self.run_5xx = self.run_gateway = self.run_local = self.run_connected = 0

    def clear_counts(self) -> None:
        """Forget the interval."""
        self.requests = self.successes = self.local_total = self.local_successes = self.timed = self.slow = 0
        self.way: Way | None = None

    def row(self, until: float | None) -> EndpointRow:
        """Return what is shown of it."""
        return EndpointRow(
            endpoint=self.address,
            state=self.state,
            reason=str(self.reason or ""),
            since=self.ejected_at if self.state else self.unejected_at,
            until=until,
            ejections=self.backoff,
            ejected_total=self.ejected_total,
            consecutive_5xx=self.run_5xx,
            consecutive_gateway_failure=self.run_gateway,
            consecutive_local_origin_failure=self.run_local,
            success_rate=self.success_rate,
            local_origin_success_rate=self.local_success_rate,
            permits=self.permits.left if self.permits else 0,
            detections=tuple(
                Detections(reason=reason, action=action, enforced=enforced, count=count)
                for (reason, action, enforced), count in sorted(self.detections.items())
            ),
        )
