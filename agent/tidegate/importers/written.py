# SPDX-License-Identifier: Apache-2.0
"""A DestinationRule as lines of Tidegate's config, with a comment on each part that has no equivalent."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import yaml

from tidegate.breaker.lint import warnings
from tidegate.config.printer import to_builtins
from tidegate.importers.istio import Choice, Rule, Settings
from tidegate.model.outliers import OutlierDetection, Policy

_UNFIT = re.compile(r"[^A-Za-z0-9_.-]+")


def lines(rules: Sequence[Rule], name: str) -> Iterator[str]:
    """Yield the config that the rules of a file ask for, line by line."""
    yield f"# From {_plain(name)}. A rule names no endpoints: put ADDRESS:PORT of each into `endpoints`."
    for rule in rules:
        for said in rule.notes:
            yield f"# {_plain(said.of(name))}"
    yield "pools:"
    for pool, choice in _named(rules):
        yield from _pool(pool, choice, name)


def as_json(rules: Sequence[Rule], name: str) -> dict[str, Any]:
    """Return the same as data: the pools, what isn't taken, and what is worth a second look."""
    chosen = _named(rules)
    notes = [said for rule in rules for said in rule.notes]
    notes += [said for _, choice in chosen for said in choice.settings.notes]
    return {
        "pools": {pool: {"endpoints": [], **keys_of(choice.settings)} for pool, choice in chosen},
        "not_taken": [said.of(name) for said in dict.fromkeys(notes)],
        "warnings": [f"{pool}: {message}" for pool, choice in chosen for message in _warnings(choice.settings)],
    }


def _named(rules: Sequence[Rule]) -> list[tuple[str, Choice]]:
    names: dict[str, Choice] = {}
    for choice in (choice for rule in rules for choice in rule.choices()):
        names[_name(choice, names.keys())] = choice
    return list(names.items())


def _warnings(settings: Settings) -> Iterator[str]:
    if settings.detection is None:
        yield "no outlierDetection: nothing is ejected"
    yield from warnings(policy_of(settings), None, settings.connection_pool)


def _pool(pool: str, choice: Choice, name: str) -> Iterator[str]:
    part = [f"host {choice.host}"]
    part += [f"subset {choice.subset}"] if choice.subset is not None else []
    part += [f"port {choice.port}"] if choice.port is not None else []
    yield f"  {pool}:  # {_plain(', '.join(part))}"
    for said in choice.settings.notes:
        yield f"    # {_plain(said.of(name))}"
    for message in _warnings(choice.settings):
        yield f"    # warning: {message}"
    yield "    endpoints: []"
    for line in yaml.safe_dump(keys_of(choice.settings), sort_keys=False, default_flow_style=False).splitlines():
        yield f"    {line}"


def policy_of(settings: Settings) -> Policy:
    """Return the policy that a rule asks for, in monitor mode."""
    return Policy(
        outlier_detection=settings.detection or OutlierDetection(),
        mode="monitor" if settings.detection is not None else "off",
        min_healthy=0 if settings.empties else 1,
        healthy_panic_threshold=settings.healthy_panic_threshold,
    )


def keys_of(settings: Settings) -> dict[str, Any]:
    """Return the keys of a pool: those that differ from the defaults, as a user writes them."""
    policy = policy_of(settings)
    keys: dict[str, Any] = {"mode": policy.mode}
    if settings.empties:
        keys["min_healthy"] = 0
    if settings.healthy_panic_threshold:
        keys["healthy_panic_threshold"] = settings.healthy_panic_threshold
    if settings.connect_timeout is not None:
        keys["connect_timeout"] = to_builtins(Policy(connect_timeout=settings.connect_timeout))["connect_timeout"]
    if settings.detection is not None:
        usual = to_builtins(OutlierDetection())
        given = to_builtins(settings.detection)
        keys["outlier_detection"] = {key: value for key, value in given.items() if value != usual[key]}
    if settings.connection_pool is not None:
        limits = to_builtins(settings.connection_pool)
        given = {key: value for key, value in limits.items() if value is not None}
        keys |= {"connection_pool": given} if given else {}
    return keys


def _name(choice: Choice, taken: Collection[str]) -> str:
    host = choice.host if choice.host.startswith("*") else choice.host.partition(".")[0]
    parts = [host, choice.subset or "", "" if choice.port is None else str(choice.port)]
    name = "-".join(filter(None, (_UNFIT.sub("-", part).strip("-.") for part in parts)))[:100] or "pool"
    numbers = (f"{name}-{number}" for number in range(2, len(taken) + 3))
    return name if name not in taken else next(each for each in numbers if each not in taken)


def _plain(text: str) -> str:
    """Return a text that stays on its line of comment."""
    return "".join(character if character.isprintable() else "?" for character in text)
