# SPDX-License-Identifier: Apache-2.0
"""What was found in nginx's config as lines of Tidegate's, with comments on the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from tidegate.importers.nginx import Limit, Read

_UNFIT = re.compile(r"[^A-Za-z0-9_.-]+")
_ENTRIES = 62


def lines(read: Read, name: str) -> Iterator[str]:
    """Yield the config, line by line."""
    yield _comment(f"From {name}.")
    for note in read.notes:
        yield _comment(note)
    for finding in read.findings:
        yield _comment(f"finding: {finding}")
    pools, notes, blocks = _pools(read)
    yield "pools:" if pools else "pools: {}"
    for pool, keys in pools.items():
        yield f"  {yaml.safe_dump(pool).splitlines()[0]}:"
        yield f"    {_comment(blocks[pool])}"
        for note in notes[pool]:
            yield f"    {_comment(note)}"
        yield "    # drivers: the proxy that takes the decisions is yours to name"
        for line in yaml.safe_dump(keys, sort_keys=False).splitlines():
            yield f"    {line}"
    ports = _ports(read)
    if not ports:
        return
    yield "rate_limit:"
    yield "  # XDP sees connections, not requests, and no paths: under keep-alive this is looser than nginx,"
    yield "  # and it holds for the whole port; of several the largest is taken. Name interfaces to switch it on."
    if len({port for limit in read.limits for port in limit.ports}) > _ENTRIES:
        yield f"  # Only the first {_ENTRIES} ports are here: more don't fit."
    for limit in read.limits:
        unit = "r/s" if limit.unit == "s" else "r/m"
        yield f"  {_comment(f'{limit.place}: {limit.where}: rate={limit.number}{unit} burst={limit.burst}')}"
    yield "  ports:"
    for line in yaml.safe_dump(ports, sort_keys=False).splitlines():
        yield f"    {line}"


def as_json(read: Read) -> dict[str, Any]:
    """Return the same as data."""
    pools, notes, _ = _pools(read)
    return {
        "pools": pools,
        "rate_limit": {"ports": _ports(read)},
        "not_taken": [*read.notes, *(note for each in notes.values() for note in each)],
        "findings": read.findings,
    }


def _pools(read: Read) -> tuple[dict[str, dict[str, Any]], dict[str, list[str]], dict[str, str]]:
    """Return the pools, what isn't taken of each, and where each comes from."""
    pools: dict[str, dict[str, Any]] = {}
    notes: dict[str, list[str]] = {}
    blocks: dict[str, str] = {}
    taken: set[str] = set()
    for upstream in read.upstreams:
        stem = _UNFIT.sub("-", upstream.name).strip("-.")[:90] or "pool"
        numbered = (f"pool-{stem}-{number}" for number in range(2, len(pools) + 3))
        pool = stem if stem not in pools else next(each for each in numbered if each not in pools)
        blocks[pool] = f"{upstream.place}: upstream {upstream.name}, keepalive {upstream.keepalive or 'not set'}"
        said = list(upstream.notes)
        said += [
            f"{upstream.place}: {each} is in another pool too" for each in upstream.endpoints if each in taken
        ]
        pools[pool] = {"endpoints": [each for each in upstream.endpoints if each not in taken], "mode": "monitor"}
        taken.update(upstream.endpoints)
        notes[pool] = said
    return pools, notes, blocks


def _ports(read: Read) -> dict[str, Any]:
    largest: dict[int, Limit] = {}
    for limit in read.limits:
        for port in limit.ports:
            if port not in largest or _size(limit) > _size(largest[port]):
                largest[port] = limit
    return {str(port): {"syn": _syn(limit)} for port, limit in list(largest.items())[:_ENTRIES]}


def _size(limit: Limit) -> tuple[float, int]:
    return limit.number * (60 if limit.unit == "s" else 1), limit.burst


def _syn(limit: Limit) -> dict[str, Any]:
    rate = f"{limit.number}r/s" if limit.unit == "s" else f"{limit.number}/m"
    return {"rate": rate, **({"burst": limit.burst} if limit.burst else {})}


def _comment(text: str) -> str:
    """Return a comment that stays on its line."""
    return "# " + "".join(character if character.isprintable() else "?" for character in text)
