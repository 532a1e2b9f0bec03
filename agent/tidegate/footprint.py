# SPDX-License-Identifier: Apache-2.0
"""The BPF maps that a config asks for, and what the kernel charges for them."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tidegate.config import Config
from tidegate.identity import cgroups
from tidegate.kernel.charge import charge
from tidegate.kernel.endpoints import room_for
from tidegate.kernel.objects import BpfObject
from tidegate.ratelimit import policy
from tidegate.signals import disk, http, ports, tcp

#: There is one for each interface.
_EACH = "ratelimit_counts"


class MapFootprint(msgspec.Struct, frozen=True, kw_only=True):
    """One map, or ``maps`` alike: entries of each, bytes of all from the start and at most."""

    map: str
    maps: int
    entries: int
    bytes: int
    most: int


def footprint(config: Config, cpus: int) -> list[MapFootprint]:
    """Return the maps of every object that a config has loaded, on a node with so many possible CPUs.

    Needs no privilege: the compiled objects are opened, not loaded. Of interfaces that are given as a pattern, one
    is reckoned with for each pattern.
    """
    rows = []
    for name, sizes in objects(config).items():
        with BpfObject.named(name) as bpf:
            bpf.resize(sizes)
            shapes = bpf.shapes()
        for shape in shapes:
            number = len(config.rate_limit.interfaces) if shape.name == _EACH else 1
            size, most = charge(shape, cpus)
            rows.append(
                MapFootprint(
                    map=shape.name if shape.name.startswith(name) else f"{name}: {shape.name}",
                    maps=number,
                    entries=shape.max_entries,
                    bytes=number * size,
                    most=number * most,
                )
            )
    return rows


def objects(config: Config) -> dict[str, Mapping[str, int]]:
    """Return which objects a config has loaded, each with the entries of the maps that it sizes."""
    signals = config.signals
    watched = room_for(sum(len(pool.endpoints) for pool in config.pools.values()))
    found: dict[str, Mapping[str, int]] = {
        "cgroup": cgroups.sizes(2),  # as on a host with hierarchies of cgroup v1, which takes more
        "oom": {},
        "tcp": tcp.sizes(signals.tcp.max_rows, signals.tcp.max_sockets, signals.ports.max_rows, watched),
        "ports": ports.sizes(signals.ports.max_rows),
    }
    if signals.disk.enabled:
        found["disk"] = disk.sizes(signals.disk.max_rows, signals.disk.max_requests)
    if config.pools:
        found["http"] = http.sizes(config.services.max_rows)
        found["failfast"] = {"failfast_entries": watched}
    if config.rate_limit.interfaces:
        found["ratelimit"] = policy.sizes(config.rate_limit)
    return found
