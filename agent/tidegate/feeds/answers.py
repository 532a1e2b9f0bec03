# SPDX-License-Identifier: Apache-2.0
"""Answers of an endpoint in an interval, which a proxy tells in sums, as events; pure."""

from __future__ import annotations

from typing import NamedTuple

from tidegate.model.breaker import Event, Kind

#: What stands for the status of a failure where only the sum of all 5xx is known: no gateway's error.
UNKNOWN_5XX = 500
#: Events of one endpoint and interval at most. Only above so many failures can a run be longer than is certain.
MOST = 4096


class Answers(NamedTuple):
    """How many answers there were below 500 and of 5xx, and how many tries ended without one.

    ``is_anew``: the proxy began to count in this interval, so that it isn't known what was just before.
    """

    successes: int = 0
    failures: int = 0
    unanswered: int = 0
    is_anew: bool = False

    def plus(self, other: Answers) -> Answers:
        """Return both together."""
        return Answers(
            self.successes + other.successes,
            self.failures + other.failures,
            self.unanswered + other.unanswered,
            self.is_anew or other.is_anew,
        )


def events_of(pool: str, endpoint: str, answers: Answers) -> list[Event]:
    """Return the answers as events, in an order that makes no failures in a row but those that are certain.

    Failures alone go on from those before. With successes among them the order isn't known: f failures and s
    successes have for certain ``ceil(f / (s + 1))`` failures in a row somewhere, and none for certain that go on
    from before or into what follows. ``Event.run`` keeps them apart; the successes come last.
    """
    successes, failures = answers.successes, answers.failures
    row = -(-failures // min(successes + 1, MOST))
    events = []
    while failures > 0:
        count = min(row, failures)
        run = 1 if successes or answers.is_anew else None
        events.append(Event(pool, endpoint, Kind.HTTP, code=UNKNOWN_5XX, count=count, run=run))
        failures -= count
    if successes:
        events.append(Event(pool, endpoint, Kind.HTTP, code=200, count=successes))
    return events
