# SPDX-License-Identifier: Apache-2.0
"""Judges one view after the other: remembers what it needs of the earlier ones, and lets findings stand on."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tidegate.advice import conclude, find
from tidegate.history import History
from tidegate.model.finding import Finding
from tidegate.model.limits import Advice, Residency
from tidegate.model.outliers import Member
from tidegate.model.snapshot import View


class Advisor:
    """The findings of a running measurement; ``seconds`` is how long it has been watched."""

    def __init__(self, advice: Advice, residency: Residency, pools: Mapping[str, Member] | None = None) -> None:
        self.advice, self.residency, self.pools = advice, residency, pools or {}
        self.seconds = 0.0
        self._history = History(advice.window)
        self._standing: dict[tuple[str, str], tuple[Finding, float]] = {}
        self._judged_at: float | None = None
        self._findings: tuple[Finding, ...] = ()

    def configure(self, advice: Advice, residency: Residency, pools: Mapping[str, Member] | None = None) -> None:
        """Judge by other limits from now on."""
        self.advice, self.residency, self.pools = advice, residency, pools or {}
        self._history.length = advice.window

    def judge(self, view: View) -> View:
        """Return the view with what is wrong; between two intervals of the advice, with what was wrong before."""
        self.seconds += view.interval
        window = self._history.add(view)
        if self._judged_at is None or self.seconds - self._judged_at >= 0.9 * self.advice.interval:
            self._judged_at = self.seconds
            self._findings = conclude(self._stand(find(window, self.advice, self.residency, self.pools)))
        return msgspec.structs.replace(view, findings=self._findings)

    def _stand(self, found: tuple[Finding, ...]) -> list[Finding]:
        """Keep what was found a short while ago, so that what is near its limit doesn't flicker."""
        fresh = {}
        for finding in found:
            hold = self.advice.oom_killed.hold if finding.id == "oom_killed" else self.advice.hold
            fresh[finding.id, finding.subject] = (finding, self.seconds + hold)
        for key, (finding, until) in self._standing.items():
            if until >= self.seconds and not any(_is_of(finding, new) for new, _ in fresh.values()):
                fresh[key] = (finding, until)
        self._standing = fresh
        return [finding for finding, _ in fresh.values()]


def _is_of(old: Finding, new: Finding) -> bool:
    """Tell whether a new finding continues an old one, perhaps with another subject: a pool that has grown."""
    if old.id != new.id:
        return False
    shared = [not set(a).isdisjoint(b) for a, b in ((old.services, new.services), (old.endpoints, new.endpoints))]
    return old.subject == new.subject or all(shared)
