# SPDX-License-Identifier: Apache-2.0
"""How the breaker's decisions, and what drivers did about them, stand in the log and on the record; pure."""

from __future__ import annotations

from typing import Any

from tidegate.model.breaker import Action, Decision
from tidegate.pools.updates import Told

#: More of a command or an answer isn't kept.
_LONGEST = 4096


def text_of(decision: Decision) -> str:
    """Return a decision in words."""
    where = " ".join(part for part in (decision.pool, decision.endpoint) if part) or "this node"
    text = f"{where}: {decision.action}, {decision.reason}"
    if decision.action is Action.EJECT and decision.until is not None:
        text += f", for {decision.until - decision.t:.1f} s"
    if not decision.enforced and decision.action is Action.EJECT:
        text += " (not done: the pool's mode is not enforce)"
    numbers = ", ".join(f"{name} {value}" for name, value in decision.evidence.items())
    return f"{text} ({numbers})" if numbers else text


def details_of(decision: Decision) -> dict[str, Any]:
    """Return a decision as the details of a record."""
    return {
        "pool": decision.pool or None,
        "action": str(decision.action),
        "seconds": None if decision.until is None else round(decision.until - decision.t, 3),
        "ejections": decision.ejections,
        "enforced": decision.enforced,
        **decision.evidence,
    }


def details_of_update(told: Told) -> dict[str, Any]:
    """Return an update of a driver as the details of a record: each command, and what came back."""
    details: dict[str, Any] = {
        "pool": told.pool,
        "driver": told.driver,
        "target": told.target,
        "changed": told.changed,
        "seconds": round(told.seconds, 6),
        "exchanges": [
            {"command": command[:_LONGEST], "answer": answer[:_LONGEST]} for command, answer in told.exchanges
        ],
    }
    return details | ({"error": told.error} if told.error else {})
