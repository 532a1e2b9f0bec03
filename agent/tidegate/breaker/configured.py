# SPDX-License-Identifier: Apache-2.0
"""The pools of a config as the engine takes them, with the rules that they name, and what is odd about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import yaml

from tidegate.breaker.lint import warnings
from tidegate.config.nodes import place
from tidegate.config.pools import DestinationRule, Pool
from tidegate.errors import ConfigError
from tidegate.importers.istio import Rule, Settings, read
from tidegate.model.outliers import Member, OutlierDetection, Policy

_LARGEST = 1 << 20


class Said(NamedTuple):
    """Something about a place in the config, or, with ``where`` (FILE:LINE:COL: path), in a file that it names."""

    path: tuple[str, ...]
    message: str
    where: str | None = None

    def of(self, name: str, node: yaml.Node | None) -> str:
        """Return it as a line, where ``node`` is the tree of the config file called ``name``."""
        if self.where is not None:
            return f"{self.where}{': ' if self.message else ''}{self.message}"
        line, column = place(node, self.path)
        return f"{name}:{line}:{column}: {'.'.join(self.path)}: {self.message}"


class Found(NamedTuple):
    """The pools that could be made, what keeps the others from it, and what is worth a second look."""

    pools: dict[str, Member]
    complaints: list[Said]
    warnings: list[Said]


def members(pools: Mapping[str, Pool]) -> dict[str, Member]:
    """Return the pools; raises ConfigError where a rule can't be taken."""
    found = resolve(pools)
    if found.complaints:
        raise ConfigError([said.where or f"{'.'.join(said.path)}: {said.message}" for said in found.complaints])
    return found.pools


def resolve(pools: Mapping[str, Pool], read_file: Callable[[Path], bytes] | None = None) -> Found:
    """Read what pools name; ``read_file`` raises OSError."""
    found = Found({}, [], [])
    for name, pool in pools.items():
        settings = _settings(name, pool, read_file or _read, found)
        if settings is None:
            continue
        member = Member(_policy(pool, settings), tuple(pool.endpoints), settings.connection_pool)
        found.pools[name] = member
        for message in warnings(member.policy, len(pool.endpoints), member.connection_pool):
            found.warnings.append(Said(("pools", name), f"warning: {message}"))
        if member.policy.mode in ("enforce", "forced_open") and not pool.drivers:
            message = f"warning: mode {member.policy.mode} without drivers: who is out gets requests all the same"
            found.warnings.append(Said(("pools", name), message))
    return found


def _policy(pool: Pool, settings: Settings) -> Policy:
    handling = {name: getattr(pool, name) for name in Policy.__struct_fields__ if hasattr(pool, name)}
    rule_empties = 0 if settings.empties else 1
    handling |= {
        "outlier_detection": settings.detection or OutlierDetection(),
        "mode": pool.mode if settings.detection is not None else "off",
        "min_healthy": rule_empties if pool.min_healthy is None else pool.min_healthy,
        "healthy_panic_threshold": (
            settings.healthy_panic_threshold
            if pool.healthy_panic_threshold is None
            else pool.healthy_panic_threshold
        ),
        "connect_timeout": pool.connect_timeout or settings.connect_timeout or Policy().connect_timeout,
    }
    return Policy(**handling)


def _settings(name: str, pool: Pool, read_file: Callable[[Path], bytes], found: Found) -> Settings | None:
    """Return what the pool's rule asks for, or the pool itself; None where the rule can't be taken."""
    rule = pool.destination_rule
    if rule is None:
        return Settings(pool.outlier_detection or OutlierDetection(), connection_pool=pool.connection_pool)
    wanted = DestinationRule(file=rule) if isinstance(rule, str) else rule
    path = ("pools", name, "destination_rule")
    try:
        chosen = _chosen(read(read_file(Path(wanted.file)), wanted.file), wanted)
    except OSError as error:
        found.complaints.append(Said(path, f"{wanted.file} can't be read: {error.strerror}"))
    except ConfigError as error:
        found.complaints.extend(Said(path, "", where=complaint) for complaint in error.complaints)
    except ValueError as error:
        found.complaints.append(Said(path, str(error)))
    else:
        settings = chosen.settings(wanted.subset, wanted.port)
        for note in (*chosen.notes, *settings.notes):
            found.warnings.append(
                Said(path, "", where=note._replace(message=f"warning: {note.message}").of(wanted.file))
            )
        if settings.detection is None:
            found.warnings.append(Said(path, "warning: the rule has no outlierDetection: nothing is ejected"))
        others = sorted(chosen.policy.ports.keys() - {wanted.port})
        if wanted.port is None and others:
            ports = ", ".join(map(str, others))
            found.warnings.append(
                Said(path, f"warning: portLevelSettings of {ports} aren't taken; port: N takes one")
            )
        return settings
    return None


def _chosen(rules: list[Rule], wanted: DestinationRule) -> Rule:
    """Return the rule that is meant; raises ValueError where that isn't clear."""
    fitting = [rule for rule in rules if wanted.host in (None, rule.host, rule.host.partition(".")[0], rule.name)]
    if len(fitting) != 1:
        hosts = ", ".join(rule.host for rule in rules)
        which = "one rule" if wanted.host is None else f"one rule of host {wanted.host}"
        raise ValueError(
            f"expected {which} in {wanted.file}, found {len(fitting)} of {hosts}; host: NAME takes one"
        )
    (rule,) = fitting
    if wanted.subset is not None and wanted.subset not in rule.subsets:
        raise ValueError(
            f"expected a subset of {rule.host} ({', '.join(rule.subsets) or 'it has none'}), "
            f"found {wanted.subset!r}"
        )
    return rule


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_LARGEST)
