# SPDX-License-Identifier: Apache-2.0
"""What is worth a line in a log: each transition, but of an outlier that stays the first word only."""

from __future__ import annotations

from collections.abc import Iterable

from tidegate.model.breaker import Action, Decision

_STAYS = (Action.OVERFLOW, Action.LOG_ONLY)


class Repeats:
    """Leaves out what was said of the same endpoint for the same reason less than ``seconds`` ago.

    An endpoint that fails each request and can't be ejected leads to a decision every few requests; rows count all
    of them. Bounded by the endpoints that there are.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._said: dict[tuple[str, str, Action, str], float] = {}

    def news(self, decisions: Iterable[Decision]) -> list[Decision]:
        """Return those that are worth a line, in their order."""
        return [decision for decision in decisions if self._is_new(decision)]

    def _is_new(self, decision: Decision) -> bool:
        if decision.action not in _STAYS:
            return True
        key = (decision.pool, decision.endpoint, decision.action, decision.reason)
        said = self._said.get(key)
        if said is not None and decision.t - said < self._seconds:
            return False
        self._said = {known: at for known, at in self._said.items() if decision.t - at < self._seconds}
        self._said[key] = decision.t
        return True
