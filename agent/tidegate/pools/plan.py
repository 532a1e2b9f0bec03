# SPDX-License-Identifier: Apache-2.0
"""Whom a proxy may be asked to take out, by what it says of its endpoints; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tidegate.model.driver import USABLE, Use
from tidegate.pools.driver import Wanted


class Plan(NamedTuple):
    """Who is to be out of the proxy, and who has to stay as too few would be left."""

    out: dict[str, int]
    refused: tuple[str, ...]


def plan(wanted: Wanted, uses: Mapping[str, Use], least: int) -> Plan:
    """Take out whom the breaker wants out, as far as ``least`` endpoints are left that the proxy really uses.

    Where the breaker itself leaves fewer, the policy or a person has said so, and that holds. Who is out already
    stays out before others go.
    """
    left_by_breaker = sum(endpoint not in wanted or wanted[endpoint] > 0 for endpoint in uses)
    least = min(least, left_by_breaker)
    left = sum(use in USABLE for use in uses.values())
    out, refused = {}, []
    order = sorted(
        (endpoint for endpoint in wanted if endpoint in uses), key=lambda name: uses[name] is not Use.EJECTED
    )
    for endpoint in order:
        if wanted[endpoint] == 0 and uses[endpoint] in USABLE:
            if left <= least:
                refused.append(endpoint)
                continue
            left -= 1
        out[endpoint] = wanted[endpoint]
    return Plan(out, tuple(refused))


def is_done(out: Wanted, uses: Mapping[str, Use]) -> bool:
    """Tell whether a proxy uses its endpoints as it was told."""
    return not undone(out, uses)


def undone(out: Wanted, uses: Mapping[str, Use]) -> list[str]:
    """Return whom a proxy doesn't use as it was told; what it lacks or others hold out counts as out."""
    return [endpoint for endpoint, use in uses.items() if use in _wrong(out.get(endpoint))]


def _wrong(permits: int | None) -> tuple[Use, ...]:
    if permits is None:
        return Use.EJECTED, Use.TRIAL
    return (Use.EJECTED,) if permits else (Use.ACTIVE, Use.TRIAL)
